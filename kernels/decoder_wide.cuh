// Products of the decoder's pass for many rows. The kernels for fewer read all rows' inputs again for every few tiles; here
// warps share out tiles and rows instead of k, and a block reads x once for all of its tiles, through shared memory. Several warps
// multiply with the same weights, so those lie in memory as F16 (`widen_tiles` in decoder_pack.cu) for these kernels.
//
// Bits are those of the kernels for fewer rows, whose eight warps take every eighth piece of k and are added in their order: a
// warp here goes through the pieces of the first of those, then of the second and so on, and adds the sum of each to the total.

#pragma once

#include "decoder_ring.cuh"

// How the eight warps are laid over TILES tiles of weights and 8 * NT rows.
template <int NT, int TILES>
struct WidePlan {
    static constexpr int ROW_WARPS = 4, TILE_WARPS = WARPS / ROW_WARPS;
    static constexpr int NW = NT / ROW_WARPS;                         // tiles of 8 rows of a warp
    static constexpr int TW = (TILES + TILE_WARPS - 1) / TILE_WARPS;  // tiles of weights of a warp
    static constexpr int HALF_BYTES = NT * 8 * 64;                    // 32 k of x
};

#if BULK_COPY

constexpr int WIDE_STAGES = 24;          // of weights, at most
constexpr int MAX_X_STAGES = 8;
constexpr int WIDE_BARRIER_BYTES = 512;  // for the barriers of both

// Two rings. A stage is one piece of k: that of up to TILES tiles of weights in one, that of x in the other. Room for weights
// is dealt by tiles, so phases with few tiles have more stages under way. One warp brings weights, as far ahead as there is
// room, and another one x, once what writes it is done.
template <int NT, int TILES>
struct WideRing {
    using Plan = WidePlan<NT, TILES>;
    static_assert(TILES <= 32, "a lane of the warp that brings weights has a tile");
    static_assert((2 * WIDE_STAGES + 2 * MAX_X_STAGES) * 8 <= WIDE_BARRIER_BYTES, "barriers");

    struct Place {
        int stage = 0;
        uint32_t parity = 0;
        __device__ __forceinline__ void advance(int n) {
            if (++stage == n) stage = 0, parity ^= 1;
        }
    };
    char* base;  // barriers, stages of x, places for weights
    Place weights, x;
    int first;   // of the places of the stage of weights

    __device__ __forceinline__ explicit WideRing(char* base) : base(base), first(0) {}

