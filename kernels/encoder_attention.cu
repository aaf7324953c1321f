// Sliding-window attention over many queries: softmax(q k^T / sqrt(head_dim)) v.
//
// A block has 64 queries of one head, a warp 16 of them. Keys come in blocks of 64 at fixed absolute positions, oldest
// first; a block in which a query sees nothing changes none of its numbers. So a query's result depends on its position
// alone. Keys before the pass are in the stream's ring, the others in the pass's qkv rows.
//
// Grid: (tiles of queries, heads); block: 128; dynamic shared memory: STAGES * 2 * 64 * HD * 2 bytes.

#include "common.cuh"

struct Attention {
    const Segment* segments;
    const int2* tiles;  // segment and first query of each tile
    const real16* qkv;    // [rows][stride]: queries, keys, values
    real16* out;          // [rows][out_stride]
    int stride, out_stride;
    int q_dim, kv_dim, group;  // `group` query heads share a key head
    int layer, n_slots, window;
    float scale;        // log2(e) / sqrt(head_dim)
};

constexpr int QUERIES = 64, KEYS = 64, STAGES = 3;

template <int HD>
__device__ __forceinline__ void attention(const Attention& a) {
    constexpr int CHUNKS = HD / 8;
    constexpr int TILE_BYTES = KEYS * HD * 2;
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
    const int head = blockIdx.y, kv_head = head / a.group;

    auto place = [](int row, int chunk) {
        constexpr int MASK = CHUNKS < 8 ? CHUNKS - 1 : 7;
        const int turn = CHUNKS < 8 ? row / (8 / CHUNKS) : row;
        return (row * CHUNKS + (chunk ^ (turn & MASK))) * 16;
    };

    // queries, by way of the memory that keys come to later
    const real16* q = a.qkv + static_cast<size_t>(s.first_row + tile.y) * a.stride + head * HD;
#pragma unroll
    for (int c = thread; c < QUERIES * CHUNKS; c += 128) {
        const int row = c / CHUNKS, chunk = c % CHUNKS;
        const bool valid = row < n_queries;
        copy_async(base + place(row, chunk), q + static_cast<size_t>(valid ? row : 0) * a.stride + chunk * 8, valid);
    }
    copy_commit();
    copy_wait<0>();
    __syncthreads();
    uint32_t queries[HD / 16][4];
#pragma unroll
    for (int k = 0; k < HD / 16; k++) {
        const int row = warp * 16 + lane % 16;
        ldmatrix_x4(queries[k], base + place(row, 2 * k + lane / 16));
    }
    __syncthreads();

    const real16* ring = s.ring + static_cast<size_t>(2 * a.layer) * a.n_slots * a.kv_dim + kv_head * HD;
    const real16* fresh = a.qkv + static_cast<size_t>(s.first_row) * a.stride + a.q_dim + kv_head * HD;
    auto load = [&](int block, int stage) {
        const uint32_t keys = base + stage * 2 * TILE_BYTES;
#pragma unroll
        for (int c = thread; c < KEYS * CHUNKS; c += 128) {
            const int row = c / CHUNKS, chunk = c % CHUNKS, position = block * KEYS + row;
            const bool valid = position >= oldest && position <= last_query;
            const real16 *key, *value;
            if (position >= s.position || !valid) {
                key = fresh + static_cast<size_t>(valid ? position - s.position : 0) * a.stride;
                value = key + a.kv_dim;
            } else {
                key = ring + static_cast<size_t>(position % a.n_slots) * a.kv_dim;
                value = key + static_cast<size_t>(a.n_slots) * a.kv_dim;
            }
            copy_async(keys + place(row, chunk), key + chunk * 8, valid);
            copy_async(keys + TILE_BYTES + place(row, chunk), value + chunk * 8, valid);
        }
    };

    // of its warp's 16 queries a thread has number lane / 4 and the one 8 further
    float out[HD / 8][4] = {};
    float highest[2] = {-INFINITY, -INFINITY}, total[2] = {};
    const int own = first_query + warp * 16 + lane / 4;
    const int first_block = oldest / KEYS, last_block = last_query / KEYS;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
        if (first_block + i <= last_block) load(first_block + i, i);
        copy_commit();
    }
    for (int block = first_block; block <= last_block; block++) {
        const int stage = (block - first_block) % STAGES;
        copy_wait<STAGES - 2>();
        __syncthreads();
        if (block + STAGES - 1 <= last_block) load(block + STAGES - 1, (block - first_block + STAGES - 1) % STAGES);
        copy_commit();
        const uint32_t keys = base + stage * 2 * TILE_BYTES, values = keys + TILE_BYTES;

        float scores[KEYS / 8][4] = {};
#pragma unroll
        for (int k = 0; k < HD / 16; k++) {
#pragma unroll
            for (int j = 0; j < KEYS / 8; j += 2) {
                uint32_t r[4];
                ldmatrix_x4(r, keys + place(j * 8 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
                mma(scores[j], queries[k], r[0], r[1]);
                mma(scores[j + 1], queries[k], r[2], r[3]);
            }
        }

        float block_highest[2] = {-INFINITY, -INFINITY};
        const int first_key = block * KEYS + 2 * (lane % 4);
        // most blocks are seen whole by all 64 queries
        const int lowest_query = first_query, highest_query = first_query + QUERIES - 1;
        if (block * KEYS + KEYS - 1 > lowest_query || block * KEYS <= highest_query - a.window) {
#pragma unroll
            for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const int key = first_key + j * 8 + i % 2, query = own + i / 2 * 8;
                    if (key > query || key <= query - a.window) scores[j][i] = -INFINITY;
                }
            }
        }
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) block_highest[i / 2] = fmaxf(block_highest[i / 2], scores[j][i]);
        }
        float shrink[2];
