// What makes the rows of a pass: what a block knows of them, their embeddings, and the residual stream.

#pragma once

#include "decoder.cuh"

__device__ __forceinline__ float4 added(float4 a, float4 b) {
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
}

__device__ __forceinline__ float4 multiplied(float4 a, float4 b) {
    return make_float4(__fmul_rn(a.x, b.x), __fmul_rn(a.y, b.y), __fmul_rn(a.z, b.z), __fmul_rn(a.w, b.w));
}

__device__ __forceinline__ float4 scaled(float4 a, float factor) {
    return make_float4(__fmul_rn(a.x, factor), __fmul_rn(a.y, factor), __fmul_rn(a.z, factor), __fmul_rn(a.w, factor));
}

// Four numbers of an activation, from k on.
__device__ __forceinline__ void store_activation(real16* to, int row, int k, float4 x) {
    *reinterpret_cast<uint2*>(to + activation_index(row, k)) = make_uint2(pack16(x.x, x.y), pack16(x.z, x.w));
}

// Four features from n on, times `weight`. What writes the residual stream stores also its form for the next product, and the
// sums of squares of each 16 features; four lanes have a tile of a row.
__device__ __forceinline__ void store_residual(const DecoderPass& p, int norm, int row, int to, int n, float4 h, float4 weight) {
    *reinterpret_cast<float4*>(p.residual + static_cast<size_t>(row) * p.width + n) = h;
    float square = __fadd_rn(__fadd_rn(__fmul_rn(h.x, h.x), __fmul_rn(h.y, h.y)),
                             __fadd_rn(__fmul_rn(h.z, h.z), __fmul_rn(h.w, h.w)));
    const uint32_t mask = 0xfu << (threadIdx.x & 28);
    square = __fadd_rn(square, __shfl_xor_sync(mask, square, 1));
    square = __fadd_rn(square, __shfl_xor_sync(mask, square, 2));
    if (to == NO_ROW) return;
    const float4 x = make_float4(__fmul_rn(h.x, weight.x), __fmul_rn(h.y, weight.y), __fmul_rn(h.z, weight.z),
                                 __fmul_rn(h.w, weight.w));
    store_activation(p.normed, to, n, x);
    if (n & 12) return;
    const int tiles = (p.dim + 15) / 16;
    p.squares[static_cast<size_t>((norm & 1) * MAX_ROWS + to) * tiles + n / 16] = square;
}

// Of the head: the best of a row's logits from n on, four lanes for a tile, and all of them where they are asked for.
__device__ __forceinline__ void rank_quad(const DecoderPass& p, Shared& s, int row, int n, float4 y, bool valid, int quad) {
    unsigned long long key = 0;
    const float values[4] = {y.x, y.y, y.z, y.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        if (!valid || n + i >= p.vocab) continue;
        key = max(key, ranking_key(values[i], n + i));
        if (p.logits) p.logits[static_cast<size_t>(row) * p.vocab + n + i] = values[i];
    }
    key = max(key, __shfl_xor_sync(~0u, key, 1));
    key = max(key, __shfl_xor_sync(~0u, key, 2));
    if (quad == 0 && valid) atomicMax(&s.best[row], key);
}

// x = audio + token embedding, and the pass's table of rotations. Also clears the results.
__device__ void embed(const DecoderPass& p, int rows) {
    const int quads = (p.dim + 15) / 16 * 4;
    const int pieces = (p.dim + 63) / 64;
    const float* scales =
        reinterpret_cast<const float*>(p.tokens + static_cast<size_t>((p.vocab + 15) / 16) * pieces * PIECE_BYTES);
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < rows * quads; i += gridDim.x * THREADS) {
        const int row = i / quads, n = i % quads * 4;
        const uint32_t id = p.rows[row].token;
        const uint32_t* piece =
            reinterpret_cast<const uint32_t*>(p.tokens + (static_cast<size_t>(id >> 4) * pieces + n / 64) * PIECE_BYTES);
        auto word = [&](int i) { return piece[octet_word_at(id & 15, n % 64 / 8 * 8, i)]; };
        const uint4 octet = octet_pairs(word(0), word(1), word(2));
        const float scale = scales[id];
        auto pair = [&](uint32_t bits) {
            const float2 x = __half22float2(*reinterpret_cast<const __half2*>(&bits));
            return make_float2(__fmul_rn(x.x, scale), __fmul_rn(x.y, scale));
        };
        const float2 low = pair(n & 4 ? octet.z : octet.x), high = pair(n & 4 ? octet.w : octet.y);
        const float4 audio = *reinterpret_cast<const float4*>(p.rows[row].audio + n);
        const float4 h = make_float4(__fadd_rn(audio.x, low.x), __fadd_rn(audio.y, low.y), __fadd_rn(audio.z, high.x),
                                     __fadd_rn(audio.w, high.y));
        store_residual(p, 0, row, row, n, h, *reinterpret_cast<const float4*>(p.layers[0].attention_norm + n));
    }
    for (int i = blockIdx.x * THREADS + threadIdx.x; i < rows * (HEAD_DIM / 2); i += gridDim.x * THREADS) {
        // the angle is an F32 product, as in the official code; it is reduced in double, so its rounding is all there is
        const float angle = __fmul_rn(static_cast<float>(p.rows[i / 64].position), p.frequencies[i % 64]);
        const double turns = static_cast<double>(angle) * 0.15915494309189535;
        float sine, cosine;
        sincospif(static_cast<float>(2.0 * (turns - rint(turns))), &sine, &cosine);
        p.rope[i] = make_float2(cosine, sine);
    }
    if (blockIdx.x == 0 && threadIdx.x < MAX_ROWS) p.best[threadIdx.x] = 0;
}

// Reads what the block needs to know of the pass. All threads that compute.
__device__ void read_pass(const DecoderPass& p, Shared& s, int rows, int groups, int tid) {
    if (tid < MAX_ROWS) s.best[tid] = 0;
    if (tid < rows) {
        const Row row = p.rows[tid];
        s.cache[tid] = row.kv;
        s.position[tid] = row.position;
        s.chunks[tid] = row.n_slots / CHUNK;
        s.head_row[tid] = row.head_row;
        if (row.head_row != NO_ROW) s.origin[row.head_row] = tid;
    }
    if (tid < groups) {
        const int2 group = p.groups[tid];
        s.groups[tid] = make_uchar2(group.x, group.y);
        for (int i = 0; i < group.y; i++) s.group_of[group.x + i] = tid;
        const int position = p.rows[group.x].position;
        s.prefix[tid + 1] = (position + group.y - 1) / CHUNK - max(0, position - p.window + 1) / CHUNK + 1;
    }
    block_sync();
    if (tid == 0) {
        int sum = 0;
        s.prefix[0] = 0;
        for (int i = 1; i <= groups; i++) s.prefix[i] = sum += s.prefix[i];
    }
    // a launch that begins in the middle of a pass lacks the last norm's result
    const int first = p.phase_begin, layer = (first - 1) / LAYER_PHASES;
    int norm = 2 * layer;
    switch (phase_kind(p, first)) {
        case EMBED: norm = -1; break;
        case QKV: norm -= 1; break;
        case W2: norm += 1; break;
        case HEAD: norm = 2 * p.n_layers - 1; break;
        default: break;
    }
    if (norm >= 0) {
        for (int row = tid / 32; row < rows; row += WARPS) {
            const float inverse = inverse_rms(p, norm, row, tid % 32);
            if (tid % 32 == 0) s.inverse[row] = inverse;
        }
    }
    block_sync();
}
