// What all kernels share: the 16-bit number format, matrix-unit instructions, asynchronous copies, and the element-wise
// functions whose rounding must be the same wherever they are inlined (explicit intrinsics: the compiler may contract
// a * b + c either way).

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <stdint.h>

// The encoder's weights (e4m7.cuh has the decoder's), activations between products, keys and values are F16: its 11 bits keep
// every BF16 weight from 2^-14 up exactly (smaller ones to 2^-25), and round activations eight times finer than BF16 would. What
// might leave its range is clamped to it. The residual stream is F32.
using real16 = __half;
constexpr float REAL16_MAX = 65504.0f;

// The largest power of two up to x, a positive normal number.
__device__ __forceinline__ float power_below(float x) { return __uint_as_float(__float_as_uint(x) & 0x7f800000u); }

// Lets the next kernel of the stream start; it may do what needs no results of this one.
__device__ __forceinline__ void allow_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Waits for the kernels before this one. Every kernel does so before it reads or writes what others use.
__device__ __forceinline__ void wait_for_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

#if __CUDA_ARCH__ >= 900
// Waits for all threads of the cluster; what they wrote to shared memory is there then.
__device__ __forceinline__ void cluster_barrier() {
    asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
#endif

#if __CUDA_ARCH__ >= 900
// How soon data may leave L2: for what is read once.
__device__ __forceinline__ uint64_t evict_first_policy() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
#endif

// What the kernel may begin to read before the ones before it have ended: not from a multiprocessor's own cache, which may be
// older than it. 8-byte words.
template <typename T>
__device__ __forceinline__ T load_l2(const T* p) {
    static_assert(sizeof(T) % 8 == 0 && alignof(T) == 8, "words");
    union {
        uint2 words[sizeof(T) / 8];
        T value;
    };
#pragma unroll
    for (int i = 0; i < static_cast<int>(sizeof(T) / 8); i++) words[i] = __ldcg(reinterpret_cast<const uint2*>(p) + i);
    return value;
}

// d += a b for a 16 x 16 tile of a (weights) and an 8 x 16 tile of b (activations).
__device__ __forceinline__ void mma(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

// The address of 16-byte chunk `chunk` of row `row`, in tiles of 8 rows by 128 bytes: chunks that are above each other lie
// in different banks.
__device__ __forceinline__ uint32_t swizzled(int row, int chunk) { return row * 128 + (chunk ^ row % 8) * 16; }

// Where row n, column k of a packed matrix with rows of `columns` is (see pack.cu).
__device__ __forceinline__ size_t packed_at(int n, int k, int columns) {
    const size_t block = static_cast<size_t>(n / 128) * (columns / 64) + k / 64;
    return block * 8192 + swizzled(n % 128, k % 64 / 8) / 2 + k % 8;
}

__device__ __forceinline__ void ldmatrix_x4_transposed(uint32_t (&r)[4], uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(address));
}

__device__ __forceinline__ void ldmatrix_x2(uint32_t& r0, uint32_t& r1, uint32_t address) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%0,%1}, [%2];" : "=r"(r0), "=r"(r1) : "r"(address));
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
    return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// Copies 16 bytes to shared memory, or writes zeros where `valid` is false (the source is not read then).
__device__ __forceinline__ void copy_async(uint32_t destination, const void* source, bool valid = true) {
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(destination), "l"(source),
                 "r"(valid ? 16 : 0)
                 : "memory");
}

__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most `N` of this thread's copy groups are under way.
template <int N>
__device__ __forceinline__ void copy_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

__device__ __forceinline__ float clamp16(float x) { return fminf(fmaxf(x, -REAL16_MAX), REAL16_MAX); }

__device__ __forceinline__ real16 to16(float x) { return __float2half_rn(clamp16(x)); }

__device__ __forceinline__ uint32_t pack16(float low, float high) {
    const __half2 pair = __floats2half2_rn(clamp16(low), clamp16(high));
    return *reinterpret_cast<const uint32_t*>(&pair);
}

// As above, of numbers that are in range.
__device__ __forceinline__ uint32_t pack16_small(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ float from16(real16 x) { return __half2float(x); }

// 2^x, to 2 units in the last place; 0 for minus infinity.
__device__ __forceinline__ float power_of_two(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

__device__ __forceinline__ float gelu(float x) {
    return __fmul_rn(__fmul_rn(0.5f, x), __fadd_rn(1.0f, erff(__fmul_rn(x, 0.70710678118654752f))));
}

// silu(gate) * up, to a few units in the last place: it is rounded to 11 bits next.
__device__ __forceinline__ float silu_times(float gate, float up) {
    float inverse;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(__fadd_rn(1.0f, power_of_two(__fmul_rn(gate, -1.44269504f)))));
    return __fmul_rn(__fmul_rn(gate, inverse), up);
}

// Turns the pair (a, b) by the angle with this cosine (x) and sine (y).
__device__ __forceinline__ float2 rotate(float a, float b, float2 angle) {
    return make_float2(__fmaf_rn(a, angle.x, -__fmul_rn(b, angle.y)), __fmaf_rn(a, angle.y, __fmul_rn(b, angle.x)));
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(~0u, x, offset);
    return x;
}

// Adds and returns what was there, after the block's writes up to its last barrier and before its reads after the next.
__device__ __forceinline__ uint32_t add_acquire_release(uint32_t* p, uint32_t v) {
    uint32_t old;
    asm volatile("atom.acq_rel.gpu.global.add.u32 %0, [%1], %2;" : "=r"(old) : "l"(p), "r"(v) : "memory");
    return old;
}

// One decoder position of a pass.
struct Row {
    const float* audio;      // [dim], the audio embedding
    real16* kv;              // the stream's ring, see decoder_attention.cuh
    const float* ffn_scale;  // [n_layers][width]
    uint32_t position;
    uint32_t n_slots;
    uint32_t token;
    uint32_t head_row;       // where it is among the rows whose predictions are asked for, or 255
};

// One run of consecutive rows of one stream in an encoder pass.
struct Segment {
    real16* ring;       // [n_layers][2][n_slots][kv_dim]
    real16* conv_tail;  // [dim]
    real16* mel_tail;   // [2][n_mels]
    int first_row;    // in the pass
    int n_rows;
    int position;     // of its first row
    int first_conv;   // row of its tail in the second convolution's input
};
