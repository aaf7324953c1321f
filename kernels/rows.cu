// What happens to single rows between the products: norms, rotation angles, embeddings, what is kept for later passes.

#include "common.cuh"

struct RmsNorm {
    const float* x;       // [..][stride]
    const float* weight;  // [stride], zeros beyond dim
    real16* h;              // [rows][stride]
    const Row* rows;      // with it, factors of `layer` from each row's stream are applied
    const int* index;     // with it, block i works on row index[i] of x and writes row i
    int layer, dim, stride;
    float eps;
};

// h = x / sqrt(mean(x^2) + eps) * weight * factor. Grid: one block a row; block: 256; `stride` is a multiple of 4.
extern "C" __global__ void __launch_bounds__(256) rms_norm(const __grid_constant__ RmsNorm a) {
    allow_next();
    wait_for_previous();
    __shared__ float sums[8];
    const int source = a.index == nullptr ? blockIdx.x : a.index[blockIdx.x];
    const float* x = a.x + static_cast<size_t>(source) * a.stride;
    float sum = 0.0f;
    for (int i = threadIdx.x * 4; i < a.dim; i += 1024) {
        const float4 v = *reinterpret_cast<const float4*>(x + i);  // beyond dim there are zeros
        sum = __fmaf_rn(v.x, v.x, sum);
        sum = __fmaf_rn(v.y, v.y, sum);
        sum = __fmaf_rn(v.z, v.z, sum);
        sum = __fmaf_rn(v.w, v.w, sum);
    }
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) sum = __fadd_rn(sum, sums[i]);
    const float inverse = __frcp_rn(__fsqrt_rn(__fadd_rn(__fdiv_rn(sum, static_cast<float>(a.dim)), a.eps)));

    const float* factors = nullptr;
    if (a.rows != nullptr && a.rows[source].kv != nullptr) {
        factors = a.rows[source].ffn_scale + static_cast<size_t>(a.layer) * a.stride;
    }
    real16* h = a.h + static_cast<size_t>(blockIdx.x) * a.stride;
    for (int i = threadIdx.x * 4; i < a.stride; i += 1024) {
        const float4 v = *reinterpret_cast<const float4*>(x + i);
        const float4 w = *reinterpret_cast<const float4*>(a.weight + i);
        float4 f = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
        if (factors != nullptr) f = *reinterpret_cast<const float4*>(factors + i);
        auto normed = [&](float v, float w, float f) { return __fmul_rn(__fmul_rn(__fmul_rn(v, inverse), w), f); };
        uint2 packed;
        packed.x = pack16(normed(v.x, w.x, f.x), normed(v.y, w.y, f.y));
        packed.y = pack16(normed(v.z, w.z, f.z), normed(v.w, w.w, f.w));
        *reinterpret_cast<uint2*>(h + i) = packed;
    }
}

struct RopeAngles {
    const int* positions;  // [rows], or null: those in `rows`
    const Row* rows;
    const float* frequencies;  // [half]
    float2* angles;            // [rows][half]: cosine and sine
    int half;
};

// Grid: one block a row; block: any. The angle is an F32 product, as in the official code.
extern "C" __global__ void rope_angles(const __grid_constant__ RopeAngles a) {
    allow_next();
    wait_for_previous();
    const uint32_t position = a.positions != nullptr ? a.positions[blockIdx.x] : a.rows[blockIdx.x].position;
    for (int j = threadIdx.x; j < a.half; j += blockDim.x) {
        float sine, cosine;
        sincosf(__fmul_rn(static_cast<float>(position), a.frequencies[j]), &sine, &cosine);
        a.angles[static_cast<size_t>(blockIdx.x) * a.half + j] = make_float2(cosine, sine);
    }
}

struct Embed {
    const Row* rows;
    const real16* tok_embeddings;  // packed, as the output matrix
    float* x;                    // [rows][stride]
    unsigned long long* best;    // [rows]
    int dim, stride;
};

// x = audio + token embedding; also clears best. Grid: one block a row; block: any.
extern "C" __global__ void embed(const __grid_constant__ Embed a) {
    allow_next();
    wait_for_previous();
    const Row& row = a.rows[blockIdx.x];
    if (threadIdx.x == 0) a.best[blockIdx.x] = 0;
    float* x = a.x + static_cast<size_t>(blockIdx.x) * a.stride;
    const int r = row.token % 16 / 2 + row.token % 2 * 8;
    const real16* tiles = a.tok_embeddings + static_cast<size_t>(row.token / 16) * (a.stride / 16) * 256;
    for (int i = threadIdx.x; i < a.stride; i += blockDim.x) {
        float value = 0.0f;
        if (row.kv != nullptr && i < a.dim) {
            const int c = i % 16, lane = r % 8 * 4 + c % 8 / 2, part = r / 8 + c / 8 * 2;
            value = __fadd_rn(row.audio[i], from16(tiles[i / 16 * 256 + lane * 8 + part * 2 + c % 2]));
        }
        x[i] = value;
    }
}

struct ConvTails {
    const Segment* segments;
    real16* y;  // [..][stride], the first convolution's output
    int stride;
};

// Puts each segment's tail before its rows, then keeps its last row as the new tail. Grid: one block a segment.
extern "C" __global__ void conv_tails(const __grid_constant__ ConvTails a) {
    allow_next();
    wait_for_previous();
    const Segment s = a.segments[blockIdx.x];
    real16* first = a.y + static_cast<size_t>(s.first_conv) * a.stride;
    const real16* last = first + static_cast<size_t>(2 * s.n_rows) * a.stride;
    for (int i = threadIdx.x; i < a.stride; i += blockDim.x) {
        first[i] = s.conv_tail[i];
        s.conv_tail[i] = last[i];
    }
}

struct KeepKeys {
    const Segment* segments;
    const real16* qkv;  // [rows][stride]: queries, keys, values
    int stride, q_dim, kv_dim;
    int layer, n_slots;
};

// Keeps the keys and values of each segment's last rows in its ring. Grid: (last rows, segments); block: any.
extern "C" __global__ void keep_keys(const __grid_constant__ KeepKeys a) {
    allow_next();
    wait_for_previous();
    const Segment s = a.segments[blockIdx.y];
    const int row = s.n_rows - 1 - static_cast<int>(blockIdx.x);
    if (row < 0) return;
    const size_t slot = static_cast<size_t>(s.position + row) % a.n_slots;
    const real16* keys = a.qkv + static_cast<size_t>(s.first_row + row) * a.stride + a.q_dim;
    real16* plane = s.ring + static_cast<size_t>(2 * a.layer) * a.n_slots * a.kv_dim;
    const int n = a.kv_dim / 8;
    for (int i = threadIdx.x; i < 2 * n; i += blockDim.x) {
        const size_t at = ((i < n ? 0 : a.n_slots) + slot) * a.kv_dim + i % n * 8;
        *reinterpret_cast<uint4*>(plane + at) = *reinterpret_cast<const uint4*>(keys + i * 8);
    }
}
