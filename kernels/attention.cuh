// Sliding-window attention of the encoder: what its kernels share, above all the order of its sums.
//
// Keys come in blocks of 64 at fixed absolute positions. Of each block a query has the largest score, the sum of the
// weights relative to that, and the weighted sum of the values; blocks are merged oldest first. A block of which a query
// sees nothing changes none of its numbers. So a query's result depends on its position alone, and the blocks may be
// worked on in any order, by anyone.

#pragma once

#include "common.cuh"

struct Attention {
    const Segment* segments;
    const int2* tiles;  // segment and first query of each tile
    const real16* qkv;  // [rows][stride]: queries, keys, values
    real16* out;        // [rows][out_stride]
    int stride, out_stride;
    int q_dim, kv_dim, group;  // `group` query heads share a key head
    int layer, n_slots, window;
    float scale;  // log2(e) / sqrt(head_dim)
    int keep;     // whether keys and values of the tiles' rows go to the rings
};

constexpr int KEYS = 64;

// Scores of 16 queries and a block of keys, as the matrix unit leaves them with a warp: a thread has of queries lane / 4
// and 8 further the keys 2 * (lane % 4) and the next of every 8.
struct Scores {
    float s[KEYS / 8][4];
    float highest[2];
    float total[2];  // over the thread's own keys
};

// Makes the scores of keys that a query doesn't see vanish. `query` is that of the thread's first row.
__device__ __forceinline__ void mask(Scores& x, int first_key, int query, int window) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int key = first_key + j * 8 + 2 * (lane % 4) + i % 2, at = query + i / 2 * 8;
            if (key > at || key <= at - window) x.s[j][i] = -INFINITY;
        }
    }
}

// Turns scores into weights relative to the block's highest score.
__device__ __forceinline__ void weigh(Scores& x, float scale) {
    x.highest[0] = x.highest[1] = -INFINITY;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) x.highest[i / 2] = fmaxf(x.highest[i / 2], x.s[j][i]);
    }
    float reference[2];
#pragma unroll
    for (int i = 0; i < 2; i++) {
        x.highest[i] = fmaxf(x.highest[i], __shfl_xor_sync(~0u, x.highest[i], 1));
        x.highest[i] = fmaxf(x.highest[i], __shfl_xor_sync(~0u, x.highest[i], 2));
        x.highest[i] = __fmul_rn(x.highest[i], scale);
        reference[i] = x.highest[i] == -INFINITY ? 0.0f : x.highest[i];
        x.total[i] = 0.0f;
    }
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) {
            x.s[j][i] = power_of_two(__fmaf_rn(x.s[j][i], scale, -reference[i / 2]));
            x.total[i / 2] = __fadd_rn(x.total[i / 2], x.s[j][i]);
        }
    }
}

// The weights of keys 16 k to 16 k + 15 as the matrix unit's left operand.
__device__ __forceinline__ void as_operand(uint32_t (&a)[4], const Scores& x, int k) {
    a[0] = pack16_small(x.s[2 * k][0], x.s[2 * k][1]);
    a[1] = pack16_small(x.s[2 * k][2], x.s[2 * k][3]);
    a[2] = pack16_small(x.s[2 * k + 1][0], x.s[2 * k + 1][1]);
    a[3] = pack16_small(x.s[2 * k + 1][2], x.s[2 * k + 1][3]);
}

// What has been merged of one query's row (of a thread's two): over `N` of its outputs.
struct Merged {
    float highest = -INFINITY;
    float total = 0.0f;
};

// By how much the merged and the block's numbers shrink when they are added up.
struct Shrink {
    float merged, block;
};

__device__ __forceinline__ Shrink merge(Merged& m, float highest, float total) {
    const float now = fmaxf(m.highest, highest);
    const float reference = now == -INFINITY ? 0.0f : now;
    const Shrink shrink = {power_of_two(__fadd_rn(m.highest, -reference)), power_of_two(__fadd_rn(highest, -reference))};
    m.highest = now;
    m.total = __fmaf_rn(total, shrink.block, __fmul_rn(m.total, shrink.merged));
    return shrink;
}

