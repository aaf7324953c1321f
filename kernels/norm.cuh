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
