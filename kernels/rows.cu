// What happens to single rows between the products: frames, norms, rotation angles, what is kept for later passes.

#include "norm.cuh"

struct RmsNorm {
    const float* x;       // [..][stride]
    const float* weight;  // [stride], zeros beyond dim
    real16* h;              // [rows][stride]
    int dim, stride;
    float eps;
};

// h = x / sqrt(mean(x^2) + eps) * weight. Grid: one block a row; block: 32; `stride` is a multiple of 4.
extern "C" __global__ void __launch_bounds__(32) rms_norm(const __grid_constant__ RmsNorm a) {
    allow_next();
    wait_for_previous();
    const float* x = a.x + static_cast<size_t>(blockIdx.x) * a.stride;
    float sum = 0.0f;
#pragma unroll 10
    for (int i = threadIdx.x * 4; i < a.stride; i += 128) add_squares(sum, *reinterpret_cast<const float4*>(x + i));
    const float inverse = inverse_rms(sum, a.dim, a.eps);
    real16* h = a.h + static_cast<size_t>(blockIdx.x) * a.stride;
#pragma unroll 10
    for (int i = threadIdx.x * 4; i < a.stride; i += 128) {
        const float4 w = *reinterpret_cast<const float4*>(a.weight + i);
        *reinterpret_cast<uint2*>(h + i) = normed(*reinterpret_cast<const float4*>(x + i), w, inverse);
    }
}

struct RopeAngles {
    const int* positions;  // [rows]
    const float* frequencies;  // [half]
    float2* angles;            // [rows][half]: cosine and sine
    int half;
};

// Grid: one block a row; block: any. The angle is an F32 product, as in the official code.
extern "C" __global__ void rope_angles(const __grid_constant__ RopeAngles a) {
    allow_next();
    wait_for_previous();
    const uint32_t position = a.positions[blockIdx.x];
    for (int j = threadIdx.x; j < a.half; j += blockDim.x) {
        float sine, cosine;
        sincosf(__fmul_rn(static_cast<float>(position), a.frequencies[j]), &sine, &cosine);
        a.angles[static_cast<size_t>(blockIdx.x) * a.half + j] = make_float2(cosine, sine);
    }
}

struct MelFrames {
    const Segment* segments;
    const float* frames;  // [..][n_mels], each segment's first at 2 * first_row
    real16* out;          // [..][width], each segment's first at first_conv
    int n_mels, width;
};

// Puts each segment's last two frames before its new ones, in F16 and zeros beyond n_mels, and keeps the new last two.
// The first kernel of a pass: no other one begins before all that came before the pass is done, tables' copies included.
// Grid: (frames and two more, segments); block: any.
extern "C" __global__ void mel_frames(const __grid_constant__ MelFrames a) {
    wait_for_previous();
    allow_next();
    const Segment s = a.segments[blockIdx.y];
    const int n_frames = 2 * s.n_rows, frame = static_cast<int>(blockIdx.x) - 2;
    if (frame >= n_frames) return;
    const float* frames = a.frames + 2 * static_cast<size_t>(s.first_row) * a.n_mels;
    real16* out = a.out + (static_cast<size_t>(s.first_conv) + blockIdx.x) * a.width;
    for (int i = threadIdx.x; i < a.width; i += blockDim.x) {
        real16 value = to16(0.0f);
        if (i < a.n_mels && frame >= 0) {
            value = to16(frames[static_cast<size_t>(frame) * a.n_mels + i]);
        } else if (i < a.n_mels) {
            real16* tail = s.mel_tail + (frame + 2) * a.n_mels + i;
            value = *tail;
            *tail = to16(frames[static_cast<size_t>(n_frames + frame) * a.n_mels + i]);
        }
        out[i] = value;
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
