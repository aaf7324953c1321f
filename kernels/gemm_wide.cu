// Products for many rows on compute capability 9.0: the same sums as gemm.cu, in the same order, by warpgroup instructions.
//
// A block computes 128 rows by 256 outputs at a time: one thread has the copy engine fill a ring of stages (64 columns of k
// each), two warpgroups have 64 rows each. Blocks stay and take one tile after the other, neighbouring tiles of the same
// rows at the same time. (Pairs of blocks that share the weights' copies took a quarter longer.)
//
// N is a multiple of 256, K of 128. Grid: one block a multiprocessor; block: 384; dynamic shared memory:
// STAGES * STAGE_BYTES + 1024.

#include "epilogue.cuh"
#include "hopper.cuh"

#if HOPPER

struct WideGemm {
    TensorMap x;  // [m][k], boxes of 128 rows by 64 columns
    Gemm g;
};

constexpr int BM = 128, BN = 256, STAGES = 4;
constexpr int X_BYTES = BM * 128, HALF_BYTES = 128 * 128, STAGE_BYTES = X_BYTES + 2 * HALF_BYTES;

__device__ __forceinline__ float4 load4(const float* p) { return *reinterpret_cast<const float4*>(p); }

// What one warpgroup has: 64 rows from m_first on, 256 outputs from n_first on. A thread has two rows, and of 16 packed
// weights numbers 2q, 2q + 1, 8 + 2q and 9 + 2q: outputs 4q, 4q + 2, 4q + 1, 4q + 3 (q = lane % 4). Whatever comes from
// memory is asked for well before it is needed: `begin` does so while the last products are under way.
template <int EPILOGUE>
struct WideStore {
    const Gemm& g;
    int m[2], n;
    float4 ahead[EPILOGUE == ADD_F32 ? 16 : EPILOGUE == QKV_F16 ? 8 : 1];

    __device__ __forceinline__ WideStore(const Gemm& g, int m_first, int n_first) : g(g) {
        const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
        m[0] = m_first + warp * 16 + lane / 4;
        m[1] = m[0] + 8;
        n = n_first + lane % 4 * 4;
    }

    __device__ __forceinline__ float* out32(int half) const {
        return static_cast<float*>(g.out) + static_cast<size_t>(m[half]) * g.out_stride + n;
    }
    __device__ __forceinline__ real16* out16(int half) const {
        return static_cast<real16*>(g.out) + static_cast<size_t>(m[half]) * g.out_stride + n;
    }

    __device__ __forceinline__ void begin() {
        if constexpr (EPILOGUE == ADD_F32) {
#pragma unroll
            for (int i = 0; i < 16; i++) {
                if (m[0] < g.m) ahead[i] = load4(out32(0) + 16 * i);
            }
        } else if constexpr (EPILOGUE == QKV_F16) {
#pragma unroll
            for (int half = 0; half < 2; half++) {
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float2* angles = g.rope + min(m[half], g.m - 1) * 32 + (n % 64 + 16 * i) / 2;
                    ahead[half * 4 + i] = load4(reinterpret_cast<const float*>(angles));
                }
            }
        }
    }

    // Sums of outputs n + 16 i and the three after it, plus their bias.
    __device__ __forceinline__ float4 sum(const float (&d)[128], int half, int i, const float4& bias) const {
        const float* v = d + 8 * i + 2 * half;
        if (g.bias == nullptr) return make_float4(v[0], v[4], v[1], v[5]);
        return make_float4(__fadd_rn(v[0], bias.x), __fadd_rn(v[4], bias.y), __fadd_rn(v[1], bias.z),
                           __fadd_rn(v[5], bias.w));
    }

    __device__ __forceinline__ void finish(float (&d)[128]) {
        if constexpr (EPILOGUE == SWIGLU_F16) {
            swiglu(d);
            return;
        }
        // four tiles of 16 outputs at a time; the next ones' bias is on its way
        float4 bias[2][4] = {};
        auto load_bias = [&](int tiles) {
            if (g.bias == nullptr) return;
#pragma unroll
            for (int i = 0; i < 4; i++) bias[tiles % 2][i] = load4(g.bias + n + 64 * tiles + 16 * i);
        };
        load_bias(0);
        if constexpr (EPILOGUE == ADD_F32) {
#pragma unroll
            for (int step = 0; step < 8; step++) {
                if (step < 7) load_bias((step + 1) % 4);
#pragma unroll
                for (int i = 0; i < 4; i++) add(d, step / 4, step % 4 * 4 + i, bias[step % 2][i]);
            }
        } else {
#pragma unroll
            for (int tiles = 0; tiles < 4; tiles++) {
                if (tiles < 3) load_bias(tiles + 1);
                const bool turn = EPILOGUE == QKV_F16 && n + 64 * tiles < g.n_turned;
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    if (m[half] >= g.m) continue;
#pragma unroll
                    for (int i = 0; i < 4; i++) {
                        const int at = 64 * tiles + 16 * i;
                        float4 v = sum(d, half, tiles * 4 + i, bias[tiles % 2][i]);
                        if (turn) {
                            const float4 angles = ahead[EPILOGUE == QKV_F16 ? half * 4 + i : 0];
                            const float2 low = rotate(v.x, v.y, make_float2(angles.x, angles.y));
                            const float2 high = rotate(v.z, v.w, make_float2(angles.z, angles.w));
                            v = make_float4(low.x, low.y, high.x, high.y);
                        }
                        if constexpr (EPILOGUE == GELU_F16) v = make_float4(gelu(v.x), gelu(v.y), gelu(v.z), gelu(v.w));
                        if constexpr (EPILOGUE == STORE_F32) {
                            *reinterpret_cast<float4*>(out32(half) + at) = v;
                        } else {
                            *reinterpret_cast<uint2*>(out16(half) + at) = make_uint2(pack16(v.x, v.y), pack16(v.z, v.w));
                        }
                    }
                }
            }
        }
    }

    __device__ __forceinline__ void add(const float (&d)[128], int half, int i, const float4& bias) {
        const float4 v = sum(d, half, i, bias), old = ahead[i];
        if (half == 0 && m[1] < g.m) ahead[i] = load4(out32(1) + 16 * i);
        if (m[half] >= g.m) return;
        *reinterpret_cast<float4*>(out32(half) + 16 * i) = make_float4(
            __fadd_rn(old.x, v.x), __fadd_rn(old.y, v.y), __fadd_rn(old.z, v.z), __fadd_rn(old.w, v.w));
    }

    // Of two neighbouring tiles of gates and ups the first has the even, the second the odd outputs.
    __device__ __forceinline__ void swiglu(const float (&d)[128]) const {
#pragma unroll
        for (int half = 0; half < 2; half++) {
            if (m[half] >= g.m) continue;
            real16* out = out16(half) - n + (n - n % 256) / 2 + n % 256;
#pragma unroll
            for (int i = 0; i < 8; i++) {
                const float* even = d + 16 * i + 2 * half;
                const float* odd = even + 8;
                *reinterpret_cast<uint2*>(out + 16 * i) =
                    make_uint2(pack16(silu_times(even[0], even[4]), silu_times(odd[0], odd[4])),
                               pack16(silu_times(even[1], even[5]), silu_times(odd[1], odd[5])));
            }
        }
    }
};