    __device__ __forceinline__ uint32_t weights_full(int stage) const { return shared_address(base) + stage * 16; }
    __device__ __forceinline__ uint32_t weights_empty(int stage) const { return weights_full(stage) + 8; }
    __device__ __forceinline__ uint32_t x_full(int stage) const { return weights_full(WIDE_STAGES + stage); }
    __device__ __forceinline__ uint32_t x_empty(int stage) const { return x_full(stage) + 8; }
    __device__ __forceinline__ char* x_stage(int stage) const {
        return base + WIDE_BARRIER_BYTES + stage * 2 * Plan::HALF_BYTES;
    }
    __device__ __forceinline__ char* piece_of(const DecoderPass& p, int first, int tile) const {
        const int place = first + tile - (first + tile < p.stages ? 0 : p.stages);
        return base + WIDE_BARRIER_BYTES + p.x_stages * 2 * Plan::HALF_BYTES + place * WIDENED_PIECE_BYTES;
    }
    // One thread.
    __device__ __forceinline__ void initialise(const DecoderPass&) const {
        for (int i = 0; i < WIDE_STAGES + MAX_X_STAGES; i++) {
            barrier_init(weights_full(i), 1);
            barrier_init(weights_empty(i), THREADS);
        }
    }
    // Calls begin(share, kind) for every product of the launch, then visit(first tile of the group, tiles, piece) for its stages.
    template <bool INT8_HEAD, typename Begin, typename Visit>
    __device__ __forceinline__ static void walk(const DecoderPass& p, Begin begin, Visit visit) {
        for (int phase = p.phase_begin; phase < p.phase_end; phase++) {
            const Phase kind = phase_kind(p, phase);
            if (kind == EMBED || kind == ATTENTION) continue;
            const Share share = share_of<INT8_HEAD, true>(p, phase, kind);
            begin(share, kind);
            for (int group = 0; group < share.count; group += TILES) {
                for (int part = 0; part < WARPS; part++) {
                    for (int piece = share.begin + part; piece < share.end; piece += WARPS) {
                        visit(group, min(TILES, share.count - group), piece);
                    }
                }
            }
        }
    }
    // One warp's work, a tile a lane. Stages are given back in order, with as many places as they took.
    template <bool INT8_HEAD>
    __device__ __forceinline__ void fill_weights(const DecoderPass& p, int lane) {
        const uint64_t policy = evict_first_policy();
        Share share;
        Place oldest;
        int n_stages = 0, n_places = 0;
        int taken = 0;  // places of the stage with the lane's number
        walk<INT8_HEAD>(
            p, [&](const Share& now, Phase) { share = now; },
            [&](int group, int tiles, int piece) {
                while (n_places + tiles > p.stages || n_stages == WIDE_STAGES) {
                    barrier_wait(weights_empty(oldest.stage), oldest.parity);
                    n_places -= __shfl_sync(~0u, taken, oldest.stage);
                    n_stages--;
                    oldest.advance(WIDE_STAGES);
                }
                if (lane == weights.stage) taken = tiles;
                if (lane == 0) barrier_expect(weights_full(weights.stage), tiles * share.piece_bytes);
                __syncwarp();
                if (lane < tiles) {
                    const long long tile = share.first + static_cast<long long>(group + lane) * share.step;
                    const char* from = share.weights + (tile * share.pieces + piece) * share.piece_bytes;
                    bulk_copy(shared_address(piece_of(p, first, lane)), from, share.piece_bytes, weights_full(weights.stage),
                              policy);
                }
                next_weights(p, tiles);
                n_places += tiles;
                n_stages++;
            });
    }
    // Another warp's work. `ready` completes a phase when x of a product is there.
    template <bool INT8_HEAD>
    __device__ __forceinline__ void fill_x(const DecoderPass& p, int lane, uint32_t ready) {
        const uint64_t policy = evict_last_policy();
        const int rows = p.shape[0], head_rows = p.shape[2];
        int done = 0;
        uint32_t products = 0, bytes = 0;
        const real16* from = nullptr;
        walk<INT8_HEAD>(
            p,
            [&](const Share&, Phase kind) {
                from = kind == WO ? p.attended : kind == W2 ? p.activated : p.normed;
                bytes = ((kind == HEAD ? head_rows : rows) + 7) / 8 * 8 * 64;
                barrier_wait(ready, products++ & 1);
                fence_copies();
            },
            [&](int, int, int piece) {
                if (done >= p.x_stages) barrier_wait(x_empty(x.stage), x.parity ^ 1);
                if (lane == 0) barrier_expect(x_full(x.stage), 2 * bytes);
                __syncwarp();
                if (lane < 2) {
                    bulk_copy(shared_address(x_stage(x.stage) + lane * Plan::HALF_BYTES),
                              from + static_cast<size_t>(piece * 2 + lane) * MAX_ROWS * 32, bytes, x_full(x.stage), policy);
                }
                x.advance(p.x_stages);
                done++;
            });
    }

