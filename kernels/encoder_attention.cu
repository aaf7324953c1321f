// Sliding-window attention: softmax(q k^T / sqrt(head_dim)) v, for any GPU. See attention.cuh for the order of sums.

#include "attention.cuh"

// Which keys: those in the ring, which no kernel of this pass wrote, and what is neither; those among the pass's rows; or all.
enum Which { RING, FRESH, ALL };

// Starts to copy a block of keys and their values, by THREADS threads of which this is number `thread`; zeros for keys that
// are older or newer than those asked for.
template <int HD, int THREADS, Which WHICH>
__device__ __forceinline__ void load_block(const KeySource& source, int block, int oldest, int newest, uint32_t to,
                                           int thread) {
    constexpr int CHUNKS = HD / 8;
    const int first_valid = max(oldest - block * KEYS, 0), last_valid = min(newest - block * KEYS, KEYS - 1);
    if (WHICH == FRESH && block * KEYS + last_valid < source.position) return;
#pragma unroll
    for (int c = thread; c < KEYS * CHUNKS; c += THREADS) {
        const int row = c / CHUNKS, chunk = c % CHUNKS, at = block * KEYS + row;
        const bool valid = row >= first_valid && row <= last_valid;
        if (WHICH != ALL && (WHICH == FRESH) != (valid && at >= source.position)) continue;
        const real16* key = source.key(row, at) + chunk * 8;
        copy_async(to + place<HD>(row, chunk), key, valid);
        copy_async(to + KEYS * HD * 2 + place<HD>(row, chunk), key + source.value_offset(at), valid);
    }
}

// Copies `n` queries of 16 to shared memory, zeros for the others.
template <int HD, int ROWS, int THREADS>
__device__ __forceinline__ void load_queries(const Attention& a, const Segment& s, int first, int n, int head,
                                             uint32_t to, int thread) {
    constexpr int CHUNKS = HD / 8;
    const real16* q = a.qkv + static_cast<size_t>(s.first_row + first) * a.stride + head * HD;
#pragma unroll
    for (int c = thread; c < ROWS * CHUNKS; c += THREADS) {
        const int row = c / CHUNKS, chunk = c % CHUNKS;
        const bool valid = row < n;
        copy_async(to + place<HD>(row, chunk), q + static_cast<size_t>(valid ? row : 0) * a.stride + chunk * 8, valid);
    }
}

template <int HD>
__device__ __forceinline__ void query_operands(uint32_t (&queries)[HD / 16][4], uint32_t from, int row) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int k = 0; k < HD / 16; k++) ldmatrix_x4(queries[k], from + place<HD>(row + lane % 16, 2 * k + lane / 16));
}

constexpr int QUERIES = 64, STAGES = 3;

// Many queries: a block has 64 of one head, a warp 16 of them; keys come through a ring of stages.
// Grid: (tiles of 64 queries, heads); block: 128; dynamic shared memory: STAGES * 2 * KEYS * HD * 2 bytes.
template <int HD>
__device__ __forceinline__ void attention(const Attention& a) {
    constexpr int STAGE_BYTES = 2 * KEYS * HD * 2;
    allow_next();
    wait_for_previous();
    extern __shared__ __align__(128) uint8_t shared[];
    const uint32_t base = shared_address(shared);
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int2 tile = a.tiles[blockIdx.x];
    const Segment s = a.segments[tile.x];
    const int n_queries = min(QUERIES, s.n_rows - tile.y);
    const int first_query = s.position + tile.y, last_query = first_query + n_queries - 1;
    const int oldest = max(0, first_query - a.window + 1);
    const int head = blockIdx.y;
    const int channel = head / a.group * HD;

    // queries, by way of the memory that keys come to later
    load_queries<HD, QUERIES, 128>(a, s, tile.y, n_queries, head, base, thread);
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    uint32_t queries[HD / 16][4];
    query_operands<HD>(queries, base, warp * 16);
    __syncthreads();

    float out[HD / 8][4] = {};
    Merged merged[2];
    const int own = first_query + warp * 16 + lane / 4;
    const int first_block = oldest / KEYS, last_block = last_query / KEYS;
    auto load = [&](int block) {
        if (block <= last_block) {
            const uint32_t to = base + (block - first_block) % STAGES * STAGE_BYTES;
            load_block<HD, 128, ALL>(KeySource(a, s, channel, block), block, oldest, last_query, to, thread);
        }
        copy_commit();
    };
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) load(first_block + i);
    for (int block = first_block; block <= last_block; block++) {
        copy_wait<STAGES - 2>();
        __syncthreads();
        load(block + STAGES - 1);
        const bool masked = block * KEYS + KEYS - 1 > first_query || block * KEYS <= first_query + QUERIES - 1 - a.window;
        Scores x;
        float fresh[HD / 8][4];
        const uint32_t keys = base + (block - first_block) % STAGES * STAGE_BYTES;
        attend_block<HD>(x, fresh, queries, keys, keys + KEYS * HD * 2, block, own, a.window, a.scale, masked);
        Shrink shrink[2];
#pragma unroll
        for (int i = 0; i < 2; i++) shrink[i] = merge(merged[i], x.highest[i], x.total[i]);
#pragma unroll
        for (int d = 0; d < HD / 8; d++) {
#pragma unroll
            for (int i = 0; i < 4; i++) out[d][i] = merge_output(out[d][i], fresh[d][i], shrink[i / 2]);
        }
    }

