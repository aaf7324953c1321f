// The decoder's steps between products, for when a library does the products: rows lie one after the other as the library
// wants them, everything but attention (decoder_attention.cuh) is a small kernel of its own.
//
// Widths of rows in memory are padded with zeros: `width` is that of the residual stream, `k_*` those of products' inputs,
// `n_*` those of their outputs.

#include "decoder.cuh"

struct PackRows {
    const __nv_bfloat16* source;  // [rows][columns]
    real16* destination;          // [..][k], zeros at first
    int rows, columns;
    int first_row;  // of the destination
    int k;
};

// A matrix as F16. Grid: (any, rows); block: any.
extern "C" __global__ void pack_rows(const __grid_constant__ PackRows p) {
    wait_for_previous();
    const __nv_bfloat16* source = p.source + static_cast<size_t>(blockIdx.y) * p.columns;
    real16* to = p.destination + static_cast<size_t>(p.first_row + blockIdx.y) * p.k;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.columns; i += gridDim.x * blockDim.x) {
        to[i] = to16(__bfloat162float(source[i]));
    }
}

struct Steps {
    const Row* rows;
    const real16* tok_embeddings;  // [vocab][k_dim]
    const float* frequencies;      // [HEAD_DIM / 2]
    float* residual;               // [rows][width]
    float2* rope;                  // [rows][HEAD_DIM / 2] cosine, sine
    real16* normed;                // [rows][k_dim]
    const float* qkv;              // [rows][n_qkv]
    real16* query;                 // [rows][n_heads * HEAD_DIM]
    const real16* attended;        // as decoder_attention.cuh writes it
    real16* attended_rows;         // [rows][k_attended]
    const float* gates;            // [rows][n_hidden]: gates, then ups
    real16* activated;             // [rows][k_hidden]
    const float* logits;           // [rows of the head][n_vocab]
    unsigned long long* best;      // [rows of the head]
    float* squares;                // what the pass's kernel wants of the head's input, see `head_input`
    real16* head_normed;
    int dim, width, k_dim, n_heads, n_kv_heads, n_qkv, k_attended, hidden, n_hidden, k_hidden, vocab, n_vocab;
    float eps;
    // of the launch
    int layer;
    const float* norm;  // [width]
    int last;           // the head's norm: rows go where the row says
};

// x = audio + token embedding, rotations, and an empty result. Grid: one block a row; block: any.
extern "C" __global__ void embed_rows(const __grid_constant__ Steps p) {
    wait_for_previous();
    const Row& row = p.rows[blockIdx.x];
    const real16* token = p.tok_embeddings + static_cast<size_t>(row.token) * p.k_dim;
    float* x = p.residual + static_cast<size_t>(blockIdx.x) * p.width;
    for (int i = threadIdx.x; i < p.dim; i += blockDim.x) x[i] = __fadd_rn(row.audio[i], from16(token[i]));
    for (int i = threadIdx.x; i < HEAD_DIM / 2; i += blockDim.x) {
        float sine, cosine;
        sincosf(__fmul_rn(static_cast<float>(row.position), p.frequencies[i]), &sine, &cosine);
        p.rope[blockIdx.x * (HEAD_DIM / 2) + i] = make_float2(cosine, sine);
    }
    if (threadIdx.x == 0) p.best[blockIdx.x] = 0;
}