#pragma unroll
        for (int i = 0; i < 2; i++) {
            block_highest[i] = fmaxf(block_highest[i], __shfl_xor_sync(~0u, block_highest[i], 1));
            block_highest[i] = fmaxf(block_highest[i], __shfl_xor_sync(~0u, block_highest[i], 2));
            const float now = fmaxf(highest[i], block_highest[i]);
            const float reference = now == -INFINITY ? 0.0f : __fmul_rn(now, a.scale);
            // exactly 1 where the maximum stays: products of equal numbers are equal
            shrink[i] = power_of_two(__fadd_rn(__fmul_rn(highest[i], a.scale), -reference));
            highest[i] = now;
            block_highest[i] = reference;
            total[i] = __fmul_rn(total[i], shrink[i]);
        }
#pragma unroll
        for (int d = 0; d < HD / 8; d++) {
#pragma unroll
            for (int i = 0; i < 4; i++) out[d][i] = __fmul_rn(out[d][i], shrink[i / 2]);
        }
#pragma unroll
        for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                scores[j][i] = power_of_two(__fmaf_rn(scores[j][i], a.scale, -block_highest[i / 2]));
                total[i / 2] = __fadd_rn(total[i / 2], scores[j][i]);
            }
        }
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
            const uint32_t weights[4] = {
                pack16(scores[2 * k][0], scores[2 * k][1]),
                pack16(scores[2 * k][2], scores[2 * k][3]),
                pack16(scores[2 * k + 1][0], scores[2 * k + 1][1]),
                pack16(scores[2 * k + 1][2], scores[2 * k + 1][3]),
            };
#pragma unroll
            for (int d = 0; d < HD / 8; d += 2) {
                uint32_t r[4];
                ldmatrix_x4_transposed(r, values + place(k * 16 + lane % 16, d + lane / 16));
                mma(out[d], weights, r[0], r[1]);
                mma(out[d + 1], weights, r[2], r[3]);
            }
        }
    }

#pragma unroll
    for (int i = 0; i < 2; i++) {
        total[i] += __shfl_xor_sync(~0u, total[i], 1);
        total[i] += __shfl_xor_sync(~0u, total[i], 2);
        const int query = warp * 16 + lane / 4 + i * 8;
        if (query >= n_queries) continue;
        real16* row = a.out + static_cast<size_t>(s.first_row + tile.y + query) * a.out_stride + head * HD;
#pragma unroll
        for (int d = 0; d < HD / 8; d++) {
            *reinterpret_cast<uint32_t*>(row + d * 8 + 2 * (lane % 4)) =
                pack16(__fdiv_rn(out[d][2 * i], total[i]), __fdiv_rn(out[d][2 * i + 1], total[i]));
        }
    }
}

#define ATTENTION_KERNEL(HD)                                                                          \
    extern "C" __global__ void __launch_bounds__(128) encoder_attention_##HD(const __grid_constant__ Attention a) { \
        attention<HD>(a);                                                                             \
    }
ATTENTION_KERNEL(16)
ATTENTION_KERNEL(64)
ATTENTION_KERNEL(128)