#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float total = row_total(merged[i].total);
        const int query = warp * 16 + lane / 4 + i * 8;
        if (query >= n_queries) continue;
        real16* row = a.out + static_cast<size_t>(s.first_row + tile.y + query) * a.out_stride + head * HD;
#pragma unroll
        for (int d = 0; d < HD / 8; d++) {
            *reinterpret_cast<uint32_t*>(row + d * 8 + 2 * (lane % 4)) =
                pack16(__fdiv_rn(out[d][2 * i], total), __fdiv_rn(out[d][2 * i + 1], total));
        }
    }
}

constexpr int FEW_QUERIES = 16;

// Of another block of the cluster, what is there where this one has `p`.
template <int PARTS>
__device__ __forceinline__ float of_part(const float* p, int part) {
    if constexpr (PARTS == 1) return *p;
    float value;
    asm volatile("{\n.reg .u32 there;\nmapa.shared::cluster.u32 there, %1, %2;\nld.shared::cluster.f32 %0, [there];\n}\n"
                 : "=f"(value)
                 : "r"(shared_address(p)), "r"(part)
                 : "memory");
    return value;
}

template <int PARTS>
__device__ __forceinline__ void sync_parts() {
#if __CUDA_ARCH__ >= 900
    if constexpr (PARTS > 1) return cluster_barrier();
#endif
    __syncthreads();
}

