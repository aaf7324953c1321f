// RMSNorm of a row by one warp, in an order of sums that depends on nothing else: a lane has every 32nd run of four.

#pragma once

#include "common.cuh"

__device__ __forceinline__ void add_squares(float& sum, const float4& v) {
    sum = __fmaf_rn(v.x, v.x, sum);
    sum = __fmaf_rn(v.y, v.y, sum);
    sum = __fmaf_rn(v.z, v.z, sum);
    sum = __fmaf_rn(v.w, v.w, sum);
}

// 1 / sqrt(mean(x^2) + eps), of the lanes' sums.
__device__ __forceinline__ float inverse_rms(float sum, int dim, float eps) {
    return __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(warp_sum(sum), static_cast<float>(dim)), eps)));
}

__device__ __forceinline__ uint2 normed(const float4& v, const float4& weight, float inverse) {
    return make_uint2(
        pack16(__fmul_rn(__fmul_rn(v.x, inverse), weight.x), __fmul_rn(__fmul_rn(v.y, inverse), weight.y)),
        pack16(__fmul_rn(__fmul_rn(v.z, inverse), weight.z), __fmul_rn(__fmul_rn(v.w, inverse), weight.w)));
}

constexpr int MAX_NORMED = 1280;

// A norm's weights: a lane's runs of four of k, at most MAX_NORMED.
struct NormWeights {
    float4 runs[MAX_NORMED / 128];
    __device__ __forceinline__ NormWeights(const float* norm, int k) {
#pragma unroll
        for (int j = 0; j < MAX_NORMED / 128; j++) {
            const int i = j * 128 + threadIdx.x % 32 * 4;
            if (i < k) runs[j] = *reinterpret_cast<const float4*>(norm + i);
        }
    }
};

// The norm of a row of k numbers, zeros beyond `dim`, of which the lane has the runs `v`, as row `row` of eight where a product of
// the matrix unit finds it (see hopper.cuh).
__device__ __forceinline__ void store_normed(const float4 (&v)[MAX_NORMED / 128], const NormWeights& weights, int k, int dim,
                                             float eps, uint8_t* to, int row) {
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < MAX_NORMED / 128; j++) add_squares(sum, v[j]);
    const float inverse = inverse_rms(sum, dim, eps);
#pragma unroll
    for (int j = 0; j < MAX_NORMED / 128; j++) {
        const int i = j * 128 + threadIdx.x % 32 * 4;
        if (i >= k) continue;
        *reinterpret_cast<uint2*>(to + i / 64 * 1024 + swizzled(row, i % 64 / 8) + i % 8 * 2) =
            normed(v[j], weights.runs[j], inverse);
    }
}
