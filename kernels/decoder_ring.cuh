// The ring of weights in a block's shared memory, and which weights a block takes.

#pragma once

#include "decoder.cuh"

// Stages that are asked for and not there yet, at most: enough to keep the memory busy. Behind all that the ring has room for,
// everybody else's loads, stores and atomics would queue, for microseconds at every barrier. A ring has no fewer stages.
#if BULK_COPY
constexpr int IN_FLIGHT = 4;
// Of a block with half a ring of stages to multiply with, which can wait for those that have none.
constexpr int IN_FLIGHT_STOCKED = 2;
#else
// A warp that copies itself has no time to look how much there is.
constexpr int IN_FLIGHT = 3;
#endif

// The part of a product that this block does.
struct Share {
    const char* weights;
    const float* scales;  // of the matrix's rows
    int piece_bytes;
    int tiles;        // tiles of 16 weight rows in the matrix
    int pieces;       // pieces of 64 k in a row of tiles
    int slice;        // which slice of k
    int begin, end;   // its pieces
    int first, step;  // tiles first, first + step, ...
    int count;        // how many
};

// Wide kernels have their weights widened.
template <bool INT8_HEAD, bool WIDE>
__device__ __forceinline__ Share share_of(const DecoderPass& p, int phase, Phase kind) {
    const int layer = (phase - 1) / LAYER_PHASES;
    const int tiles_dim = (p.dim + 15) / 16, tiles_qkv = (p.n_heads + 2 * p.n_kv_heads) * (HEAD_DIM / 16);
    const int tiles_13 = (p.hidden + 7) / 8;
    Share s;
    int splits = 1;
    int rotation;  // tiles dealt before, so that the blocks with one tile more are different ones each time
    switch (kind) {
        case QKV:
            s.weights = p.layers[layer].wqkv;
            s.tiles = tiles_qkv, s.pieces = (p.dim + 63) / 64;
            rotation = layer * (tiles_qkv + tiles_13);
            break;
        case WO:
            s.weights = p.layers[layer].wo;
            s.tiles = tiles_dim, s.pieces = p.n_heads * HEAD_DIM / 64, splits = SPLITS;
            rotation = layer * 2 * tiles_dim;
            break;
        case W13:
            s.weights = p.layers[layer].w13;
            s.tiles = tiles_13, s.pieces = (p.dim + 63) / 64;
            rotation = layer * (tiles_qkv + tiles_13) + tiles_qkv;
            break;
        case W2:
            s.weights = p.layers[layer].w2;
            s.tiles = tiles_dim, s.pieces = (p.hidden + 63) / 64, splits = SPLITS;
            rotation = layer * 2 * tiles_dim + tiles_dim;
            break;
        default:
            s.weights = INT8_HEAD ? p.head_int8 : p.head;
            s.tiles = (p.vocab + 15) / 16, s.pieces = (p.dim + 63) / 64;
            rotation = p.n_layers * (tiles_qkv + tiles_13);
            break;
    }
    s.piece_bytes = INT8_HEAD && kind == HEAD ? INT8_PIECE_BYTES : WIDE ? WIDENED_PIECE_BYTES : PIECE_BYTES;
    s.scales = reinterpret_cast<const float*>(s.weights + static_cast<long long>(s.tiles) * s.pieces * s.piece_bytes);
    s.step = gridDim.x / splits;
    s.slice = blockIdx.x % splits;
    const int place = blockIdx.x / splits;
    s.begin = s.slice * s.pieces / splits;
    s.end = (s.slice + 1) * s.pieces / splits;
    s.first = (place + s.step - rotation % s.step) % s.step;
    s.count = place >= s.step || s.first >= s.tiles ? 0 : (s.tiles - s.first + s.step - 1) / s.step;
    return s;
}

// The block's ring of weight stages. A stage is what the eight warps need for one step of one tile: up to eight pieces,
// which lie one after the other in the packed matrix. Stages come in the order phases, groups of `TG` tiles, steps of k,
// tiles of the group. A ninth warp fills the ring, as far ahead of its use as there is room.
struct Ring {
    char* stages;
    int slot;
    uint32_t parity;

