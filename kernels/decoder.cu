// One decoder pass in one persistent kernel: embeddings, all layers, LM head and top-1, for up to 128 rows.
//
// A row is one position of one stream. Rows of a pass may belong to any number of streams; those of one stream are consecutive
// positions in consecutive rows.
//
// Shape of the machine. One block per multiprocessor, all resident (cooperative launch), walks the phases
//     embed, then per layer: qkv, attention, wo, w13, w2, and at the end the head
// with a grid barrier between them. Any range of phases can be launched alone, with the same results. Eight warps compute;
// a ninth streams weights through a ring of 12 KiB stages in shared memory, across the borders of phases: weights do not
// depend on anything, so the next matrices arrive while barriers, norms and attention happen.
//
// Products. y[N, M] = W[N, K] x[K, M] with mma.m16n8k16: weights are the left operand (16 rows of W), rows of the pass are
// the columns of the right one. A block takes every n-th tile of 16 weight rows; its eight warps split K (warp w takes the
// pieces of 64 k with index w, w + 8, ... of the slice) and their sums are added in the warps' order through shared memory.
// With many rows, on Hopper, the warps share out tiles and rows instead (decoder_wide.cuh), with the same sums.
// wo and w2 have too few tiles to fill the machine, so K is cut in two slices for two blocks: those of a cluster, which
// exchange their sums (sm_90 on); otherwise the last block to finish a tile adds the slices in their order. Nothing of this
// depends on the number of rows, so a row's bits depend neither on how many rows share the pass nor on which.
//
// Norms. Whoever makes the residual stream h stores h * weight * factor as F16, and the sums of squares of each 16 features.
// The reader multiplies its result by 1 / rms / factor. That is the normed product with the scalar pulled out; `factor` is
// the power of two below the last norm's 1 / rms, which keeps h near 1 in F16 and changes no digit.
//
// Layouts (K is padded to a multiple of 64 with zeros)
//     weights      12 bits, see e4m7.cuh: they are widened to F16 on their way to the matrix unit, which changes no digit, and
//                  a row's scale multiplies its sums. wqkv: rows of wq, wk, wv one after the other. w13: tile j holds rows
//                  8j .. 8j+7 of w1, then those of w3. The head is the token embedding table in the same layout, which is
//                  also where embeddings are taken from. In 8 bits it is as `quantise_rows` in decoder_pack.cu leaves it.
//                  Wide kernels read all but the embeddings as F16, see `widen_tiles` there.
//     activations  F16, [K / 32][MAX_ROWS][32]

#include <type_traits>

#include "decoder_attention.cuh"
#include "decoder_ring.cuh"
#include "decoder_rows.cuh"
#include "decoder_wide.cuh"

// A number that is known to the compiler, as an argument.
template <int I>
using Index = std::integral_constant<int, I>;

// How threads are dealt to (tile, row) of a round's sums: rows padded to all that the kernel takes, or, of eight, to a power of
// two.
template <int NT>
struct RowPlaces {
    int shift, padded;
    __device__ __forceinline__ explicit RowPlaces(int rows) {
        shift = 32 - __clz(max(rows, 2) - 1);
        padded = NT == 1 ? 1 << shift : NT * 8;
    }
    __device__ __forceinline__ void split(int i, int& row, int& tile) const {
        tile = NT == 1 ? i >> shift : static_cast<uint32_t>(i) / (NT * 8);
        row = NT == 1 ? i & (padded - 1) : static_cast<uint32_t>(i) % (NT * 8);
    }
};

