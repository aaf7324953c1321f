// Products for few rows on compute capability 9.0, where only latency counts: the same sums as gemm.cu, in the same order, by
// warpgroup instructions.
//
// A block has N outputs of up to 64 rows. One warp has the copy engine fill a ring of stages (128 columns of k each), the
// weights' before the kernels before this one have ended; a warpgroup adds everything up. Where there are fewer rows than
// the instruction's 64, it reads what happens to be behind them, and nobody looks at those sums.
//
// N and K are multiples of 128. Grid: (N / 16 or N / 32, rows / 64); block: 160; dynamic shared memory: n_stages stages, 8 KiB
// to read from behind the last one, and 1 KiB for alignment.

#include "epilogue.cuh"
#include "hopper.cuh"

#if HOPPER

struct FewGemm {
    TensorMap x;  // [m][k], in boxes of 2 blocks by box_rows by 64 columns
    Gemm g;
    int box_rows, n_stages;
};

constexpr int MAX_STAGES = 16;

// STAGES: of the ring that most products of up to eight rows have.
template <int N, int STAGES>
__device__ __forceinline__ void multiply_few(const FewGemm& a) {
    const Gemm& g = a.g;
    extern __shared__ uint8_t shared[];
    const uint32_t base = (shared_address(shared) + 1023) / 1024 * 1024;
    __shared__ __align__(8) uint64_t barriers[2 * MAX_STAGES];
    const uint32_t full = shared_address(barriers), empty = full + MAX_STAGES * 8;
    const uint32_t x_bytes = a.box_rows * 128, w_bytes = N * 128, stage_bytes = 2 * (x_bytes + w_bytes);
    const int n_stages = a.n_stages, n_steps = g.k / 128, n_first = blockIdx.x * N, m_first = blockIdx.y * 64;
    if (threadIdx.x == 128) {
        for (int s = 0; s < n_stages; s++) {
            barrier_init(full + s * 8, 1);
            barrier_init(empty + s * 8, 1);
        }
        barrier_init_fence();
    }
    __syncthreads();
    allow_next();

    if (threadIdx.x >= 128) {
        if (threadIdx.x > 128) return;
        const uint8_t* weights = reinterpret_cast<const uint8_t*>(g.weights) +
                                 static_cast<size_t>(n_first / 128) * (g.k / 64) * 16384 + n_first % 128 * 128;
        auto load_weights = [&](int step, int slot) {
            const uint32_t to = base + slot * stage_bytes + 2 * x_bytes;
            barrier_expect(full + slot * 8, stage_bytes);
            for (int i = 0; i < 2; i++) {
                copy_bulk(to + i * w_bytes, weights + static_cast<size_t>(2 * step + i) * 16384, w_bytes, full + slot * 8);
            }
        };
        auto load_x = [&](int step, int slot) {
            copy_blocks(base + slot * stage_bytes, &a.x, 2 * step, m_first, full + slot * 8);
        };
        for (int s = 0; s < n_stages && s < n_steps; s++) load_weights(s, s);
        wait_for_previous();
        for (int s = 0; s < n_stages && s < n_steps; s++) load_x(s, s);
        uint32_t parity = 0;
        int slot = 0;
        for (int step = n_stages; step < n_steps; step++) {
            barrier_wait(empty + slot * 8, parity);
            load_weights(step, slot);
            load_x(step, slot);
            if (++slot == n_stages) slot = 0, parity ^= 1;
        }
        return;
    }

    float d[N / 2];
    // eight rows stand for all
    const uint64_t row_mask = a.box_rows == 8 ? ~(0x3FFFull << 32) : ~0ull;
    auto add_step = [&](int step, int slot, uint32_t parity, uint32_t x_bytes, uint64_t row_mask) {
        const uint32_t stage = base + slot * (2 * (x_bytes + w_bytes));
        barrier_wait(full + slot * 8, parity);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const uint64_t x = (operand(stage + i / 4 * x_bytes) & row_mask) + i % 4 * 2;
            const uint64_t w = operand(stage + 2 * x_bytes + i / 4 * w_bytes) + i % 4 * 2;
            wgmma_64(d, x, w, step > 0 || i > 0);
        }
        wgmma_commit();
    };
    auto give_back = [&](int slot) {
        wgmma_wait<1>();
        if (threadIdx.x == 0) barrier_arrive(empty + slot * 8);
    };
    if (a.box_rows == 8 && n_stages == STAGES) {
        // the usual ring, unrolled: the matrix unit would wait for descriptors of places that aren't constant
        constexpr uint32_t X_BYTES = 8 * 128;
        uint32_t parity = 0;
        for (int first = 0; first < n_steps; first += STAGES, parity ^= 1) {
#pragma unroll
            for (int slot = 0; slot < STAGES; slot++) {
                if (first + slot >= n_steps) break;
                add_step(first + slot, slot, parity, X_BYTES, ~(0x3FFFull << 32));
                if (first + slot > 0) give_back((slot + STAGES - 1) % STAGES);
            }
        }
    } else {
        uint32_t parity = 0;
        int slot = 0, before = 0;
        for (int step = 0; step < n_steps; step++) {
            add_step(step, slot, parity, x_bytes, row_mask);
            if (step > 0) give_back(before);
            before = slot;
            if (++slot == n_stages) slot = 0, parity ^= 1;
        }
    }
    wait_for_previous();
    wgmma_wait<0>();
    pin(d);

    // of 16 packed weights a thread has, for two rows, numbers 2q, 2q + 1, 8 + 2q and 9 + 2q: outputs 4q, 4q + 2, 4q + 1, 4q + 3
    const int lane = threadIdx.x % 32, column = lane % 4 * 4;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int row = threadIdx.x / 32 * 16 + lane / 4 + half * 8, m = m_first + row, at = 2 * half;
        if (row >= a.box_rows || m >= g.m) continue;
        if constexpr (N == 32) {
            if (g.epilogue == SWIGLU_F16) {
                // of two neighbouring tiles of gates and ups the first has the even, the second the odd outputs
                const float v[4] = {silu_times(d[at], d[at + 4]), silu_times(d[at + 8], d[at + 12]),
                                    silu_times(d[at + 1], d[at + 5]), silu_times(d[at + 9], d[at + 13])};
                store16(static_cast<real16*>(g.out) + static_cast<size_t>(m) * g.out_stride + n_first / 2 + column, v);
                continue;
            }
        }
#pragma unroll
        for (int i = 0; i < N / 16; i++) {
            float v[4] = {d[8 * i + at], d[8 * i + at + 4], d[8 * i + at + 1], d[8 * i + at + 5]};
            store_run(g, m, n_first + 16 * i + column, v);
        }
    }
}

#define FEW_KERNEL(name, N, STAGES)                                                                \
    extern "C" __global__ void __launch_bounds__(160) name(const __grid_constant__ FewGemm a) { \
        multiply_few<N, STAGES>(a);                                                                \
    }

FEW_KERNEL(gemm_few_16, 16, 16)
FEW_KERNEL(gemm_few_32, 32, 6)

#endif
