// Products of activations with packed weights: out[m][n] = sum over k of x[m][k] w[n][k], F16 in, F32 sums.
//
// Weights (packed: see pack.cu) are the matrix unit's A operand, activations, row-major, its B operand. Every sum runs over
// k in ascending steps of 16 in one accumulator, in every tile shape, and in gemm_few.cu and gemm_wide.cu: a row's result
// does not depend on how many rows there are.
//
// N and K are multiples of 128. Grid: (N / BN, ceil(M / BM)); block: 32 * (WN * WM + LOADERS) threads; dynamic shared
// memory: STAGES * (BN + BM) * BK * 2 bytes.

#include "epilogue.cuh"

// WN x WM warps, each with NT tiles of 16 weights by MT tiles of 8 rows. LOADERS more warps only help to copy.
template <int WN, int WM, int NT, int MT, int BK, int STAGES, int LOADERS>
__device__ __forceinline__ void gemm(const Gemm& g) {
    constexpr int BN = WN * NT * 16, BM = WM * MT * 8;
    constexpr int WORKERS = WN * WM, THREADS = (WORKERS + LOADERS) * 32;
    constexpr int W_BYTES = BN * BK * 2, X_BYTES = BM * BK * 2;
    constexpr int K_TILES = BK / 16, CHUNKS = BK / 8;
    constexpr int X_COPIES = (BM * CHUNKS + THREADS - 1) / THREADS;
    // fragments read ahead of the products: those of a whole stage where they are few
    constexpr int AHEAD = K_TILES * (4 * NT + 2 * MT) <= 96 ? K_TILES : 2;
    extern __shared__ __align__(128) uint8_t shared[];
    const uint32_t base = shared_address(shared);

    const int thread = threadIdx.x, lane = thread % 32, warp = thread / 32;
    const int warp_n = warp % WN, warp_m = warp / WN;
    const int n_first = blockIdx.x * BN, m_first = blockIdx.y * BM;
    const int k_blocks = g.k / BK;
    allow_next();

    // 16-byte chunks of a row of x lie where no two of eight consecutive rows share a bank
    auto place = [](int row, int chunk) { return (row * CHUNKS + (chunk ^ row % 8)) * 16; };
    const uint8_t* weights = reinterpret_cast<const uint8_t*>(g.weights) +
                             static_cast<size_t>(n_first / 128) * (g.k / 64) * 16384 + n_first % 128 * 128;
    auto load_weights = [&](int k_block) {
        const uint32_t stage = base + k_block % STAGES * (W_BYTES + X_BYTES);
#pragma unroll
        for (int c = thread; c < BN * CHUNKS; c += THREADS) {
            const int piece = c / (BN * 8);
            copy_async(stage + c * 16,
                       weights + static_cast<size_t>(k_block * (BK / 64) + piece) * 16384 + c % (BN * 8) * 16);
        }
    };
    // weights don't depend on the kernels before
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < k_blocks) load_weights(s);
    }
    wait_for_previous();

    const real16* x_source[X_COPIES];
    bool x_valid[X_COPIES];
#pragma unroll
    for (int i = 0; i < X_COPIES; i++) {
        const int c = thread + i * THREADS, m = m_first + c / CHUNKS;
        x_valid[i] = c < BM * CHUNKS && m < g.m;
        const int row = x_valid[i] ? (g.x_rows ? g.x_rows[m] : m) : 0;
        x_source[i] = g.x + static_cast<size_t>(row) * g.x_stride + c % CHUNKS * 8;
    }
    auto load_x = [&](int k_block) {
        const uint32_t stage = base + k_block % STAGES * (W_BYTES + X_BYTES);
#pragma unroll
        for (int i = 0; i < X_COPIES; i++) {
            const int c = thread + i * THREADS;
            if (BM * CHUNKS % THREADS == 0 || c < BM * CHUNKS) {
                copy_async(stage + W_BYTES + place(c / CHUNKS, c % CHUNKS), x_source[i] + k_block * BK, x_valid[i]);
            }
        }
    };

    float sums[NT][MT][4] = {};
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) {
        if (s < k_blocks) load_x(s);
        copy_commit();
    }
    for (int k_block = 0; k_block < k_blocks; k_block++) {
        copy_wait<STAGES - 2>();
        if (THREADS > 32) __syncthreads(); else __syncwarp();
        if (k_block + STAGES - 1 < k_blocks) {
            load_weights(k_block + STAGES - 1);
            load_x(k_block + STAGES - 1);
        }
        copy_commit();
        if (LOADERS > 0 && warp >= WORKERS) continue;
        const uint32_t stage = base + k_block % STAGES * (W_BYTES + X_BYTES);
        uint32_t w[AHEAD][NT][4], x[AHEAD][MT][2];
        auto read = [&](int k) {
#pragma unroll
            for (int i = 0; i < NT; i++) {
                const int row = (warp_n * NT + i) * 16 + lane % 16;
                ldmatrix_x4(w[k % AHEAD][i], stage + k / 4 * BN * 128 + swizzled(row, k % 4 * 2 + lane / 16));
            }
            auto& to = x[k % AHEAD];
            if constexpr (MT == 1) {
                ldmatrix_x2(to[0][0], to[0][1], stage + W_BYTES + place(warp_m * 8 + lane % 8, 2 * k + lane / 8 % 2));
            } else {
#pragma unroll
                for (int j = 0; j < MT; j += 2) {
                    const int row = (warp_m * MT + j) * 8 + lane / 16 * 8 + lane % 8;
                    uint32_t r[4];
                    ldmatrix_x4(r, stage + W_BYTES + place(row, 2 * k + lane / 8 % 2));
                    to[j][0] = r[0], to[j][1] = r[1], to[j + 1][0] = r[2], to[j + 1][1] = r[3];
                }
            }
        };
#pragma unroll
        for (int k = 0; k < AHEAD - 1; k++) read(k);
#pragma unroll
        for (int k = 0; k < K_TILES; k++) {
            if (k + AHEAD - 1 < K_TILES) read(k + AHEAD - 1);
#pragma unroll
            for (int i = 0; i < NT; i++) {
#pragma unroll
                for (int j = 0; j < MT; j++) mma(sums[i][j], w[k % AHEAD][i], x[k % AHEAD][j][0], x[k % AHEAD][j][1]);
            }
        }
    }

    if (LOADERS > 0 && warp >= WORKERS) return;
    store(g, sums, n_first / 16 + warp_n * NT, m_first + warp_m * MT * 8);
}

#define GEMM_KERNEL(name, WN, WM, NT, MT, BK, STAGES, LOADERS, BLOCKS)                      \
    extern "C" __global__ void __launch_bounds__(32 * (WN * WM + LOADERS), BLOCKS)          \
        name(const __grid_constant__ Gemm g) {                                                   \
        gemm<WN, WM, NT, MT, BK, STAGES, LOADERS>(g);                                        \
    }

// For few rows and for many.
GEMM_KERNEL(gemm_16x8, 1, 1, 1, 1, 128, 8, 3, 1)
GEMM_KERNEL(gemm_16x16, 1, 2, 1, 1, 128, 6, 2, 1)
GEMM_KERNEL(gemm_16x32, 1, 4, 1, 1, 128, 5, 0, 1)
GEMM_KERNEL(gemm_32x64, 2, 4, 1, 2, 128, 3, 0, 1)
GEMM_KERNEL(gemm_64x64, 2, 2, 2, 4, 64, 4, 0, 1)
GEMM_KERNEL(gemm_128x128, 2, 4, 4, 4, 64, 3, 0, 2)
