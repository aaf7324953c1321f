// One decoder pass in one persistent kernel: embeddings, all layers, LM head and top-1, for up to 64 rows.
//
// A row is one position of one stream. Rows of a pass may belong to any number of streams; those of one stream are consecutive
// positions in consecutive rows.
//
// Shape of the machine. One block per multiprocessor, all resident (cooperative launch), walks the phases
//     embed, then per layer: qkv, attention, wo, w13, w2, and at the end the head
// with a grid barrier between them. Any range of phases can be launched alone, with the same results. Eight warps compute;
// a ninth streams weights through a ring of 16 KiB stages in shared memory, across the borders of phases: weights do not
// depend on anything, so the next matrices arrive while barriers, norms and attention happen.
//
// Products. y[N, M] = W[N, K] x[K, M] with mma.m16n8k16: weights are the left operand (16 rows of W), rows of the pass are
// the columns of the right one. A block takes every n-th tile of 16 weight rows; its eight warps split K (warp w takes the
// pieces of 64 k with index w, w + 8, ... of the slice) and their sums are added in the warps' order through shared memory.
// wo and w2 have too few tiles to fill the machine, so K is cut in two slices for two blocks: those of a cluster, which
// exchange their sums (sm_90 on); otherwise the last block to finish a tile adds the slices in their order. Nothing of this
// depends on the number of rows, so a row's bits depend neither on how many rows share the pass nor on which.
//
// Norms. Whoever makes the residual stream h stores h * weight * factor as F16, and the sums of squares of each 16 features.
// The reader multiplies its result by 1 / rms / factor. That is the normed product with the scalar pulled out; `factor` is
// the power of two below the last norm's 1 / rms, which keeps h near 1 in F16 and changes no digit.
//
// Layouts (F16; K is padded to a multiple of 64 with zeros)
//     weights      [N / 16][K / 32][16][32], N padded to 16 with zeros. wqkv: rows of wq, wk, wv one after the other.
//                  w13: tile j holds rows 8j .. 8j+7 of w1, then those of w3. The head is the token embedding table in
//                  the same layout, which is also where embeddings are taken from.
//     activations  [K / 32][MAX_ROWS][32]

#include "decoder_attention.cuh"

// What writes a row of the residual stream: also its form for the next product, and its squares. 16 features by 16 lanes.
__device__ __forceinline__ void store_residual(const DecoderPass& p, int norm, int row, int to, int n, float h, float weight,
                                               uint32_t mask) {
    p.residual[static_cast<size_t>(row) * p.width + n] = h;
    float square = __fmul_rn(h, h);
#pragma unroll
    for (int o = 8; o > 0; o >>= 1) square = __fadd_rn(square, __shfl_xor_sync(mask, square, o));
    if (to == NO_ROW) return;
    p.normed[activation_index(to, n)] = to16(__fmul_rn(h, weight));
    const int tiles = (p.dim + 15) / 16;
    if ((n & 15) == 0) p.squares[static_cast<size_t>((norm & 1) * MAX_ROWS + to) * tiles + n / 16] = square;
}

