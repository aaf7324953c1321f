// What a product does with its sums, and its parameters.

#pragma once

#include <type_traits>

#include "common.cuh"

// What is done with the sums; the numbers are those of `Epilogue` in launch.rs.
enum Epilogue : int {
    STORE_F32 = 0,      // out f32 = sum + bias
    ADD_F32 = 1,        // out f32 += sum + bias
    GELU_F32 = 2,       // out f32 = gelu(sum + bias)
    GELU_F16 = 3,       // out f16 = gelu(sum + bias)
    SWIGLU_F16 = 4,     // out f16 = silu(gate) * up; weights are packed as pairs
    QKV_F16 = 5,        // out f16 = sum + bias, of which the first `n_turned` (queries and keys) are rotated
};

struct Gemm {
    const uint4* weights;
    const real16* x;          // row m at x + (x_rows ? x_rows[m] : m) * x_stride
    const int* x_rows;
    const float* bias;      // [N], may be null
    void* out;              // row m at out + (out_rows ? out_rows[m] : m) * out_stride
    const int* out_rows;
    const float2* rope;     // [M][head_dim / 2]
    int x_stride, out_stride;
    int m, n, k;
    int epilogue;
    int n_turned, head_dim;
};

// Stores N (2 or 4) neighbouring numbers in F16.
template <int N>
__device__ __forceinline__ void store16(real16* out, const float (&v)[N]) {
    if constexpr (N == 2) {
        *reinterpret_cast<uint32_t*>(out) = pack16(v[0], v[1]);
    } else {
        *reinterpret_cast<uint2*>(out) = make_uint2(pack16(v[0], v[1]), pack16(v[2], v[3]));
    }
}

// N (2 or 4) outputs of row m from n on, a multiple of N.
template <int N>
__device__ __forceinline__ void store_run(const Gemm& g, int m, int n, float (&v)[N]) {
    using Vector = typename std::conditional<N == 2, float2, float4>::type;
    if (g.bias != nullptr) {
        const Vector bias = *reinterpret_cast<const Vector*>(g.bias + n);
        const float* b = reinterpret_cast<const float*>(&bias);
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = __fadd_rn(v[i], b[i]);
    }
    if (g.epilogue == QKV_F16) {
        if (n < g.n_turned) {
            // N angles take as much as N / 2 pairs
            const Vector angles = *reinterpret_cast<const Vector*>(g.rope + m * (g.head_dim / 2) + n % g.head_dim / 2);
            const float2* angle = reinterpret_cast<const float2*>(&angles);
#pragma unroll
            for (int i = 0; i < N; i += 2) {
                const float2 turned = rotate(v[i], v[i + 1], angle[i / 2]);
                v[i] = turned.x;
                v[i + 1] = turned.y;
            }
        }
    }
    const size_t at = static_cast<size_t>(g.out_rows ? g.out_rows[m] : m) * g.out_stride + n;
    if (g.epilogue == GELU_F16 || g.epilogue == GELU_F32) {
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = gelu(v[i]);
    }
    if (g.epilogue == GELU_F16 || g.epilogue == QKV_F16) {
        store16(static_cast<real16*>(g.out) + at, v);
        return;
    }
    Vector* out = reinterpret_cast<Vector*>(static_cast<float*>(g.out) + at);
    Vector values;
    float* to = reinterpret_cast<float*>(&values);
#pragma unroll
    for (int i = 0; i < N; i++) to[i] = v[i];
    if (g.epilogue == ADD_F32) {
        const Vector before = *out;
        const float* old = reinterpret_cast<const float*>(&before);
#pragma unroll
        for (int i = 0; i < N; i++) to[i] = __fadd_rn(old[i], to[i]);
    }
    *out = values;
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
            if (m >= g.m) continue;
#pragma unroll
            for (int i = 0; i < NT; i++) {
                const int tile = n_tile + i;
                if (g.epilogue != SWIGLU_F16) {
                    float pair[2] = {sums[i][j][odd], sums[i][j][2 + odd]};
                    store_run(g, m, tile * 16 + 2 * (lane / 4), pair);
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