    __device__ __forceinline__ static uint32_t full(int slot) {
        extern __shared__ __align__(128) char shared[];
        return shared_address(shared) + slot * 16;
    }
    __device__ __forceinline__ static uint32_t empty(int slot) { return full(slot) + 8; }
    __device__ __forceinline__ explicit Ring(char* stages) : stages(stages), slot(0), parity(0) {}
    // One thread.
    __device__ __forceinline__ static void initialise(const DecoderPass& p) {
        for (int i = 0; i < p.stages; i++) {
            barrier_init(full(i), BULK_COPY ? 1 : 32);
            barrier_init(empty(i), THREADS);
        }
    }
    __device__ __forceinline__ void advance(const DecoderPass& p) {
        if (++slot == p.stages) slot = 0, parity ^= 1;
    }
    // Calls visit(address, bytes) for every stage of the launch, in order.
    template <int TG, bool INT8_HEAD, typename Visit>
    __device__ __forceinline__ static void walk(const DecoderPass& p, Visit visit) {
        for (int phase = p.phase_begin; phase < p.phase_end; phase++) {
            const Phase kind = phase_kind(p, phase);
            if (kind == EMBED || kind == ATTENTION) continue;
            const Share share = share_of<INT8_HEAD, false>(p, phase, kind);
            const int bytes = share.piece_bytes;
            const long long stride = static_cast<long long>(share.step) * share.pieces * bytes;
            const char* start =
                share.weights + (static_cast<long long>(share.first) * share.pieces + share.begin) * bytes;
            for (int group = 0; group < share.count; group += TG, start += stride * TG) {
                const int tiles = min(TG, share.count - group);
                const char* step = start;
                for (int left = share.end - share.begin; left > 0; left -= WARPS, step += WARPS * bytes) {
                    const char* from = step;
                    for (int tile = 0; tile < tiles; tile++, from += stride) visit(from, min(left, WARPS) * bytes);
                }
            }
        }
    }
    // The ninth warp's work: fills the ring.
    template <int TG, bool INT8_HEAD>
    __device__ __forceinline__ void fill(const DecoderPass& p, int lane) {
        int done = 0;
        Ring landing(stages);  // where the oldest stage in flight is
#if BULK_COPY
        if (lane != 0) return;
        const uint64_t policy = evict_first_policy();
        int landed = 0;
        const int half = p.stages / 2;
        Ring behind(stages);  // half a ring behind
#endif
        walk<TG, INT8_HEAD>(p, [&](const char* from, int bytes) {
#if BULK_COPY
            int in_flight = IN_FLIGHT;
            if (done >= half) {
                if (!barrier_test(empty(behind.slot), behind.parity)) in_flight = IN_FLIGHT_STOCKED;
                behind.advance(p);
            }
            for (; done - landed >= in_flight; landed++) landing.wait(), landing.advance(p);
#else
            if (done >= IN_FLIGHT) landing.wait(), landing.advance(p);
#endif
            if (done >= p.stages) barrier_wait(empty(slot), parity ^ 1);
            char* to = stages + slot * STAGE_BYTES;
#if BULK_COPY
            barrier_expect(full(slot), bytes);
            bulk_copy(shared_address(to), from, bytes, full(slot), policy);
#else
#pragma unroll 2
            for (int i = lane * 16; i < bytes; i += 512) copy_async(shared_address(to + i), from + i);
            copy_arrive(full(slot));
#endif
            advance(p);
            done++;
        });
#if !BULK_COPY
        copy_wait_all();
#endif
    }
    __device__ __forceinline__ void wait() const { barrier_wait(full(slot), parity); }
    // Waits for the next stage and reads the lane's part of the warp's piece of it. `release` gives the slot back that this
    // returns: every lane for itself, which takes no longer than one lane for its warp.
    template <bool INT8>
    __device__ __forceinline__ int take(const DecoderPass& p, int warp, int lane, Packed<INT8>& to) {
        wait();
        const char* piece = stages + slot * STAGE_BYTES + warp * (INT8 ? INT8_PIECE_BYTES : PIECE_BYTES);
        const uint4* from = reinterpret_cast<const uint4*>(piece);
#pragma unroll
        for (int i = 0; i < Packed<INT8>::QUADS; i++) to.quads[i] = from[i * 32 + lane];
        const int taken = slot;
        advance(p);
        return taken;
    }
    __device__ __forceinline__ static void release(int slot) {
        fence_reads();
        barrier_arrive(empty(slot));
    }
};