    // Sums of tile_warp's tiles of a group (tile_warp, tile_warp + TILE_WARPS, ...) by row_warp's NW * 8 rows.
    template <bool INT8>
    __device__ __forceinline__ void multiply(const DecoderPass& p, const Share& share, int tiles, int rows, int warp, int lane,
                                             float (&total)[Plan::TW][Plan::NW][4]) {
        const int row_warp = warp % Plan::ROW_WARPS, tile_warp = warp / Plan::ROW_WARPS;
        const bool idle = row_warp * Plan::NW * 8 >= rows;
        const int own = idle ? 0 : (tiles - tile_warp + Plan::TILE_WARPS - 1) / Plan::TILE_WARPS;
        if (own == 0) {
            pass_over(p, share, tiles);
        } else {
            sums_of<INT8, 1>(own, p, share, tiles, row_warp, tile_warp, lane, total);
        }
    }

private:
    __device__ __forceinline__ void next_weights(const DecoderPass& p, int tiles) {
        weights.advance(WIDE_STAGES);
        first += tiles;
        if (first >= p.stages) first -= p.stages;
    }
    __device__ __forceinline__ void wait() const {
        barrier_wait(weights_full(weights.stage), weights.parity);
        barrier_wait(x_full(x.stage), x.parity);
    }
    __device__ __forceinline__ void release(int weights_stage, int x_stage) const {
        fence_reads();
        barrier_arrive(weights_empty(weights_stage));
        barrier_arrive(x_empty(x_stage));
    }
    __device__ __forceinline__ void advance(const DecoderPass& p, int tiles) {
        next_weights(p, tiles);
        x.advance(p.x_stages);
    }
    // For a warp that has nothing to add.
    __device__ __forceinline__ void pass_over(const DecoderPass& p, const Share& share, int tiles) {
        for (int i = share.begin; i < share.end; i++) {
            wait();
            release(weights.stage, x.stage);
            advance(p, tiles);
        }
    }
    // Finds the code for so many tiles, COUNT or more.
    template <bool INT8, int COUNT>
    __device__ __forceinline__ void sums_of(int own, const DecoderPass& p, const Share& share, int tiles, int row_warp,
                                            int tile_warp, int lane, float (&total)[Plan::TW][Plan::NW][4]) {
        if constexpr (COUNT < Plan::TW) {
            if (own > COUNT) return sums_of<INT8, COUNT + 1>(own, p, share, tiles, row_warp, tile_warp, lane, total);
        }
        sums<INT8, COUNT>(p, share, tiles, row_warp, tile_warp, lane, total);
    }
    // The first COUNT tiles of a warp. Fragments are on their way from shared memory while the matrix unit works on those
    // before: those of the next 32 k where there are registers for them, otherwise of the next tile.
    template <bool INT8, int COUNT>
    __device__ __forceinline__ void sums(const DecoderPass& p, const Share& share, int tiles, int row_warp, int tile_warp,
                                         int lane, float (&total)[Plan::TW][Plan::NW][4]) {
        constexpr int NW = Plan::NW;
        auto load_x = [&](int half, uint4 (&to)[NW]) {
            const uint4* from = reinterpret_cast<const uint4*>(x_stage(x.stage) + half * Plan::HALF_BYTES);
#pragma unroll
            for (int j = 0; j < NW; j++) to[j] = from[(row_warp * NW + j) * 32 + lane];
        };
        auto load_weights = [&](int half, int i, uint4 (&to)[2]) {
            read_half<INT8>(piece_of(p, first, i * Plan::TILE_WARPS + tile_warp), half, lane, to);
        };
        float sum[COUNT][NW][4];
#pragma unroll
        for (int i = 0; i < COUNT; i++) {
#pragma unroll
            for (int j = 0; j < NW; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) total[i][j][e] = sum[i][j][e] = 0.0f;
            }
        }
        int left = share.end - share.begin;
        // Goes through the pieces, part by part.
        auto for_pieces = [&](auto work) {
            for (int part = 0; part < WARPS; part++) {
                for (int piece = share.begin + part; piece < share.end; piece += WARPS) {
                    const int weights_stage = weights.stage, x_stage = x.stage;
                    left--;
                    work();
                    release(weights_stage, x_stage);
                }
#pragma unroll
                for (int i = 0; i < COUNT; i++) {
#pragma unroll
                    for (int j = 0; j < NW; j++) {
#pragma unroll
                        for (int e = 0; e < 4; e++) {
                            total[i][j][e] = __fadd_rn(total[i][j][e], sum[i][j][e]);
                            sum[i][j][e] = 0.0f;
                        }
                    }
                }
            }
        };
        if constexpr (COUNT * NW <= 12) {
            uint4 b[2][NW], a[2][COUNT][2];
            auto load = [&](int half) {
                load_x(half, b[half]);
#pragma unroll
                for (int i = 0; i < COUNT; i++) load_weights(half, i, a[half][i]);
            };
            wait();
            load(0);
            for_pieces([&]() {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    if (half == 0) {
                        load(1);
                    } else {
                        advance(p, tiles);
                        if (left > 0) {
                            wait();
                            load(0);
                        }
                    }
#pragma unroll
                    for (int i = 0; i < COUNT; i++) {
#pragma unroll
                        for (int j = 0; j < NW; j++) mma_k32(sum[i][j], a[half][i], b[half][j]);
                    }
                }
            });
        } else {
            // where sums leave no registers, x is loaded when it is needed
            constexpr bool AHEAD = COUNT * NW <= 16;
            uint4 b[AHEAD ? 2 : 1][NW], a[2][2];
            wait();
            load_x(0, b[0]);
            load_weights(0, 0, a[0]);
            for_pieces([&]() {
#pragma unroll
                for (int half = 0; half < 2; half++) {
#pragma unroll
                    for (int i = 0; i < COUNT; i++) {
                        const int now = (half * COUNT + i) & 1;
                        if (i + 1 < COUNT) {
                            load_weights(half, i + 1, a[now ^ 1]);
                        } else if (half == 0) {
                            if (AHEAD) load_x(1, b[1]);
                            load_weights(1, 0, a[now ^ 1]);
                        } else {
                            advance(p, tiles);
                            if (left > 0) {
                                wait();
                                if (AHEAD) load_x(0, b[0]);
                                load_weights(0, 0, a[now ^ 1]);
                            }
                        }
#pragma unroll
                        for (int j = 0; j < NW; j++) mma_k32(sum[i][j], a[now], b[AHEAD ? half : 0][j]);
                        if (!AHEAD && i + 1 == COUNT && (half == 0 || left > 0)) load_x(half ^ 1, b[0]);
                    }
                }
            });
        }
    }
    // Fragments of 32 of a piece's 64 k, see `mma_k32`.
    template <bool INT8>
    __device__ __forceinline__ static void read_half(const char* piece, int half, int lane, uint4 (&a)[2]) {
        const uint4* from = reinterpret_cast<const uint4*>(piece);
        if constexpr (INT8) {
            const Packed<true> packed = {from[lane], from[32 + lane]};
            fragments<true>(packed, half, a);
        } else {
            a[0] = from[half * 64 + lane], a[1] = from[half * 64 + 32 + lane];
        }
    }
};