// Few queries: the PARTS blocks of a cluster have 16 of one head, a warp one block of keys after the other, as many apart as
// there are warps. What the warps find is merged in the blocks' order. With `keep`, keys and values of the queries' own rows
// then go to the ring, into slots that no query of the pass sees.
// Keys in the ring are fetched before the kernels before this one have ended: `mel_frames` lets none of the pass's begin
// until all of the pass before have.
// Grid: (PARTS, tiles of 16 queries, heads); block: WARPS * 32; dynamic shared memory: (WARPS * 2 * KEYS + 16) * HD * 2 bytes.
template <int HD, int WARPS, int PARTS>
__device__ __forceinline__ void attention_few(const Attention& a) {
    constexpr int BLOCK_BYTES = 2 * KEYS * HD * 2, THREADS = WARPS * 32;
    extern __shared__ __align__(128) uint8_t shared[];
    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32, part = blockIdx.x;
    const uint32_t own_keys = shared_address(shared) + warp * BLOCK_BYTES;
    const uint32_t all_queries = shared_address(shared) + WARPS * BLOCK_BYTES;
    const int2 tile = load_l2(a.tiles + blockIdx.y);
    const Segment s = load_l2(a.segments + tile.x);
    const int n_queries = min(FEW_QUERIES, s.n_rows - tile.y);
    const int first_query = s.position + tile.y, last_query = first_query + n_queries - 1;
    const int oldest = max(0, first_query - a.window + 1);
    const int head = blockIdx.z, channel = head / a.group * HD;
    const int first_block = oldest / KEYS, last_block = last_query / KEYS;

    // what a warp found, where its keys were: [16][HD] sums of values, then [16][4] totals, then [16] highest scores
    constexpr int TOTALS = FEW_QUERIES * HD, HIGHEST = TOTALS + FEW_QUERIES * 4;
    static_assert((HIGHEST + FEW_QUERIES) * 4 <= BLOCK_BYTES, "room for what a warp found");
    // a thread merges numbers `first`, `first` + ALL_THREADS, ... of [16][HD], and with each a quarter of the row's total
    constexpr int ALL_THREADS = PARTS * THREADS, OWN = (FEW_QUERIES * HD + ALL_THREADS - 1) / ALL_THREADS;
    const int first = part * THREADS + thread;
    float out[OWN] = {};
    Merged merged[OWN];

    for (int round = first_block; round <= last_block; round += PARTS * WARPS) {
        const int block = round + part * WARPS + warp;
        const KeySource source(a, s, channel, block);
        if (block <= last_block) load_block<HD, 32, RING>(source, block, oldest, last_query, own_keys, lane);
        if (round == first_block) {
            wait_for_previous();
            allow_next();
            load_queries<HD, FEW_QUERIES, THREADS>(a, s, tile.y, n_queries, head, all_queries, thread);
        }
        if (block <= last_block) load_block<HD, 32, FRESH>(source, block, oldest, last_query, own_keys, lane);
        copy_commit();
        copy_wait<0>();
        __syncthreads();
        if (block <= last_block) {
            uint32_t queries[HD / 16][4];
            query_operands<HD>(queries, all_queries, 0);
            Scores x;
            float found[HD / 8][4];
            attend_block<HD>(x, found, queries, own_keys, own_keys + KEYS * HD * 2, block, first_query + lane / 4, a.window,
                             a.scale, true);
            __syncwarp();
            float* to = reinterpret_cast<float*>(shared + warp * BLOCK_BYTES);
#pragma unroll
            for (int i = 0; i < 2; i++) {
                const int row = lane / 4 + i * 8;
                if (row >= n_queries) continue;
#pragma unroll
                for (int d = 0; d < HD / 8; d++) {
                    *reinterpret_cast<float2*>(to + row * HD + d * 8 + 2 * (lane % 4)) =
                        make_float2(found[d][2 * i], found[d][2 * i + 1]);
                }
                to[TOTALS + row * 4 + lane % 4] = x.total[i];
                if (lane % 4 == 0) to[HIGHEST + row] = x.highest[i];
            }
        }
        sync_parts<PARTS>();
        const int n_found = min(PARTS * WARPS, last_block - round + 1);
#pragma unroll
        for (int i = 0; i < OWN; i++) {
            const int at = first + i * ALL_THREADS, row = at / HD;
            if (row >= n_queries) continue;
#pragma unroll 4
            for (int w = 0; w < n_found; w++) {
                const float* from = reinterpret_cast<const float*>(shared + w % WARPS * BLOCK_BYTES);
                const float highest = of_part<PARTS>(from + HIGHEST + row, w / WARPS);
                const float total = of_part<PARTS>(from + TOTALS + row * 4 + at % 4, w / WARPS);
                const Shrink shrink = merge(merged[i], highest, total);
                out[i] = merge_output(out[i], of_part<PARTS>(from + at, w / WARPS), shrink);
            }
        }
        sync_parts<PARTS>();
    }
#pragma unroll
    for (int i = 0; i < OWN; i++) {
        const int at = first + i * ALL_THREADS, row = at / HD;
        const float total = row_total(merged[i].total);
        if (row >= n_queries) continue;
        a.out[static_cast<size_t>(s.first_row + tile.y + row) * a.out_stride + head * HD + at % HD] =
            to16(__fdiv_rn(out[i], total));
    }

    if (!a.keep || head % a.group != 0) return;
    const real16* keys = a.qkv + static_cast<size_t>(s.first_row + tile.y) * a.stride + a.q_dim + channel;
    const size_t plane = static_cast<size_t>(a.n_slots) * a.kv_dim;
    real16* ring = s.ring + 2 * a.layer * plane + channel;
    for (int i = first; i < n_queries * 2 * (HD / 8); i += ALL_THREADS) {
        const int chunk = i % (HD / 8), value = i / (HD / 8) % 2, row = i / (HD / 8) / 2;
        const size_t slot = static_cast<size_t>(first_query + row) % a.n_slots;
        *reinterpret_cast<uint4*>(ring + value * plane + slot * a.kv_dim + chunk * 8) = *reinterpret_cast<const uint4*>(
            keys + static_cast<size_t>(row) * a.stride + value * a.kv_dim + chunk * 8);
    }
}

#define MANY_KERNEL(HD)                                                           \
    extern "C" __global__ void __launch_bounds__(128)                             \
        encoder_attention_##HD(const __grid_constant__ Attention a) {             \
        attention<HD>(a);                                                         \
    }
MANY_KERNEL(16)
MANY_KERNEL(64)
MANY_KERNEL(128)

#define FEW_KERNEL(HD, WARPS)                                                     \
    extern "C" __global__ void __launch_bounds__(WARPS * 32)                      \
        encoder_attention_few_##HD##_##WARPS(const __grid_constant__ Attention a) { \
        attention_few<HD, WARPS, 1>(a);                                           \
    }
FEW_KERNEL(16, 13)
FEW_KERNEL(64, 5)
FEW_KERNEL(64, 13)
FEW_KERNEL(128, 2)
FEW_KERNEL(128, 6)

// From compute capability 9.0 on, where there are clusters: a head's keys come through four multiprocessors.
#if __CUDA_ARCH__ >= 900
#define SPLIT_KERNEL(HD)                                                          \
    extern "C" __global__ void __cluster_dims__(4, 1, 1) __launch_bounds__(128)   \
        encoder_attention_few_##HD##_split(const __grid_constant__ Attention a) { \
        attention_few<HD, 4, 4>(a);                                               \
    }
SPLIT_KERNEL(16)
SPLIT_KERNEL(64)
SPLIT_KERNEL(128)
#endif
