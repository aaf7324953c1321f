// Sliding-window attention over many queries on compute capability 9.0, for heads of 64: the same sums as in
// encoder_attention.cu, in the same order, by warpgroup instructions.
//
// A block has GROUPS * 64 queries of one head, a warpgroup 64 of them. One more warp brings keys and values into a ring of
// stages: by the copy engine those that are among the pass's rows, by its own copies those of the stream's ring.
//
// Grid: (tiles of GROUPS * 64 queries, heads); block: 128 * (GROUPS + 1); dynamic shared memory:
// STAGES * 16384 + GROUPS * 8192 + 1024.

#include "attention.cuh"
#include "hopper.cuh"

#if HOPPER

struct WideAttention {
    TensorMap qkv;  // [rows][stride], boxes of 64 rows by 64 columns
    Attention a;
};

constexpr int GROUPS = 2, STAGES = 4, HD = 64;
constexpr int TILE = GROUPS * 64, BLOCK_BYTES = KEYS * HD * 2, STAGE_BYTES = 2 * BLOCK_BYTES;

// Adds a block of keys to what a warpgroup's 64 queries have merged. MASKED is chosen before the first product: with the
// branch between the wait and the first use of the scores, nvcc 13.0 made code that gave wrong results.
template <bool MASKED>
__device__ __forceinline__ void attend_wide(float (&out)[32], Merged (&merged)[2], const uint32_t (&queries)[4][4],
                                            uint32_t keys, int block, int query, const Attention& a) {
    Scores x;
    float(&scores)[32] = *reinterpret_cast<float(*)[32]>(x.s);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) wgmma_64x64<false>(scores, queries[k], operand(keys) + k * 2, k > 0);
    wgmma_commit();
    wgmma_wait<0>();
    pin(scores);
    if (MASKED) mask(x, block * KEYS, query, a.window);
    weigh(x, a.scale);
    uint32_t weights[4][4];
#pragma unroll
    for (int k = 0; k < 4; k++) as_operand(weights[k], x, k);
    float found[32];
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < 4; k++) {
        wgmma_64x64<true>(found, weights[k], operand(keys + BLOCK_BYTES) + k * 128, k > 0);
    }
    wgmma_commit();
    Shrink shrink[2];
#pragma unroll
    for (int i = 0; i < 2; i++) shrink[i] = merge(merged[i], x.highest[i], x.total[i]);
    wgmma_wait<0>();
    pin(found);
#pragma unroll
    for (int i = 0; i < 32; i++) out[i] = merge_output(out[i], found[i], shrink[i / 2 % 2]);
}