__device__ __forceinline__ float merge_output(float merged, float block, const Shrink& shrink) {
    return __fmaf_rn(block, shrink.block, __fmul_rn(merged, shrink.merged));
}

// The sum of a row's weights, of which each of four threads has a part.
__device__ __forceinline__ float row_total(float total) {
    total = __fadd_rn(total, __shfl_xor_sync(~0u, total, 1));
    return __fadd_rn(total, __shfl_xor_sync(~0u, total, 2));
}

// Where the keys of a block are, and how far behind them their values: in the ring up to the segment's first position,
// from there on among the rows. `n_slots` is a multiple of KEYS.
struct KeySource {
    const real16 *ring, *fresh;  // of the block's first key
    int stride, kv_dim, position;
    size_t value_in_ring;

    // Keys of `block` from `channel` on.
    __device__ __forceinline__ KeySource(const Attention& a, const Segment& s, int channel, int block)
        : stride(a.stride), kv_dim(a.kv_dim), position(s.position) {
        const int first = block * KEYS;
        value_in_ring = static_cast<size_t>(a.n_slots) * a.kv_dim;
        ring = s.ring + 2 * a.layer * value_in_ring + static_cast<size_t>(first % a.n_slots) * a.kv_dim + channel;
        fresh = a.qkv + (s.first_row + static_cast<ptrdiff_t>(first - s.position)) * a.stride + a.q_dim + channel;
    }

    // Of number `row`, at position `at`, of the block.
    __device__ __forceinline__ const real16* key(int row, int at) const {
        return at >= position ? fresh + static_cast<size_t>(row) * stride : ring + static_cast<size_t>(row) * kv_dim;
    }
    __device__ __forceinline__ size_t value_offset(int at) const { return at >= position ? kv_dim : value_in_ring; }
};

// 16-byte chunks of rows of HD numbers, so that no two of eight consecutive rows share a bank.
template <int HD>
__device__ __forceinline__ uint32_t place(int row, int chunk) {
    constexpr int CHUNKS = HD / 8, MASK = CHUNKS < 8 ? CHUNKS - 1 : 7;
    const int turn = CHUNKS < 8 ? row / (8 / CHUNKS) : row;
    return (row * CHUNKS + (chunk ^ (turn & MASK))) * 16;
}

// Scores and weights of a warp's 16 queries and a block, then the values' weighted sums. `query` is the position of the
// thread's first row; in blocks that all rows see whole, `masked` may be false.
template <int HD>
__device__ __forceinline__ void attend_block(Scores& x, float (&out)[HD / 8][4], const uint32_t (&queries)[HD / 16][4],
                                             uint32_t keys, uint32_t values, int block, int query, int window,
                                             float scale, bool masked) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++) x.s[j][0] = x.s[j][1] = x.s[j][2] = x.s[j][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < HD / 16; k++) {
#pragma unroll
        for (int j = 0; j < KEYS / 8; j += 2) {
            uint32_t r[4];
            ldmatrix_x4(r, keys + place<HD>(j * 8 + lane / 16 * 8 + lane % 8, 2 * k + lane / 8 % 2));
            mma(x.s[j], queries[k], r[0], r[1]);
            mma(x.s[j + 1], queries[k], r[2], r[3]);
        }
    }
    if (masked) mask(x, block * KEYS, query, window);
    weigh(x, scale);
#pragma unroll
    for (int d = 0; d < HD / 8; d++) out[d][0] = out[d][1] = out[d][2] = out[d][3] = 0.0f;
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
        uint32_t weights[4];
        as_operand(weights, x, k);
#pragma unroll
        for (int d = 0; d < HD / 8; d += 2) {
            uint32_t r[4];
            ldmatrix_x4_transposed(r, values + place<HD>(k * 16 + lane % 16, d + lane / 16));
            mma(out[d], weights, r[0], r[1]);
            mma(out[d + 1], weights, r[2], r[3]);
        }
    }
}