// NT: tiles of 8 rows (the pass has at most 8 * NT rows). TG: tiles of 16 weight rows that a warp carries at once; with
// TG = 1 a warp keeps its whole part of x in registers and goes through its tiles one by one, otherwise it reads x once for
// every TG tiles. WIDE: for many rows, see decoder_wide.cuh; the block carries TG tiles then.
//
// Grid: one block per multiprocessor, all resident. Block: BLOCK. Dynamic shared memory, 128-byte aligned: SHARED_BYTES +
// sum_bytes + exchange_bytes (0 below sm_90, where there are no clusters) + stages of the ring.
template <int NT, int TG, bool INT8_HEAD, bool WIDE>
__device__ __forceinline__ void decoder_pass(const DecoderPass& p) {
    constexpr int STEPS = 9;  // pieces of x that a warp keeps in registers
    extern __shared__ __align__(128) char shared[];
    Shared& s = *reinterpret_cast<Shared*>(shared);
    char* sum_area = shared + SHARED_BYTES;
    float* reduce = reinterpret_cast<float*>(sum_area);
#if BULK_COPY
    float* exchange = reinterpret_cast<float*>(sum_area + p.sum_bytes);  // two halves
    const uint32_t exchange_barrier = shared_address(&s.barriers[2 * MAX_STAGES]);
    const uint32_t x_barrier = exchange_barrier + 8;
    int exchanges = 0;
#endif
    RingOf<NT, TG, WIDE> ring(sum_area + p.sum_bytes + p.exchange_bytes);
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;

    if (tid == 0) {
        ring.initialise(p);
#if BULK_COPY
        barrier_init(exchange_barrier, 1);
        barrier_init(x_barrier, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    }
    __syncthreads();
#if BULK_COPY
    cluster_barrier();
#endif
    if (warp >= WARPS) {
        give_registers();
#if BULK_COPY
        if constexpr (WIDE) {
            if (warp == WARPS) ring.template fill_weights<INT8_HEAD>(p, lane);
            if (warp == WARPS + 1) ring.template fill_x<INT8_HEAD>(p, lane, x_barrier);
            return;
        }
#endif
        if constexpr (!WIDE) {
            if (warp == WARPS) ring.template fill<TG, INT8_HEAD>(p, lane);
        }
        return;
    }
    take_registers();

    const int all_rows = p.shape[0], n_groups = p.shape[1], head_rows = p.shape[2];
    read_pass(p, s, all_rows, n_groups, tid);

    // of the row of which a thread finishes features of wo, where all of them are dealt out at once
    const float* own_ffn_scale = nullptr;
    if constexpr (NT == 1) {
        int row, local;
        RowPlaces<NT>(all_rows).split(tid >> 2, row, local);
        if (row < all_rows) own_ffn_scale = p.rows[row].ffn_scale;
    }

    uint32_t target = 0;
    for (int phase = p.phase_begin; phase < p.phase_end; phase++) {
        const Phase kind = phase_kind(p, phase);
        const int layer = (phase - 1) / LAYER_PHASES;
        if (phase > p.phase_begin) {
#if BULK_COPY
            if constexpr (WIDE) fence_copies();
#endif
            grid_arrive(p.counters), target += gridDim.x;
        }
        if (kind == EMBED) {
            embed(p, all_rows);
            continue;
        }
        if (kind == ATTENTION) {
            const int units = s.prefix[n_groups] * p.n_kv_heads;
            const int team = warp / TEAM_WARPS, n_teams = gridDim.x * (WARPS / TEAM_WARPS);
            // a team's unit of those from `first` on, or `units` or more where it has none: both teams of a block take one
            // where there are more units than blocks; otherwise only first teams do, and no block has more than one
            auto unit_from = [&](int first, int of) {
                if (units - first > static_cast<int>(gridDim.x)) return first + blockIdx.x * (WARPS / TEAM_WARPS) + of;
                return of == 0 ? first + blockIdx.x : units;
            };
            // teams differ in nothing but the last round
            const int last = (units - 1) / n_teams * n_teams;
            if (unit_from(last, 0) < units && unit_from(last, team) >= units) without_unit(team);
            int first = 0, u = unit_from(first, team);
            AttentionUnit unit;
            // found before the other blocks are waited for, where that doesn't cost registers that products lack
            constexpr bool EARLY = NT <= 4 || !TRADE_REGISTERS;
            if (EARLY && u < units) unit = attention_unit_of(p, s, n_groups, layer, u);
            if (phase > p.phase_begin) grid_wait(p.counters, target);
            if (!EARLY && u < units) unit = attention_unit_of(p, s, n_groups, layer, u);
            while (u < units) {
                attention_unit(p, unit, sum_area, team, warp % TEAM_WARPS, lane);
                u = unit_from(first += n_teams, team);
                if (u < units) unit = attention_unit_of(p, s, n_groups, layer, u);
            }
            if (s.prefix[n_groups] > n_groups) {
                // some row's chunks have to be added
                grid_arrive(p.counters), target += gridDim.x;
                grid_wait(p.counters, target);
                combine_chunks(p, s, all_rows, warp, lane);
            }
            continue;
        }
        const Share share = share_of<INT8_HEAD, WIDE>(p, phase, kind);
        const int rows = kind == HEAD ? head_rows : all_rows;
        const real16* x = kind == WO ? p.attended : kind == W2 ? p.activated : p.normed;
        const int piece0 = share.begin + warp;
        const bool adds = kind == WO || kind == W2, normed = !adds;
        // counted from the first layer's: the norm that the product's input has been through, or its output will go through
        const int norm = kind == HEAD ? 2 * p.n_layers : 2 * layer + (kind == W13 || kind == WO) + 2 * (kind == W2);
        const float* norm_weight = kind == WO                ? p.layers[layer].ffn_norm
                                   : layer + 1 == p.n_layers ? p.final_norm
                                                             : p.layers[layer + 1].attention_norm;
        const RowPlaces<NT> places(rows);
        const int tile_floats = places.padded * 16;
        // tiles whose sums fit in shared memory at once, each in so many parts
        constexpr int PARTS = WIDE ? 1 : WARPS;
        const int round_tiles = p.sum_bytes / (PARTS * 4) / tile_floats;

        // Fragments of x: lane (g, t) holds k = 8t .. 8t+7 of each 32, of row 8i + g. Where there may be many, rows that the pass
        // lacks are read too: looking which they are takes longer, and nobody keeps their sums.
        struct Inputs {
            uint4 of[NT][2];
        };
        const real16* own_x = x + (static_cast<size_t>(piece0) * 2 * MAX_ROWS + g) * 32 + t * 8;
        auto load_x = [&](Inputs& b, int step) {
            const bool valid = step >= 0 && piece0 + step * WARPS < share.end;
            const real16* from = own_x + static_cast<ptrdiff_t>(step) * (WARPS * 2 * MAX_ROWS * 32);
            auto set = [&](auto value) {
#pragma unroll
                for (int i = 0; i < NT; i++) {
#pragma unroll
                    for (int half = 0; half < 2; half++) b.of[i][half] = value(i, (half * MAX_ROWS + i * 8) * 32);
                }
            };
            const uint4 zero = make_uint4(0, 0, 0, 0);
            if constexpr (NT == 1) {
                set([&](int i, int at) { return valid && i * 8 + g < rows ? load_fresh(from + at) : zero; });
            } else if (valid) {
                set([&](int, int at) { return load_fresh(from + at); });
            } else {
                set([&](int, int) { return zero; });
            }
        };
        auto clear = [&](float (&acc)[NT][4]) {
#pragma unroll
            for (int j = 0; j < NT; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) acc[j][e] = 0.0f;
            }
        };
        // Keeps sums of rows from row0 on, the part'th of a tile of the round.
        auto store_sums = [&](const auto& acc, int part, int local, int row0) {
            float* own = reduce + (local * PARTS + part) * tile_floats;
#pragma unroll
            for (int j = 0; j < static_cast<int>(sizeof(acc) / sizeof(acc[0])); j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int row = row0 + j * 8 + t * 2 + (e & 1);
                    if (NT > 1 || row < rows) own[sum_index(row, g + (e >> 1) * 8)] = acc[j][e];
                }
            }
        };
        // What the end of wo and w2 adds to and multiplies with. When every thread has at most four elements, they are
        // loaded before the products, and so are rows' scales and the rotations of qkv; nothing waits for them before the end.
        struct Addend {
            float4 residual, weight, factor;
        };
        auto scales_of = [&](int n) { return *reinterpret_cast<const float4*>(share.scales + n); };
        auto addend = [&](int row, int n, const float* ffn_scale) {
            const size_t at = static_cast<size_t>(row) * p.width + n;
            Addend a;
            a.residual = __ldcg(reinterpret_cast<const float4*>(p.residual + at));
            a.weight = *reinterpret_cast<const float4*>(norm_weight + n);
            a.factor = make_float4(1.0f, 1.0f, 1.0f, 1.0f);
            if (kind == WO) {
                a.factor = *reinterpret_cast<const float4*>(ffn_scale + static_cast<size_t>(layer) * p.width + n);
            }
            return a;
        };
        auto turns = [&](int row, int n) {
            return __ldcg(reinterpret_cast<const float4*>(p.rope + row * (HEAD_DIM / 2) + n % HEAD_DIM / 2));
        };
        const bool early = NT == 1 && share.count * places.padded * 4 <= THREADS && share.count <= round_tiles;
        // zeros, so that nothing has to be kept from phase to phase
        Addend ready{};
        float4 ready_turns = make_float4(0.0f, 0.0f, 0.0f, 0.0f), ready_scales = ready_turns;
        // Adds the parts of the sums of this block's tiles begin .. begin + tiles - 1 and does what the phase does with them: four
        // features of a row a thread.
        auto finish = [&](int begin, int tiles) {
            auto sum_of = [&](int local, int row, int quad) {
                const float* from = reduce + local * PARTS * tile_floats + sum_index(row, quad * 4);
                float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
                for (int w = 0; w < PARTS; w++) {
                    sum = added(sum, *reinterpret_cast<const float4*>(from + w * tile_floats));
                }
                return sum;
            };
            auto add_to_residual = [&](const Addend& a, float4 scales, int row, int n, float4 sum) {
                const int to = norm == 2 * p.n_layers ? s.head_row[row] : row;
                float4 weight = scaled(a.weight, power_below(s.inverse[row]));
                if (kind == WO) {
                    weight = multiplied(weight, a.factor);
                }
                store_residual(p, norm, row, to, n, added(a.residual, multiplied(sum, scales)), weight);
            };
            block_sync();
            const int items = tiles * places.padded * 4;
#if BULK_COPY
            // two halves: the other block is at most one exchange ahead
            float4* received = reinterpret_cast<float4*>(exchange + (exchanges & 1) * (p.exchange_bytes / 8));
            // wide kernels, whose sums take more room, leave none for the tiles that stay here
            auto place = [&](int item) {
                const int of_tile = places.padded * 4;
                return WIDE ? item / (2 * of_tile) * of_tile + item % of_tile : item;
            };
            if (adds && tid == 0) {
                barrier_expect(exchange_barrier, (tiles + ((begin & 1) == share.slice)) / 2 * rows * 64);
            }
#endif
            for (int base = 0; base < items; base += THREADS) {
                const int item = base + tid, quad = item & 3;
                int row, local;
                places.split(item >> 2, row, local);
                const bool valid = local < tiles && row < rows;
                if (!valid) row = local = 0;
                const int tile = share.first + (begin + local) * share.step, n = tile * 16 + quad * 4;
                if (adds) {
                    if (!valid) continue;
#if BULK_COPY
                    // the two slices are the two blocks of a cluster: each finishes every other tile
                    if (((begin + local) & 1) != share.slice) {
                        store_to_peer(&received[place(item)].x, exchange_barrier, share.slice ^ 1, sum_of(local, row, quad));
                    }
#else
                    const size_t at = ((static_cast<size_t>(share.slice) * share.tiles + tile) * MAX_ROWS + row) * 16 + quad * 4;
                    *reinterpret_cast<float4*>(p.slices + at) = sum_of(local, row, quad);
#endif
                    continue;
                }
                const float4 scales = early ? ready_scales : scales_of(n);
                const float4 y = scaled(multiplied(sum_of(local, row, quad), scales), s.scale[row]);
                if (WIDE || kind == QKV) {
                    if (!valid) continue;
                    const int n_query = p.n_heads * HEAD_DIM, n_key = p.n_kv_heads * HEAD_DIM;
                    const int n_slots = s.chunks[row] * CHUNK, slot = s.position[row] % n_slots;
                    real16* keys = s.cache[row] + 2 * layer * cache_plane(p, n_slots);
                    if (n < n_query + n_key) {
                        const float4 turn = early ? ready_turns : turns(row, n);
                        const float2 a = rotate(y.x, y.y, make_float2(turn.x, turn.y));
                        const float2 b = rotate(y.z, y.w, make_float2(turn.z, turn.w));
                        real16* to = n < n_query
                                         ? p.query + static_cast<size_t>(row) * n_query + n
                                         : keys + (static_cast<size_t>((n - n_query) / HEAD_DIM) * n_slots + slot) * HEAD_DIM +
                                               n % HEAD_DIM;
                        *reinterpret_cast<uint2*>(to) = make_uint2(pack16(a.x, a.y), pack16(b.x, b.y));
                    } else {
                        const int head = (n - n_query - n_key) / HEAD_DIM;
                        real16* values = keys + cache_plane(p, n_slots) + static_cast<size_t>(head) * n_slots * HEAD_DIM;
                        values += (static_cast<size_t>(slot >> 5) * HEAD_DIM + n % HEAD_DIM) * 32 + (slot & 31);
                        values[0] = to16(y.x), values[32] = to16(y.y), values[64] = to16(y.z), values[96] = to16(y.w);
                    }
                } else if (kind == W13) {
                    const float4 up = make_float4(__shfl_down_sync(~0u, y.x, 2), __shfl_down_sync(~0u, y.y, 2),
                                                  __shfl_down_sync(~0u, y.z, 2), __shfl_down_sync(~0u, y.w, 2));
                    if (valid && quad < 2) {
                        const float4 out = make_float4(silu_times(y.x, up.x), silu_times(y.y, up.y), silu_times(y.z, up.z),
                                                       silu_times(y.w, up.w));
                        store_activation(p.activated, row, tile * 8 + quad * 4, out);
                    }
                } else {
                    rank_quad(p, s, row, n, y, valid, quad);
                }
            }
            if (!adds) return;
#if BULK_COPY
            bool arrived = false;  // the other block's sums; what they are added to is on its way by then
            for (int item = tid; item < items; item += THREADS) {
                const int quad = item & 3;
                int row, local;
                places.split(item >> 2, row, local);
                if (local >= tiles || row >= rows || ((begin + local) & 1) != share.slice) continue;
                const int n = (share.first + (begin + local) * share.step) * 16 + quad * 4;
                const Addend a = early ? ready : addend(row, n, p.rows[row].ffn_scale);
                const float4 scales = early ? ready_scales : scales_of(n);
                if (!arrived) barrier_wait(exchange_barrier, exchanges & 1);
                arrived = true;
                add_to_residual(a, scales, row, n, added(sum_of(local, row, quad), received[place(item)]));
            }
            if (!arrived) barrier_wait(exchange_barrier, exchanges & 1);
            exchanges++;
#else
            // the last slice to arrive at a tile adds them all
            block_sync();
            if (tid < tiles) {
                uint32_t* counter = p.counters + 4 + share.first + (begin + tid) * share.step;
                const bool last = add_acquire_release(counter, 1u) == static_cast<uint32_t>(SPLITS - 1);
                if (last) *counter = 0;
                s.last[tid] = last;
            }
            block_sync();
            for (int item = tid; item < items; item += THREADS) {
                const int quad = item & 3;
                int row, local;
                places.split(item >> 2, row, local);
                if (local >= tiles || row >= rows || !s.last[local]) continue;
                const int tile = share.first + (begin + local) * share.step;
                float4 sum = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                for (int i = 0; i < SPLITS; i++) {
                    const size_t at = ((static_cast<size_t>(i) * share.tiles + tile) * MAX_ROWS + row) * 16 + quad * 4;
                    sum = added(sum, __ldcg(reinterpret_cast<const float4*>(p.slices + at)));
                }
                const int n = tile * 16 + quad * 4;
                add_to_residual(early ? ready : addend(row, n, p.rows[row].ffn_scale), early ? ready_scales : scales_of(n), row, n, sum);
            }
#endif
        };

        const int steps = (share.end - share.begin + WARPS - 1) / WARPS;
        // kernels for more rows are no faster with it
        if (NT <= 2 && kind == QKV) prefetch_units(p, s, n_groups, layer);
        // the end of the phase should not wait for device memory
        for (int i = tid; i < share.count; i += THREADS) {
            const int n = (share.first + i * share.step) * 16;
            prefetch_l2(share.scales + n, 64);
            if (adds) prefetch_l2(norm_weight + n, 64);
            if (kind == WO) prefetch_l2(p.rows[0].ffn_scale + static_cast<size_t>(layer) * p.width + n, 64);
        }
        if (phase > p.phase_begin) grid_wait(p.counters, target);
#if BULK_COPY
        if constexpr (WIDE) {
            if (tid == 0) barrier_arrive(x_barrier);
        }
#endif
        Squares<NT> squares;
        auto scale_rows = [&]() {
            squares.load(p, norm, rows, warp, lane);
            row_scales(p, s, squares, norm, rows, warp, lane);
        };
        // the phase's products, with weights of 16 bits or 8
        auto multiply = [&](auto int8) {
            constexpr bool INT8 = decltype(int8)::value;
            // A warp that has no piece of a stage multiplies what lies there, which is finite whatever it is, with zeros.
            if constexpr (WIDE) {
#if BULK_COPY
                using Plan = WidePlan<NT, TG>;
                const int row_warp = warp % Plan::ROW_WARPS, tile_warp = warp / Plan::ROW_WARPS;
                if (normed) scale_rows();
                for (int group = 0; group < share.count; group += TG) {
                    const int group_tiles = min(TG, share.count - group);
                    float total[Plan::TW][Plan::NW][4];
                    ring.template multiply<INT8>(p, share, group_tiles, rows, warp, lane, total);
                    if (kind == W13 || kind == HEAD) {
                        block_sync();  // the rows' scales are there
                        auto tile_at = [&](int i) {
                            return share.first + (group + i * Plan::TILE_WARPS + tile_warp) * share.step;
                        };
                        const int n_own = (group_tiles - tile_warp + Plan::TILE_WARPS - 1) / Plan::TILE_WARPS;
                        if (kind == W13) {
                            store_gated<Plan>(p, s, share.scales, total, n_own, rows, row_warp, lane, tile_at);
                        } else {
                            rank_logits<Plan>(p, s, share.scales, total, n_own, rows, row_warp, lane, tile_at);
                        }
                        continue;
                    }
                    for (int round = 0; round < group_tiles; round += round_tiles) {
                        const int tiles = min(round_tiles, group_tiles - round);
                        block_sync();  // the sums of the round before have been read
#pragma unroll
                        for (int i = 0; i < Plan::TW; i++) {
                            const int local = i * Plan::TILE_WARPS + tile_warp - round;
                            if (local >= 0 && local < tiles) store_sums(total[i], 0, local, row_warp * Plan::NW * 8);
                        }
                        finish(group + round, tiles);
                    }
                }
#endif
            } else if constexpr (TG == 1) {
                // Weights of a stage are read while the matrix unit works on those of the stage before.
                //
                // x of the last `n` of STEPS steps, and then those steps: what comes before is jumped over
                Inputs b[STEPS];
                auto load_steps = [&](int first, int n) {
#pragma unroll
                    for (int i = 0; i < STEPS; i++) {
                        const int step = i - (STEPS - n);
                        load_x(b[i], step < 0 ? step : first + step);
                    }
                };
                load_steps(0, min(steps, STEPS));
                if (normed) squares.load(p, norm, rows, warp, lane);
                if (early) {
                    int row, local;
                    places.split(tid >> 2, row, local);
                    const int n = (share.first + local * share.step) * 16 + (tid & 3) * 4;
                    if (local < share.count && row < rows) {
                        ready_scales = scales_of(n);
                        if (adds) ready = addend(row, n, own_ffn_scale);
                        if (kind == QKV) ready_turns = turns(row, n);
                    }
                }
                if (share.count == 0) {
                    if (normed) row_scales(p, s, squares, norm, rows, warp, lane);
                    return;
                }
                Packed<INT8> packed[2];
                int held = ring.take(p, warp, lane, packed[1]);
                for (int begin = 0; begin < share.count; begin += round_tiles) {
                    const int tiles = min(round_tiles, share.count - begin);
                    if (begin > 0) block_sync();  // the sums of the round before have been read
                    for (int local = 0; local < tiles; local++) {
                        float acc[NT][4];
                        clear(acc);
                        for (int first = 0; first < steps; first += STEPS) {
                            const int n = min(STEPS, steps - first);
                            if (steps > STEPS) load_steps(first, n);
                            const bool more = begin + local + 1 < share.count || first + n < steps;
                            auto step = [&](auto index) {
                                constexpr int I = decltype(index)::value;
                                int next = 0;
                                if (I + 1 < STEPS || more) next = ring.take(p, warp, lane, packed[I + 1 < STEPS ? (I + 1) & 1 : 1]);
#pragma unroll
                                for (int half = 0; half < 2; half++) {
                                    uint4 w[2];
                                    fragments<INT8>(packed[I & 1], half, w);
#pragma unroll
                                    for (int j = 0; j < NT; j++) mma_k32(acc[j], w, b[I].of[j][half]);
                                }
                                Ring::release(held);
                                held = next;
                            };
                            static_assert(STEPS == 9, "the cases below");
                            if (n & 1) packed[0] = packed[1];
                            switch (STEPS - n) {
                                case 0: step(Index<0>{}); [[fallthrough]];
                                case 1: step(Index<1>{}); [[fallthrough]];
                                case 2: step(Index<2>{}); [[fallthrough]];
                                case 3: step(Index<3>{}); [[fallthrough]];
                                case 4: step(Index<4>{}); [[fallthrough]];
                                case 5: step(Index<5>{}); [[fallthrough]];
                                case 6: step(Index<6>{}); [[fallthrough]];
                                case 7: step(Index<7>{}); [[fallthrough]];
                                default: step(Index<8>{});
                            }
                        }
                        store_sums(acc, warp, local, 0);
                    }
                    if (normed && begin == 0) row_scales(p, s, squares, norm, rows, warp, lane);
                    finish(begin, tiles);
                }
            } else {
                // x of the next step comes while this one's is multiplied with, where there are registers for both
                constexpr bool AHEAD = NT <= (TRADE_REGISTERS ? 4 : 2);
                Inputs even;
                [[maybe_unused]] Inputs odd;
                if (AHEAD) load_x(even, 0);
                // where there are registers for that, nobody waits for scales before the products
                constexpr bool LATE = TRADE_REGISTERS && NT <= 2;
                if (normed && (!LATE || share.count == 0)) {
                    scale_rows();
                } else if (normed) {
                    squares.load(p, norm, rows, warp, lane);
                }
                Packed<INT8> packed;
                for (int group = 0; group < share.count; group += TG) {
                    const int group_tiles = min(TG, share.count - group);
                    float acc[TG][NT][4];
#pragma unroll
                    for (int i = 0; i < TG; i++) clear(acc[i]);
                    auto step = [&](const Inputs& b) {
#pragma unroll
                        for (int tile = 0; tile < TG; tile++) {
                            if (tile >= group_tiles) continue;
                            const int held = ring.take(p, warp, lane, packed);
#pragma unroll
                            for (int half = 0; half < 2; half++) {
                                uint4 w[2];
                                fragments<INT8>(packed, half, w);
#pragma unroll
                                for (int j = 0; j < NT; j++) mma_k32(acc[tile][j], w, b.of[j][half]);
                            }
                            Ring::release(held);
                        }
                    };
                    if constexpr (AHEAD) {
                        auto next = [&](int i) { return i + 1 < steps ? i + 1 : 0; };
                        for (int i = 0; i < steps; i += 2) {
                            load_x(odd, next(i));
                            step(even);
                            if (i + 1 == steps) {
                                even = odd;
                                break;
                            }
                            load_x(even, next(i + 1));
                            step(odd);
                        }
                    } else {
                        for (int i = 0; i < steps; i++) {
                            load_x(even, i);
                            step(even);
                        }
                    }
                    if (LATE && normed && group == 0) row_scales(p, s, squares, norm, rows, warp, lane);
                    for (int round = 0; round < group_tiles; round += round_tiles) {
                        const int tiles = min(round_tiles, group_tiles - round);
                        if (group + round > 0) block_sync();  // the sums of the round before have been read
#pragma unroll
                        for (int i = 0; i < TG; i++) {
                            if (i >= round && i < round + tiles) store_sums(acc[i], warp, i - round, 0);
                        }
                        finish(group + round, tiles);
                    }
                }
            }
        };
        if constexpr (INT8_HEAD) {
            if (kind == HEAD) {
                multiply(std::true_type{});
            } else {
                multiply(std::false_type{});
            }
        } else {
            multiply(std::false_type{});
        }
        if (kind == HEAD) {
            block_sync();
            if (tid < rows) atomicMax(&p.best[tid], s.best[tid]);
        }
    }

    // the last block to get here leaves the barrier as it found it
    block_sync();
    if (tid == 0 && add_acquire_release(p.counters + 1, 1u) == gridDim.x - 1) {
        p.counters[0] = 0, p.counters[1] = 0;
    }
}