// What wide kernels do with sums where they are, in the registers of a warp: lane (g, t) has features g and g + 8 of tile i by
// rows 2t and 2t + 1 of each eight.
//
// Gates and ups of the same rows and features are in the same lanes.
template <typename Plan, typename TileAt>
__device__ __forceinline__ void store_gated(const DecoderPass& p, const Shared& s,
                                            const float* scales, const float (&total)[Plan::TW][Plan::NW][4], int n_own,
                                            int rows, int row_warp, int lane, TileAt tile_at) {
    const int g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int j = 0; j < Plan::NW; j++) {
        const int row0 = (row_warp * Plan::NW + j) * 8;
        if (row0 >= rows) break;
        const float2 scale = *reinterpret_cast<const float2*>(&s.scale[row0 + t * 2]);
#pragma unroll
        for (int i = 0; i < Plan::TW; i++) {
            if (i >= n_own) break;
            const float* sums = total[i][j];
            const float gate = scales[tile_at(i) * 16 + g], up = scales[tile_at(i) * 16 + g + 8];
            auto scaled = [&](int e, float row) { return __fmul_rn(__fmul_rn(sums[e], e < 2 ? gate : up), row); };
            const uint32_t pair = pack16(silu_times(scaled(0, scale.x), scaled(2, scale.x)),
                                         silu_times(scaled(1, scale.y), scaled(3, scale.y)));
            // to features 2t and 2t + 1 of row g
            uint32_t turned;
            asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(turned) : "r"(pair));
            if (row0 + g >= rows) continue;
            *reinterpret_cast<uint32_t*>(p.activated + activation_index(row0 + g, tile_at(i) * 8 + t * 2)) = turned;
        }
    }
}

// The best of a warp's logits of each row, and all of them where they are asked for.
template <typename Plan, typename TileAt>
__device__ __forceinline__ void rank_logits(const DecoderPass& p, Shared& s, const float* scales,
                                            const float (&total)[Plan::TW][Plan::NW][4], int n_own, int rows, int row_warp,
                                            int lane, TileAt tile_at) {
    const int g = lane >> 2, t = lane & 3;
#pragma unroll
    for (int j = 0; j < Plan::NW; j++) {
#pragma unroll
        for (int e = 0; e < 2; e++) {
            const int row = (row_warp * Plan::NW + j) * 8 + t * 2 + e;
            if ((row_warp * Plan::NW + j) * 8 >= rows) break;
            const float scale = s.scale[row];
            unsigned long long best = 0;
#pragma unroll
            for (int i = 0; i < Plan::TW; i++) {
#pragma unroll
                for (int high = 0; high < 2; high++) {
                    const int n = tile_at(i) * 16 + g + high * 8;
                    if (i >= n_own || n >= p.vocab || row >= rows) continue;
                    const float y = __fmul_rn(__fmul_rn(total[i][j][high * 2 + e], scales[n]), scale);
                    best = max(best, ranking_key(y, n));
                    if (p.logits) p.logits[static_cast<size_t>(row) * p.vocab + n] = y;
                }
            }
#pragma unroll
            for (int o = 4; o < 32; o *= 2) best = max(best, __shfl_xor_sync(~0u, best, o));
            if (g == 0 && row < rows) atomicMax(&s.best[row], best);
        }
    }
}

template <int NT, int TILES, bool WIDE>
using RingOf = std::conditional_t<WIDE, WideRing<NT, TILES>, Ring>;
#else
template <int NT, int TILES, bool WIDE>
using RingOf = Ring;
#endif