// normed = residual / rms * norm, times the stream's factors where `layer` is one. Grid: one block a row; block: 256.
extern "C" __global__ void __launch_bounds__(256) norm_rows(const __grid_constant__ Steps p) {
    wait_for_previous();
    __shared__ float sums[8];
    const Row& row = p.rows[blockIdx.x];
    const uint32_t to = p.last ? row.head_row : blockIdx.x;
    if (to == NO_ROW) return;
    const float* x = p.residual + static_cast<size_t>(blockIdx.x) * p.width;
    float sum = 0.0f;
    for (int i = threadIdx.x; i < p.dim; i += 256) sum = __fmaf_rn(x[i], x[i], sum);
    sum = warp_sum(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0.0f;
#pragma unroll
    for (int i = 0; i < 8; i++) sum = __fadd_rn(sum, sums[i]);
    const float inverse = 1.0f / sqrtf(sum / static_cast<float>(p.dim) + p.eps);
    const float* factors = p.layer < 0 ? nullptr : row.ffn_scale + static_cast<size_t>(p.layer) * p.width;
    for (int i = threadIdx.x; i < p.dim; i += 256) {
        const float h = __fmul_rn(__fmul_rn(x[i], inverse), p.norm[i]);
        p.normed[static_cast<size_t>(to) * p.k_dim + i] = to16(factors == nullptr ? h : __fmul_rn(h, factors[i]));
    }
}

// The head's input as the phase HEAD of decoder.cu reads it, from the residual stream: there, sums of squares of each 16
// features come from whoever made the rows, and so does the power of two below a norm before, for which this one's own does
// as well. Grid: one block a row; block: 256.
extern "C" __global__ void __launch_bounds__(256) head_input(const __grid_constant__ Steps p) {
    wait_for_previous();
    const uint32_t to = p.rows[blockIdx.x].head_row;
    if (to == NO_ROW) return;
    const int tiles = (p.dim + 15) / 16;
    const float* x = p.residual + static_cast<size_t>(blockIdx.x) * p.width;
    for (int tile = threadIdx.x; tile < tiles; tile += 256) {
        float square = 0.0f;
        for (int i = 0; i < 16; i++) square = __fmaf_rn(x[tile * 16 + i], x[tile * 16 + i], square);
        p.squares[static_cast<size_t>(to) * tiles + tile] = square;
        p.squares[static_cast<size_t>(MAX_ROWS + blockIdx.x) * tiles + tile] = square;
    }
    __syncthreads();
    // the very number that the phase will divide by
    const float factor = power_below(inverse_rms(p, 1, blockIdx.x, threadIdx.x % 32));
    for (int i = threadIdx.x; i < p.dim; i += 256) {
        p.head_normed[activation_index(to, i)] = to16(__fmul_rn(x[i], __fmul_rn(p.norm[i], factor)));
    }
}

// Queries and keys after rotation, keys and values into the stream's ring. Grid: one block a row; block: any.
extern "C" __global__ void rotate_rows(const __grid_constant__ Steps p) {
    wait_for_previous();
    const Row& row = p.rows[blockIdx.x];
    const float* in = p.qkv + static_cast<size_t>(blockIdx.x) * p.n_qkv;
    const float2* rope = p.rope + blockIdx.x * (HEAD_DIM / 2);
    const int slot = row.position % row.n_slots;
    const size_t plane = static_cast<size_t>(p.n_kv_heads) * row.n_slots * HEAD_DIM;
    real16* keys = row.kv + 2 * p.layer * plane;
    real16* values = keys + plane;
    const int n_rotated = (p.n_heads + p.n_kv_heads) * (HEAD_DIM / 2);
    for (int i = threadIdx.x; i < n_rotated; i += blockDim.x) {
        const int head = i / (HEAD_DIM / 2), d = i % (HEAD_DIM / 2) * 2;
        const float2 turned = rotate(in[head * HEAD_DIM + d], in[head * HEAD_DIM + d + 1], rope[d / 2]);
        real16* to = head < p.n_heads
                         ? p.query + (static_cast<size_t>(blockIdx.x) * p.n_heads + head) * HEAD_DIM + d
                         : keys + (static_cast<size_t>(head - p.n_heads) * row.n_slots + slot) * HEAD_DIM + d;
        *reinterpret_cast<uint32_t*>(to) = pack16(turned.x, turned.y);
    }
    for (int i = threadIdx.x; i < p.n_kv_heads * HEAD_DIM; i += blockDim.x) {
        const int head = i / HEAD_DIM, d = i % HEAD_DIM;
        real16* block = values + (static_cast<size_t>(head) * row.n_slots + slot / 32 * 32) * HEAD_DIM;
        block[d * 32 + slot % 32] = to16(in[(p.n_heads + p.n_kv_heads) * HEAD_DIM + i]);
    }
}

// What attention has written, as rows. Grid: one block a row; block: any.
extern "C" __global__ void attended_rows(const __grid_constant__ Steps p) {
    wait_for_previous();
    for (int i = threadIdx.x; i < p.n_heads * HEAD_DIM; i += blockDim.x) {
        p.attended_rows[static_cast<size_t>(blockIdx.x) * p.k_attended + i] = p.attended[activation_index(blockIdx.x, i)];
    }
}

// activated = silu(gate) * up. Grid: (any, rows); block: any.
extern "C" __global__ void swiglu_rows(const __grid_constant__ Steps p) {
    wait_for_previous();
    const float* in = p.gates + static_cast<size_t>(blockIdx.y) * p.n_hidden;
    real16* out = p.activated + static_cast<size_t>(blockIdx.y) * p.k_hidden;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.hidden; i += gridDim.x * blockDim.x) {
        out[i] = to16(silu_times(in[i], in[p.hidden + i]));
    }
}

// The largest logit of each row, and its id. Grid: (any, rows of the head); block: a multiple of 32.
extern "C" __global__ void best_of_rows(const __grid_constant__ Steps p) {
    wait_for_previous();
    const float* logits = p.logits + static_cast<size_t>(blockIdx.y) * p.n_vocab;
    unsigned long long best = 0;
    for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < p.vocab; i += gridDim.x * blockDim.x) {
        best = max(best, ranking_key(logits[i], i));
    }
#pragma unroll
    for (int o = 16; o > 0; o >>= 1) best = max(best, __shfl_xor_sync(~0u, best, o));
    if (threadIdx.x % 32 == 0) atomicMax(p.best + blockIdx.y, best);
}