template <int EPILOGUE>
__device__ __forceinline__ void multiply_wide(const WideGemm& a) {
    extern __shared__ uint8_t shared[];
    Gemm g = a.g;
    g.epilogue = EPILOGUE;
    g.out_rows = nullptr;
    const uint32_t base = (shared_address(shared) + 1023) / 1024 * 1024;
    __shared__ __align__(8) uint64_t barriers[2 * STAGES];
    const uint32_t full = shared_address(barriers), empty = full + STAGES * 8;
    if (threadIdx.x == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(full + s * 8, 1);
            barrier_init(empty + s * 8, 2);
        }
        barrier_init_fence();
    }
    __syncthreads();
    allow_next();
    wait_for_previous();

    const int k_blocks = g.k / 64, n_tiles = g.n / BN;
    const int tiles = (g.m + BM - 1) / BM * n_tiles, first = blockIdx.x, step = gridDim.x;
    uint32_t slot = 0, parity = 0;
    auto advance = [&] {
        if (++slot == STAGES) slot = 0, parity ^= 1;
    };

    if (threadIdx.x < 128) {
        fewer_registers<24>();
        if (threadIdx.x == 0) {
            for (int tile = first; tile < tiles; tile += step) {
                const int m_first = tile / n_tiles * BM, n = tile % n_tiles * BN;
                const uint8_t* weights =
                    reinterpret_cast<const uint8_t*>(g.weights) + static_cast<size_t>(n / 128) * k_blocks * HALF_BYTES;
                for (int k = 0; k < k_blocks; k++) {
                    barrier_wait(empty + slot * 8, parity ^ 1);
                    const uint32_t ready = full + slot * 8, stage = base + slot * STAGE_BYTES;
                    barrier_expect(ready, STAGE_BYTES);
                    copy_box(stage, &a.x, k * 64, m_first, ready);
#pragma unroll
                    for (int half = 0; half < 2; half++) {
                        const uint32_t to = stage + X_BYTES + half * HALF_BYTES;
                        const uint8_t* from = weights + (static_cast<size_t>(half) * k_blocks + k) * HALF_BYTES;
                        copy_bulk(to, from, HALF_BYTES, ready);
                    }
                    advance();
                }
            }
        }
    } else {
        more_registers<240>();
        const int group = threadIdx.x / 128 - 1;
        const bool speaks = threadIdx.x % 128 == 0;
        auto release = [&](uint32_t stage) {
            if (speaks) barrier_arrive(empty + stage * 8);
        };
        float d[128];
        for (int tile = first; tile < tiles; tile += step) {
            const int m_first = tile / n_tiles * BM + group * 64;
            uint32_t before = 0;
            for (int k = 0; k < k_blocks; k++) {
                barrier_wait(full + slot * 8, parity);
                const uint32_t stage = base + slot * STAGE_BYTES;
                const uint64_t x = operand(stage + group * 64 * 128), w = operand(stage + X_BYTES);
                wgmma_fence();
#pragma unroll
                for (int i = 0; i < 4; i++) wgmma_64x256(d, x + i * 2, w + i * 2, k > 0 || i > 0);
                wgmma_commit();
                if (k > 0) {
                    wgmma_wait<1>();
                    release(before);
                }
                before = slot;
                advance();
            }
            WideStore<EPILOGUE> store(g, m_first, tile % n_tiles * BN);
            store.begin();
            wgmma_wait<0>();
            pin(d);
            release(before);
            store.finish(d);
        }
    }
}

#define WIDE_KERNEL(name, EPILOGUE)                                                                          \
    extern "C" __global__ void __launch_bounds__(384, 1) name(const __grid_constant__ WideGemm a) {        \
        multiply_wide<EPILOGUE>(a);                                                                          \
    }

WIDE_KERNEL(gemm_wide_store, STORE_F32)
WIDE_KERNEL(gemm_wide_add, ADD_F32)
WIDE_KERNEL(gemm_wide_gelu, GELU_F16)
WIDE_KERNEL(gemm_wide_swiglu, SWIGLU_F16)
WIDE_KERNEL(gemm_wide_qkv, QKV_F16)

#endif
