// Attention of single positions over a stream's ring: chunks of keys in parallel, then their combination.
//
// Chunks of 128 keys lie at fixed absolute positions and are combined oldest first, so a position's result depends on
// nothing but its stream. A chunk's keys and values are loaded once for the query heads that share them.

#include "common.cuh"

struct DecoderAttention {
    const Row* rows;   // [n_rows]
    const real16* q;     // [n_rows][q_stride]
    float* partials;   // [n_rows][n_heads][n_chunks][head_dim + 2]: weighted values, highest score, sum of weights
    real16* out;         // [n_rows][q_stride]
    int q_stride;
    int n_heads, n_kv_heads, head_dim;
    int layer, window, n_chunks;
    float scale;       // log2(e) / sqrt(head_dim)
};

constexpr int CHUNK = 128;
constexpr int MAX_GROUP = 8;

// Absolute chunks that a position sees.
__device__ __forceinline__ int2 chunks_of(const DecoderAttention& a, const Row& row) {
    const int position = row.position;
    return make_int2(max(0, position - a.window + 1) / CHUNK, position / CHUNK);
}

// Grid: (n_chunks, n_kv_heads, n_rows); block: 128; head_dim <= 128, a multiple of 8;
// dynamic shared memory: 2 * CHUNK * (head_dim + 8) * 2 bytes.
extern "C" __global__ void __launch_bounds__(CHUNK) attend_chunks(const __grid_constant__ DecoderAttention a) {
    allow_next();
    wait_for_previous();
    const Row row = a.rows[blockIdx.z];
    if (row.kv == nullptr) return;
    const int2 chunks = chunks_of(a, row);
    const int chunk = chunks.x + blockIdx.x;
    if (chunk > chunks.y) return;
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ float queries[MAX_GROUP][128];
    __shared__ float weights[MAX_GROUP][CHUNK];
    const int hd = a.head_dim, padded = hd + 8, group = a.n_heads / a.n_kv_heads;
    const int thread = threadIdx.x, kv_head = blockIdx.y, kv_dim = a.n_kv_heads * hd;
    real16* keys = reinterpret_cast<real16*>(shared);
    real16* values = keys + CHUNK * padded;
    const int position = row.position, first = chunk * CHUNK, oldest = max(0, position - a.window + 1);

    const real16* ring = row.kv + static_cast<size_t>(2 * a.layer) * row.n_slots * kv_dim + kv_head * hd;
    const int parts = hd / 8;
    for (int i = thread; i < CHUNK * parts; i += CHUNK) {
        const int r = i / parts, part = i % parts, key = first + r;
        const bool valid = key >= oldest && key <= position;
        const real16* source = ring + static_cast<size_t>(valid ? key % row.n_slots : 0) * kv_dim + part * 8;
        copy_async(shared_address(keys + r * padded + part * 8), source, valid);
        copy_async(shared_address(values + r * padded + part * 8), source + static_cast<size_t>(row.n_slots) * kv_dim, valid);
    }
    copy_commit();
    const real16* q = a.q + static_cast<size_t>(blockIdx.z) * a.q_stride + kv_head * group * hd;
    for (int i = thread; i < group * hd; i += CHUNK) {
        queries[i / hd][i % hd] = from16(q[i]);
    }
    copy_wait<0>();
    __syncthreads();

    const int key = first + thread;
    const bool seen = key >= oldest && key <= position;
    float scores[MAX_GROUP] = {};
    for (int d = 0; d < hd; d += 2) {
        const float2 k = __half22float2(*reinterpret_cast<const __half2*>(keys + thread * padded + d));
#pragma unroll
        for (int g = 0; g < MAX_GROUP; g++) {
            if (g < group) {
                scores[g] = __fmaf_rn(queries[g][d], k.x, scores[g]);
                scores[g] = __fmaf_rn(queries[g][d + 1], k.y, scores[g]);
            }
        }
    }
#pragma unroll
    for (int g = 0; g < MAX_GROUP; g++) {
        if (g < group) weights[g][thread] = seen ? __fmul_rn(scores[g], a.scale) : -INFINITY;
    }
    __syncthreads();

    // a warp turns the scores of every fourth head into weights
    const int lane = thread % 32;
    for (int g = thread / 32; g < group; g += CHUNK / 32) {
        float highest = -INFINITY;
        for (int i = lane; i < CHUNK; i += 32) highest = fmaxf(highest, weights[g][i]);
        for (int offset = 16; offset > 0; offset /= 2) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, offset));
        float sum = 0.0f;
        for (int i = lane; i < CHUNK; i += 32) {
            const float weight = power_of_two(__fadd_rn(weights[g][i], -highest));
            weights[g][i] = weight;
            sum = __fadd_rn(sum, weight);
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            const size_t head = static_cast<size_t>(blockIdx.z) * a.n_heads + kv_head * group + g;
            float* partial = a.partials + (head * a.n_chunks + blockIdx.x) * (hd + 2);
            partial[hd] = highest;
            partial[hd + 1] = sum;
        }
    }
    __syncthreads();

    if (thread >= hd) return;
    float sums[MAX_GROUP] = {};
    for (int i = 0; i < CHUNK; i++) {
        const float v = from16(values[i * padded + thread]);
#pragma unroll
        for (int g = 0; g < MAX_GROUP; g++) {
            if (g < group) sums[g] = __fmaf_rn(weights[g][i], v, sums[g]);
        }
    }
#pragma unroll
    for (int g = 0; g < MAX_GROUP; g++) {
        if (g < group) {
            const size_t head = static_cast<size_t>(blockIdx.z) * a.n_heads + kv_head * group + g;
            a.partials[(head * a.n_chunks + blockIdx.x) * (hd + 2) + thread] = sums[g];
        }
    }
}

// Grid: (n_heads, n_rows); block: head_dim.
extern "C" __global__ void combine_chunks(const __grid_constant__ DecoderAttention a) {
    allow_next();
    wait_for_previous();
    const Row row = a.rows[blockIdx.y];
    if (row.kv == nullptr) return;
    const int2 chunks = chunks_of(a, row);
    const int n = chunks.y - chunks.x + 1, hd = a.head_dim;
    const float* partials =
        a.partials + (static_cast<size_t>(blockIdx.y) * a.n_heads + blockIdx.x) * a.n_chunks * (hd + 2);
    float highest = -INFINITY;
    for (int c = 0; c < n; c++) highest = fmaxf(highest, partials[c * (hd + 2) + hd]);
    float sum = 0.0f, value = 0.0f;
    for (int c = 0; c < n; c++) {
        const float* partial = partials + c * (hd + 2);
        const float factor = power_of_two(__fadd_rn(partial[hd], -highest));
        sum = __fmaf_rn(partial[hd + 1], factor, sum);
        value = __fmaf_rn(partial[threadIdx.x], factor, value);
    }
    a.out[static_cast<size_t>(blockIdx.y) * a.q_stride + blockIdx.x * hd + threadIdx.x] =
        to16(__fdiv_rn(value, sum));
}