// x = audio + token embedding, and the pass's table of rotations. Also clears the results.
__device__ void embed(const DecoderPass& p, int rows) {
    const int tiles = (p.dim + 15) / 16, lane16 = threadIdx.x & 15;
    const uint32_t mask = 0xffffu << (threadIdx.x & 16);
    const int blocks32 = (p.dim + 63) / 64 * 2;
    for (int i = (blockIdx.x * THREADS + threadIdx.x) / 16; i < rows * tiles; i += gridDim.x * (THREADS / 16)) {
        const int row = i / tiles, n = i % tiles * 16 + lane16;
        const uint32_t id = p.rows[row].token;
        const float token =
            from16(p.head[((static_cast<size_t>(id >> 4) * blocks32 + (n >> 5)) * 16 + (id & 15)) * 32 + (n & 31)]);
        const float h = __fadd_rn(p.rows[row].audio[n], token);
        store_residual(p, 0, row, row, n, h, p.layers[0].attention_norm[n], mask);
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
        s.n_slots[tid] = row.n_slots;
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

// NT: tiles of 8 rows (the pass has at most 8 * NT rows). TG: tiles of 16 weight rows that a warp carries at once; with
// TG = 1 a warp keeps its whole part of x in registers and goes through its tiles one by one, otherwise it reads x once for
// every TG tiles, a piece ahead of its use.
//
// Grid: one block per multiprocessor, all resident. Block: BLOCK. Dynamic shared memory, 128-byte aligned: SHARED_BYTES +
// sum_bytes(NT) + stages * STAGE_BYTES, and EXCHANGE_BYTES more from sm_90 on, where two blocks form a cluster.
template <int NT, int TG>
__device__ __forceinline__ void decoder_pass(const DecoderPass& p) {
    constexpr int STEPS = 9;  // pieces of x that a warp keeps in registers
    extern __shared__ __align__(128) char shared[];
    Shared& s = *reinterpret_cast<Shared*>(shared);
    char* sum_area = shared + SHARED_BYTES;
    float* reduce = reinterpret_cast<float*>(sum_area);
#if BULK_COPY
    float* exchange = reinterpret_cast<float*>(sum_area + sum_bytes(NT));
    const uint32_t exchange_barrier = shared_address(&s.barriers[2 * MAX_STAGES]);
    int exchanges = 0;
    Ring ring{sum_area + sum_bytes(NT) + EXCHANGE_BYTES, 0, 0};
#else
    Ring ring{sum_area + sum_bytes(NT), 0, 0};
#endif
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;

    if (tid == 0) {
        Ring::initialise(p);
#if BULK_COPY
        barrier_init(exchange_barrier, 1);
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
        if (warp == WARPS) ring.fill<TG>(p, lane);
        return;
    }
    take_registers();

    const int all_rows = p.shape[0], n_groups = p.shape[1], head_rows = p.shape[2];
    read_pass(p, s, all_rows, n_groups, tid);

    uint32_t target = 0;
    for (int phase = p.phase_begin; phase < p.phase_end; phase++) {
        const Phase kind = phase_kind(p, phase);
        const int layer = (phase - 1) / LAYER_PHASES;
        if (phase > p.phase_begin) grid_arrive(p.counters), target += gridDim.x;
        if (kind == EMBED) {
            embed(p, all_rows);
            continue;
        }
        if (kind == ATTENTION) {
            const int units = s.prefix[n_groups] * p.n_kv_heads;
            int u = blockIdx.x;
            AttentionUnit unit;
            if (u < units) unit = attention_unit_of(p, s, layer, u);
            if (phase > p.phase_begin) grid_wait(p.counters, target);
            while (u < units) {
                if (u + gridDim.x < units) prefetch_unit(p, s, layer, u + gridDim.x);
                attention_unit(p, unit, sum_area, warp, lane);
                u += gridDim.x;
                if (u < units) unit = attention_unit_of(p, s, layer, u);
            }
            if (s.prefix[n_groups] > n_groups) {
                // some row's chunks have to be added
                grid_arrive(p.counters), target += gridDim.x;
                grid_wait(p.counters, target);
                combine_chunks(p, s, all_rows, warp, lane);
            }
            continue;
        }
        const Share share = share_of(p, phase, kind);
        const int rows = kind == HEAD ? head_rows : all_rows;
        const real16* x = kind == WO ? p.attended : kind == W2 ? p.activated : p.normed;
        const int piece0 = share.begin + warp;
        const bool adds = kind == WO || kind == W2, normed = !adds;
        // counted from the first layer's: the norm that the product's input has been through, or its output will go through
        const int norm = kind == HEAD ? 2 * p.n_layers : 2 * layer + (kind == W13 || kind == WO) + 2 * (kind == W2);
        const float* norm_weight = kind == WO                ? p.layers[layer].ffn_norm
                                   : layer + 1 == p.n_layers ? p.final_norm
                                                             : p.layers[layer + 1].attention_norm;
        const int tile_floats = ((rows + 1) & ~1) * 16;
        // tiles whose sums fit in shared memory at once
        const int round_tiles = min(min(sum_bytes(NT) / (WARPS * 4), EXCHANGE_BYTES / 8) / max(tile_floats, 1), MAX_ROWS);

        // Fragments of x: lane (g, t) holds k = 8t .. 8t+7 of each 32, of row 8i + g.
        auto load_x = [&](uint4 (&b)[NT][2], int piece) {
#pragma unroll
            for (int i = 0; i < NT; i++) {
#pragma unroll
                for (int half = 0; half < 2; half++) {
                    b[i][half] = i * 8 + g < rows && piece < share.end
                                     ? load_fresh(x + (static_cast<size_t>(piece * 2 + half) * MAX_ROWS + i * 8 + g) * 32 + t * 8)
                                     : make_uint4(0, 0, 0, 0);
                }
            }
        };
        auto multiply = [&](float (&acc)[NT][4], const uint4 (&b)[NT][2], bool mine) {
            const uint4* a = ring.wait(warp);
            if (mine) {
                const uint4 low0 = a[lane], high0 = a[32 + lane], low1 = a[64 + lane], high1 = a[96 + lane];
#pragma unroll
                for (int j = 0; j < NT; j++) mma_k32(acc[j], low0, high0, b[j][0]);
#pragma unroll
                for (int j = 0; j < NT; j++) mma_k32(acc[j], low1, high1, b[j][1]);
            }
            Ring::release(ring.slot, lane);
            ring.advance(p);
        };
        auto clear = [&](float (&acc)[NT][4]) {
#pragma unroll
            for (int j = 0; j < NT; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) acc[j][e] = 0.0f;
            }
        };
        auto store_sums = [&](const float (&acc)[NT][4], int local) {
            float* own = reduce + (warp * round_tiles + local) * tile_floats;
#pragma unroll
            for (int j = 0; j < NT; j++) {
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int row = j * 8 + t * 2 + (e & 1);
                    if (row < rows) own[sum_index(row, g + (e >> 1) * 8)] = acc[j][e];
                }
            }
        };
        // What the end of wo and w2 adds to and multiplies with. When every thread has at most one element, it is loaded
        // before the products, and so are the rotations of qkv.
        struct Addend {
            float residual, weight;
        };
        auto addend = [&](int row, int n) {
            Addend a{__ldcg(&p.residual[static_cast<size_t>(row) * p.width + n]),
                     __fmul_rn(norm_weight[n], power_below(s.inverse[row]))};
            if (kind == WO) {
                a.weight = __fmul_rn(a.weight, p.rows[row].ffn_scale[static_cast<size_t>(layer) * p.width + n]);
            }
            return a;
        };
        const bool early = NT == 1 && share.count * rows * 16 <= THREADS && share.count <= round_tiles;
        Addend ready{0.0f, 0.0f};
        float2 ready_turn = make_float2(0.0f, 0.0f);
        // Adds the warps' sums of this block's tiles begin .. begin + tiles - 1 and does what the phase does with them.
        auto finish = [&](int begin, int tiles) {
            auto sum_of = [&](int local, int row, int feature) {
                const float* from = reduce + local * tile_floats + sum_index(row, feature);
                float sum = 0.0f;
#pragma unroll
                for (int w = 0; w < WARPS; w++) sum = __fadd_rn(sum, from[w * round_tiles * tile_floats]);
                return sum;
            };
            auto add_to_residual = [&](int row, int n, float sum) {
                const Addend a = early ? ready : addend(row, n);
                const int to = norm == 2 * p.n_layers ? s.head_row[row] : row;
                store_residual(p, norm, row, to, n, __fadd_rn(a.residual, sum), a.weight, 0xffffu << (lane & 16));
            };
            block_sync();
            const int items = tiles * rows * 16;
#if BULK_COPY
            // two halves: the other block is at most one exchange ahead
            float* received = exchange + (exchanges & 1) * (EXCHANGE_BYTES / 8);
            if (adds && tid == 0) {
                barrier_expect(exchange_barrier, (tiles + ((begin & 1) == share.slice)) / 2 * rows * 64);
            }
#endif
            for (int base = 0; base < items; base += THREADS) {
                const int item = base + tid, feature = item & 15;
                const bool valid = item < items;
                const int row = valid ? (item >> 4) % rows : 0, local = valid ? (item >> 4) / rows : 0;
                const int tile = share.first + (begin + local) * share.step;
                if (adds) {
                    if (!valid) continue;
#if BULK_COPY
                    // the two slices are the two blocks of a cluster: each finishes every other tile
                    if (((begin + local) & 1) != share.slice) {
                        store_to_peer(received + item, exchange_barrier, share.slice ^ 1, sum_of(local, row, feature));
                    }
#else
                    p.slices[((static_cast<size_t>(share.slice) * share.tiles + tile) * MAX_ROWS + row) * 16 + feature] =
                        sum_of(local, row, feature);
#endif
                    continue;
                }
                const int n = tile * 16 + feature;
                const float y = __fmul_rn(sum_of(local, row, feature), s.scale[row]);
                if (kind == QKV) {
                    const float other = __shfl_xor_sync(~0u, y, 1);
                    const int n_query = p.n_heads * HEAD_DIM, n_key = p.n_kv_heads * HEAD_DIM;
                    if (!valid) continue;
                    const int n_slots = s.n_slots[row], slot = s.position[row] % n_slots;
                    real16* keys = s.cache[row] + 2 * layer * cache_plane(p, n_slots);
                    if (n < n_query + n_key) {
                        if (feature & 1) continue;
                        const float2 turned = rotate(y, other, early ? ready_turn : __ldcg(&p.rope[row * 64 + n % HEAD_DIM / 2]));
                        real16* to = n < n_query
                                         ? p.query + static_cast<size_t>(row) * n_query + n
                                         : keys + (static_cast<size_t>((n - n_query) / HEAD_DIM) * n_slots + slot) * HEAD_DIM +
                                               n % HEAD_DIM;
                        *reinterpret_cast<uint32_t*>(to) = pack16(turned.x, turned.y);
                    } else {
                        const int head = (n - n_query - n_key) / HEAD_DIM;
                        real16* values = keys + cache_plane(p, n_slots) + static_cast<size_t>(head) * n_slots * HEAD_DIM;
                        values[(static_cast<size_t>(slot >> 5) * HEAD_DIM + n % HEAD_DIM) * 32 + (slot & 31)] = to16(y);
                    }
                } else if (kind == W13) {
                    const float up = __shfl_down_sync(~0u, y, 8);
                    if (valid && feature < 8) {
                        p.activated[activation_index(row, tile * 8 + feature)] = to16(silu_times(y, up));
                    }
                } else {
                    if (valid && n < p.vocab && p.logits) p.logits[static_cast<size_t>(row) * p.vocab + n] = y;
                    unsigned long long key = valid && n < p.vocab ? ranking_key(y, n) : 0;
#pragma unroll
                    for (int o = 8; o > 0; o >>= 1) key = max(key, __shfl_xor_sync(~0u, key, o));
                    if (feature == 0 && valid) atomicMax(&s.best[row], key);
                }
            }
            if (!adds) return;
#if BULK_COPY
            barrier_wait(exchange_barrier, exchanges++ & 1);
            for (int item = tid; item < items; item += THREADS) {
                const int feature = item & 15, row = (item >> 4) % rows, local = (item >> 4) / rows;
                if (((begin + local) & 1) == share.slice) {
                    add_to_residual(row, (share.first + (begin + local) * share.step) * 16 + feature,
                                    __fadd_rn(sum_of(local, row, feature), received[item]));
                }
            }
#else
            // the last slice to arrive at a tile adds them all
            block_sync();
            if (tid < tiles) {
                uint32_t* counter = p.counters + 4 + share.first + (begin + tid) * share.step;
                const bool last = add_acquire_release(counter, 1u) == static_cast<uint32_t>(SPLITS - 1);
                if (last) *counter = 0;
                s.flags[tid] = last;
            }
            block_sync();
            for (int item = tid; item < items; item += THREADS) {
                const int feature = item & 15, row = (item >> 4) % rows, local = (item >> 4) / rows;
                if (!s.flags[local]) continue;
                const int tile = share.first + (begin + local) * share.step;
                float sum = 0.0f;
                for (int i = 0; i < SPLITS; i++) {
                    const size_t at = ((static_cast<size_t>(i) * share.tiles + tile) * MAX_ROWS + row) * 16 + feature;
                    sum = __fadd_rn(sum, __ldcg(&p.slices[at]));
                }
                add_to_residual(row, tile * 16 + feature, sum);
            }
#endif
        };

        const int steps = (share.end - share.begin + WARPS - 1) / WARPS;
        if (kind == QKV && blockIdx.x < s.prefix[n_groups] * p.n_kv_heads) prefetch_unit(p, s, layer, blockIdx.x);
        if (adds) {
            // the end of the phase should not wait for device memory
            for (int i = tid; i < share.count; i += THREADS) {
                const int n = (share.first + i * share.step) * 16;
                prefetch_l2(norm_weight + n, 64);
                if (kind == WO) prefetch_l2(p.rows[0].ffn_scale + static_cast<size_t>(layer) * p.width + n, 64);
            }
        }
        if (phase > p.phase_begin) grid_wait(p.counters, target);
        if constexpr (TG == 1) {
            uint4 b[STEPS][NT][2];
#pragma unroll
            for (int i = 0; i < STEPS; i++) load_x(b[i], piece0 + i * WARPS);
            if (normed) row_scales(p, s, norm, rows, warp, lane);
            if (early && (adds || kind == QKV) && tid < share.count * rows * 16) {
                const int row = (tid >> 4) % rows, n = (share.first + (tid >> 4) / rows * share.step) * 16 + (tid & 15);
                if (adds) {
                    ready = addend(row, n);
                } else {
                    ready_turn = __ldcg(&p.rope[row * 64 + n % HEAD_DIM / 2]);
                }
            }
            for (int begin = 0; begin < share.count; begin += round_tiles) {
                const int tiles = min(round_tiles, share.count - begin);
                block_sync();  // the sums of the round before have been read
                for (int local = 0; local < tiles; local++) {
                    float acc[NT][4];
                    clear(acc);
                    for (int first = 0; first < steps; first += STEPS) {
                        if (steps > STEPS) {
#pragma unroll
                            for (int i = 0; i < STEPS; i++) load_x(b[i], piece0 + (first + i) * WARPS);
                        }
                        // the next stage's fragments are read while the matrix unit works on this one's
                        uint4 a[2][4];
                        auto fetch = [&](uint4 (&to)[4]) {
                            const uint4* from = ring.wait(warp);
#pragma unroll
                            for (int j = 0; j < 4; j++) to[j] = from[j * 32 + lane];
                            const int slot = ring.slot;
                            ring.advance(p);
                            return slot;
                        };
                        int held = fetch(a[0]);
#pragma unroll
                        for (int i = 0; i < STEPS; i++) {
                            if (first + i < steps) {
                                int next = 0;
                                if (i + 1 < STEPS && first + i + 1 < steps) next = fetch(a[(i + 1) & 1]);
                                if (piece0 + (first + i) * WARPS < share.end) {
                                    const uint4(&w)[4] = a[i & 1];
#pragma unroll
                                    for (int j = 0; j < NT; j++) mma_k32(acc[j], w[0], w[1], b[i][j][0]);
#pragma unroll
                                    for (int j = 0; j < NT; j++) mma_k32(acc[j], w[2], w[3], b[i][j][1]);
                                }
                                Ring::release(held, lane);
                                held = next;
                            }
                        }
                    }
                    store_sums(acc, local);
                }
                finish(begin, tiles);
            }
        } else {
            uint4 b[NT][2];
            load_x(b, piece0);
            if (normed) row_scales(p, s, norm, rows, warp, lane);
            for (int group = 0; group < share.count; group += TG) {
                const int group_tiles = min(TG, share.count - group);
                float acc[TG][NT][4];
#pragma unroll
                for (int i = 0; i < TG; i++) clear(acc[i]);
                for (int i = 0; i < steps; i++) {
                    uint4 ahead[NT > 4 ? 1 : NT][2];
                    if constexpr (NT > 4) {
                        load_x(b, piece0 + i * WARPS);
                    } else {
                        load_x(ahead, i + 1 < steps ? piece0 + (i + 1) * WARPS : piece0);
                    }
#pragma unroll
                    for (int tile = 0; tile < TG; tile++) {
                        if (tile < group_tiles) multiply(acc[tile], b, piece0 + i * WARPS < share.end);
                    }
                    if constexpr (NT <= 4) {
#pragma unroll
                        for (int j = 0; j < NT; j++) b[j][0] = ahead[j][0], b[j][1] = ahead[j][1];
                    }
                }
                for (int round = 0; round < group_tiles; round += round_tiles) {
                    const int tiles = min(round_tiles, group_tiles - round);
                    block_sync();
#pragma unroll
                    for (int i = 0; i < TG; i++) {
                        if (i >= round && i < round + tiles) store_sums(acc[i], i - round);
                    }
                    finish(group + round, tiles);
                }
            }
        }
        if (kind == HEAD) {
            block_sync();
            if (tid < rows) atomicMax(&p.best[tid], s.best[tid]);
        }
    }

    // the last block to get here leaves the counters as it found them
    block_sync();
    if (tid == 0 && add_acquire_release(p.counters + 1, 1u) == gridDim.x - 1) p.counters[0] = 0, p.counters[1] = 0;
}

#if BULK_COPY
#define CLUSTER __cluster_dims__(2, 1, 1)
#else
#define CLUSTER
#endif
#define DECODER_PASS(NT, TG)                                                   \
    extern "C" __global__ void __launch_bounds__(BLOCK, 1) CLUSTER             \
        decoder_pass_##NT(const __grid_constant__ DecoderPass p) {             \
        decoder_pass<NT, TG>(p);                                               \
    }

// Up to 8, 16, 32, 40 and 64 rows. More rows leave fewer registers for x and tiles, so x is read more often.
DECODER_PASS(1, 1)
#if TRADE_REGISTERS
DECODER_PASS(2, 9)
DECODER_PASS(4, 5)
DECODER_PASS(5, 4)
DECODER_PASS(8, 2)
#else
DECODER_PASS(2, 5)
DECODER_PASS(4, 3)
DECODER_PASS(5, 3)
DECODER_PASS(8, 2)
#endif