#if BULK_COPY
#define CLUSTER __cluster_dims__(2, 1, 1)
#else
#define CLUSTER
#endif
#define DECODER_PASS(NAME, NT, TG, WIDE)                                        \
    extern "C" __global__ void __launch_bounds__(BLOCK, 1) CLUSTER             \
        decoder_pass_##NAME(const __grid_constant__ DecoderPass p) {           \
        decoder_pass<NT, TG, false, WIDE>(p);                                  \
    }                                                                          \
    extern "C" __global__ void __launch_bounds__(BLOCK, 1) CLUSTER             \
        decoder_pass_int8_##NAME(const __grid_constant__ DecoderPass p) {      \
        decoder_pass<NT, TG, true, WIDE>(p);                                   \
    }

// Up to 8, 16, 32, 48, 64 and 128 rows, each with a head of 16 bits and of 8. x is read again for every TG tiles; most blocks of a
// Hopper GPU have three of qkv, wo and w2 (of a hidden size of 3072). More would need registers that are not there: what a kernel
// keeps in local memory costs more than reading x again. The wide kernel reads x once for its TG tiles. The one for up to 8 rows
// keeps x in registers, of which a thread has too few without a trade: there the kernel for up to 16 rows is faster.
#if TRADE_REGISTERS
DECODER_PASS(1, 1, 1, false)
DECODER_PASS(2, 2, 3, false)
DECODER_PASS(4, 4, 3, false)
DECODER_PASS(6, 6, 3, false)
DECODER_PASS(8, 8, 2, false)
DECODER_PASS(wide, 16, 10, true)
#else
DECODER_PASS(2, 2, 3, false)
DECODER_PASS(4, 4, 3, false)
DECODER_PASS(6, 6, 2, false)
DECODER_PASS(8, 8, 2, false)
#endif
