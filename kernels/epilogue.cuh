// What a product does with its sums, and its parameters.

#pragma once

#include "common.cuh"

// What is done with the sums; the numbers are those of `Epilogue` in launch.rs.
enum Epilogue : int {
    STORE_F32 = 0,      // out f32 = sum + bias
    ADD_F32 = 1,        // out f32 += sum + bias
    GELU_F32 = 2,       // out f32 = gelu(sum + bias)
    GELU_F16 = 3,       // out f16 = gelu(sum + bias)
    SWIGLU_F16 = 4,     // out f16 = silu(gate) * up; weights are packed as pairs
    QKV_F16 = 5,        // out f16 = sum + bias, queries and keys rotated; with `rows`, keys and values go to the rings
    TOP1 = 6,           // best[m] = max of (sum, lowest n), as sortable bits
};

struct Gemm {
    const uint4* weights;
    const real16* x;          // row m at x + (x_rows ? x_rows[m] : m) * x_stride
    const int* x_rows;
    const float* bias;      // [N], may be null
    void* out;              // row m at out + (out_rows ? out_rows[m] : m) * out_stride
    const int* out_rows;
    const float2* rope;     // [M][head_dim / 2]
    const Row* rows;        // [M], decoder only
    unsigned long long* best;  // [M]
    int x_stride, out_stride;
    int m, n, k;
    int epilogue;
    int q_dim, kv_dim, head_dim;
    int layer;
};

__device__ __forceinline__ unsigned long long sortable(float value, uint32_t id) {
    uint32_t bits = __float_as_uint(value);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if (value != value) bits = ~0u;  // not a number: found by whoever reads the result
    return static_cast<unsigned long long>(bits) << 32 | static_cast<uint32_t>(~id);
}

// Where the pair of outputs n, n + 1 of row m goes in QKV_F16.
__device__ __forceinline__ real16* qkv_destination(const Gemm& g, int m, int n) {
    if (g.rows == nullptr || n < g.q_dim) {
        return static_cast<real16*>(g.out) + static_cast<size_t>(m) * g.out_stride + n;
    }
    const Row& row = g.rows[m];
    const int channel = n - g.q_dim;
    const bool value = channel >= g.kv_dim;
    if (row.kv == nullptr || channel >= 2 * g.kv_dim) return nullptr;
    const size_t slot = row.position % row.n_slots;
    const size_t plane = 2 * g.layer + (value ? 1 : 0);
    return row.kv + (plane * row.n_slots + slot) * g.kv_dim + (value ? channel - g.kv_dim : channel);
}

// Outputs n and n + 1 of row m.
__device__ __forceinline__ void store_pair(const Gemm& g, int m, int n, float a, float b) {
    if (g.bias != nullptr) {
        const float2 bias = *reinterpret_cast<const float2*>(g.bias + n);
        a = __fadd_rn(a, bias.x);
        b = __fadd_rn(b, bias.y);
    }
    if (g.epilogue == QKV_F16) {
        if (n < g.q_dim + g.kv_dim) {
            const float2 turned = rotate(a, b, g.rope[m * (g.head_dim / 2) + n % g.head_dim / 2]);
            a = turned.x;
            b = turned.y;
        }
        real16* out = qkv_destination(g, m, n);
        if (out != nullptr) *reinterpret_cast<uint32_t*>(out) = pack16(a, b);
        return;
    }
    const size_t at = static_cast<size_t>(g.out_rows ? g.out_rows[m] : m) * g.out_stride + n;
    if (g.epilogue == GELU_F16) {
        *reinterpret_cast<uint32_t*>(static_cast<real16*>(g.out) + at) = pack16(gelu(a), gelu(b));
        return;
    }
    float2* out = reinterpret_cast<float2*>(static_cast<float*>(g.out) + at);
    if (g.epilogue == ADD_F32) {
        const float2 before = *out;
        *out = make_float2(__fadd_rn(before.x, a), __fadd_rn(before.y, b));
    } else if (g.epilogue == GELU_F32) {
        *out = make_float2(gelu(a), gelu(b));
    } else {
        *out = make_float2(a, b);
    }
}

// Stores what a warp has of NT tiles of 16 weights from `n_tile` on by MT tiles of 8 rows from `m_first` on.
template <int NT, int MT>
__device__ __forceinline__ void store(const Gemm& g, float (&sums)[NT][MT][4], int n_tile, int m_first) {
    const int lane = threadIdx.x % 32;
    // a thread has, of each tile, weights 2 * (lane / 4) and the one after, rows 2 * (lane % 4) and the one after
#pragma unroll
    for (int j = 0; j < MT; j++) {
#pragma unroll
        for (int odd = 0; odd < 2; odd++) {
            const int m = m_first + j * 8 + 2 * (lane % 4) + odd;
            if (g.epilogue == TOP1) {
                unsigned long long best = 0;
#pragma unroll
                for (int i = 0; i < NT; i++) {
                    const int n = (n_tile + i) * 16 + 2 * (lane / 4);
                    if (n < g.n) best = max(best, sortable(sums[i][j][odd], n));
                    if (n + 1 < g.n) best = max(best, sortable(sums[i][j][2 + odd], n + 1));
                }
#pragma unroll
                for (int offset = 4; offset < 32; offset *= 2) {
                    best = max(best, __shfl_xor_sync(~0u, best, offset));
                }
                if (lane < 4 && m < g.m) atomicMax(g.best + m, best);
                continue;
            }
            if (m >= g.m) continue;
#pragma unroll
            for (int i = 0; i < NT; i++) {
                const int tile = n_tile + i;
                if (g.epilogue != SWIGLU_F16) {
                    store_pair(g, m, tile * 16 + 2 * (lane / 4), sums[i][j][odd], sums[i][j][2 + odd]);
                    continue;
                }
                // of two neighbouring tiles the first has the even, the second the odd outputs
                real16* out = static_cast<real16*>(g.out) + static_cast<size_t>(m) * g.out_stride;
                const float value = silu_times(sums[i][j][odd], sums[i][j][2 + odd]);
                if constexpr (NT == 1) {
                    out[tile / 2 * 16 + 2 * (lane / 4) + tile % 2] = to16(value);
                } else if (i % 2 == 1) {
                    const float even = silu_times(sums[i - 1][j][odd], sums[i - 1][j][2 + odd]);
                    *reinterpret_cast<uint32_t*>(out + tile / 2 * 16 + 2 * (lane / 4)) = pack16(even, value);
                }
            }
        }
    }
}