__device__ __forceinline__ void attention_wide(const WideAttention& wide) {
    const Attention& a = wide.a;
    extern __shared__ uint8_t shared[];
    const uint32_t base = (shared_address(shared) + 1023) / 1024 * 1024, all_queries = base + STAGES * STAGE_BYTES;
    __shared__ __align__(8) uint64_t barriers[2 * STAGES + 1];
    const uint32_t full = shared_address(barriers), empty = full + STAGES * 8, ready = empty + STAGES * 8;
    const int thread = threadIdx.x, lane = thread % 32;
    if (thread == 0) {
        for (int s = 0; s < STAGES; s++) {
            barrier_init(full + s * 8, 32);
            barrier_init(empty + s * 8, GROUPS * 4);
        }
        barrier_init(ready, 1);
        barrier_init_fence();
    }
    __syncthreads();
    allow_next();
    wait_for_previous();

    const int2 tile = a.tiles[blockIdx.x];
    const Segment s = a.segments[tile.x];
    const int n_queries = min(TILE, s.n_rows - tile.y);
    const int first_query = s.position + tile.y, last_query = first_query + n_queries - 1;
    const int oldest = max(0, first_query - a.window + 1);
    const int head = blockIdx.y, channel = head / a.group * HD;
    const int first_block = oldest / KEYS, last_block = last_query / KEYS;
    uint32_t slot = 0, parity = 0;
    auto advance = [&] {
        if (++slot == STAGES) slot = 0, parity ^= 1;
    };

    if (thread < 128) {
        fewer_registers<24>();
        if (thread >= 32) return;
        if (lane == 0) {
            barrier_expect(ready, GROUPS * BLOCK_BYTES);
            for (int g = 0; g < GROUPS; g++) {
                copy_box(all_queries + g * BLOCK_BYTES, &wide.qkv, head * HD, s.first_row + tile.y + g * 64, ready);
            }
        }
        for (int block = first_block; block <= last_block; block++) {
            barrier_wait(empty + slot * 8, parity ^ 1);
            const uint32_t keys = base + slot * STAGE_BYTES, loaded = full + slot * 8;
            if (block * KEYS >= s.position) {
                // rows beyond the segment are another's, or zeros: numbers in any case, and masked
                if (lane == 0) {
                    const int row = s.first_row + block * KEYS - s.position;
                    barrier_expect(loaded, STAGE_BYTES);
                    copy_box(keys, &wide.qkv, a.q_dim + channel, row, loaded);
                    copy_box(keys + BLOCK_BYTES, &wide.qkv, a.q_dim + a.kv_dim + channel, row, loaded);
                } else {
                    barrier_arrive(loaded);
                }
            } else {
                const KeySource source(a, s, channel, block);
                for (int c = lane; c < KEYS * 8; c += 32) {
                    const int row = c / 8, chunk = c % 8, at = block * KEYS + row;
                    const bool valid = at >= oldest && at <= last_query;
                    const real16* key = source.key(row, at) + chunk * 8;
                    copy_async(keys + swizzled(row, chunk), key, valid);
                    copy_async(keys + BLOCK_BYTES + swizzled(row, chunk), key + source.value_offset(at), valid);
                }
                asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(loaded) : "memory");
            }
            advance();
        }
        copy_commit();
        copy_wait<0>();
        return;
    }

    more_registers<104>();
    const int group = thread / 128 - 1, warp = thread / 32 % 4;
    const int own_first = first_query + group * 64, own = own_first + warp * 16 + lane / 4;
    const int own_oldest_block = max(0, own_first - a.window + 1) / KEYS, own_last_block = (own_first + 63) / KEYS;
    barrier_wait(ready, 0);
    uint32_t queries[4][4];
#pragma unroll
    for (int k = 0; k < 4; k++) {
        const uint32_t from = all_queries + group * BLOCK_BYTES;
        ldmatrix_x4(queries[k], from + swizzled(warp * 16 + lane % 16, 2 * k + lane / 16));
    }

    float out[32] = {};
    Merged merged[2];
    for (int block = first_block; block <= last_block; block++) {
        barrier_wait(full + slot * 8, parity);
        if (block >= own_oldest_block && block <= own_last_block) {
            const uint32_t keys = base + slot * STAGE_BYTES;
            if (block * KEYS < s.position) fence_async();
            if (block * KEYS + KEYS - 1 > own_first || block * KEYS <= own_first + 63 - a.window) {
                attend_wide<true>(out, merged, queries, keys, block, own, a);
            } else {
                attend_wide<false>(out, merged, queries, keys, block, own, a);
            }
        }
        // every warp for itself: where a group leaves a block out, nothing keeps its warps together, and one that has not seen
        // a stage's phase end before the next one does waits forever
        __syncwarp();
        if (lane == 0) barrier_arrive(empty + slot * 8);
        advance();
    }

#pragma unroll
    for (int i = 0; i < 2; i++) {
        const float total = row_total(merged[i].total);
        const int query = group * 64 + warp * 16 + lane / 4 + i * 8;
        if (query >= n_queries) continue;
        real16* row = a.out + static_cast<size_t>(s.first_row + tile.y + query) * a.out_stride + head * HD;
#pragma unroll
        for (int d = 0; d < 8; d++) {
            *reinterpret_cast<uint32_t*>(row + d * 8 + 2 * (lane % 4)) =
                pack16(__fdiv_rn(out[d * 4 + 2 * i], total), __fdiv_rn(out[d * 4 + 2 * i + 1], total));
        }
    }
}

extern "C" __global__ void __launch_bounds__(128 * (GROUPS + 1), 2)
    encoder_attention_wide(const __grid_constant__ WideAttention a) {
    attention_wide(a);
}

#endif
