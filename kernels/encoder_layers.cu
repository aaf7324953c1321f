// All encoder layers of a pass of up to eight rows, those of live audio, in one persistent kernel, on compute capability 9.0: the
// sums of gemm.cu and of attention.cuh, in the same order.
//
// One block per multiprocessor, all resident (cooperative launch), goes through qkv, attention, wo, w13, w2 of each layer. One
// warpgroup multiplies. One brings to shared memory what it multiplies, normed rows and rows that others made, and does attention.
// One warp streams weights and keys through a ring, as far ahead as there is room: neither depends on what the pass computes.
//
// Blocks tell each other what they have in words of 16 bytes: two numbers of F32 or four of F16, and a stamp, of which pass and
// layer they are. A word is written and read at once, so whoever sees the stamp has the numbers. A flag beside them would need a
// fence before it, and fences take as long as a product while all multiprocessors stream. Counters only say when it is worth to
// look. Nobody overwrites what is still to be read: what a block stores of a layer follows, over others' words, from all that was
// read of the layer before.
//
// Products: rows are the left operand, of which the instruction's 64 are these eight over and over. A block has up to three tiles of
// 16 outputs of qkv, three pairs of tiles of w13, one tile of wo and of w2, k in the order of gemm.cu.
//
// Attention: a warp has a head's queries and a block of 64 keys; then one for each row of a head merges what was found, the oldest
// keys first. Keys and values of the pass's rows also go to the streams' rings, into slots of which no query sees what was there;
// what the copy engine brings of those slots may be old, new or torn, and is replaced.

#include <type_traits>

#include "encoder_layers.cuh"

#if HOPPER

// Sums that are written by nothing but the matrix unit would be cleared in the middle of its work.
template <int N>
__device__ __forceinline__ void clear(float (&d)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) d[i] = 0.0f;
}

// A product; stages have N outputs by BLOCKS times 64 of k, the last may have less.
template <int N, int BLOCKS>
__device__ __forceinline__ void multiply(float (&d)[N / 2], Ring& ring, Rows& rows, int k) {
    clear(d);
    auto add = [&](auto blocks, int block) {
        if (block % (CHUNK / 64) == 0) rows.wait();
        ring.wait_full();
        wgmma_fence();
        const uint32_t x = operand_low(rows.x + block * 1024), w = operand_low(ring.place());
#pragma unroll
        for (int i = 0; i < decltype(blocks)::value * 4; i++) {
            multiply_rows(d, x + i / 4 * 64 + i % 4 * 2, w + i / 4 * N * 8 + i % 4 * 2, block > 0 || i > 0);
        }
        wgmma_commit();
        if (block > 0) {
            wgmma_wait<1>();
            if (threadIdx.x < 32) ring.give_back_before();
        }
        ring.advance();
    };
    const int n_blocks = k / 64;
#pragma unroll 1
    for (int block = 0; block + BLOCKS <= n_blocks; block += BLOCKS) add(std::integral_constant<int, BLOCKS>{}, block);
    // k is a multiple of 128
    if (BLOCKS > 2 && n_blocks % BLOCKS > 0) add(std::integral_constant<int, 2>{}, n_blocks - 2);
    wgmma_wait<0>();
    pin(d);
    if (threadIdx.x < 32) ring.give_back_before();
}

// The warp that fills the ring.
__device__ void fill(const EncoderLayers& p, const Memory& m, const Shares& shares, Ring ring, int n_units) {
    const uint64_t policy = evict_first_policy();
    Ring landing = ring;  // where the oldest copy in flight is
    int n_copies = 0;
    auto await_place = [&]() {
        if (n_copies++ >= IN_FLIGHT) landing.wait_full(), landing.advance();
        ring.wait_empty();
    };
#pragma unroll 1
    for (int i = 4 * p.first_layer; i < 4 * p.end_layer; i++) {
        const int l = i / 4, kind = i % 4;
        const EncoderLayer& layer = p.layers[l];
        // `n` outputs from `first` on, `blocks` times 64 of k a stage, each in the place of `room` outputs
        const uint8_t* weights = kind == 0 ? layer.qkv : kind == 1 ? layer.wo : kind == 2 ? layer.w13 : layer.w2;
        const int single = kind == 1 ? shares.wo : shares.w2;
        const int first = kind == 0 ? shares.qkv.first * 16 : kind == 2 ? shares.w13.first * 32 : single * 16;
        const int n = kind == 0 ? shares.qkv.n * 16 : kind == 2 ? shares.w13.n * 32 : single >= 0 ? 16 : 0;
        const int room = kind == 0 ? 16 * QKV_TILES : kind == 2 ? 16 * W13_TILES : 16;
        const int blocks = kind == 0 ? 2 : kind == 2 ? 1 : 4;
        const int n_blocks = (kind == 1 ? p.q_width : kind == 3 ? p.hidden_width : p.width) / 64;
        // a block of the packed matrix has 128 outputs
        const int before = min(n, 128 - first % 128);
        const uint8_t* from = weights + static_cast<size_t>(first / 128) * n_blocks * 16384 + first % 128 * 128;
        const uint8_t* rest = weights + static_cast<size_t>(first / 128 + 1) * n_blocks * 16384;
#pragma unroll 1
        for (int block = 0; block < n_blocks && n > 0; block += blocks, ring.advance()) {
            const int now = min(blocks, n_blocks - block);
            await_place();
            const uint32_t barrier = ring.full + ring.slot * 8;
            barrier_expect(barrier, now * n * 128);
#pragma unroll 1
            for (int j = 0; j < now; j++) {
                const uint32_t to = ring.place() + j * room * 128;
                copy_bulk(to, from + (block + j) * 16384, before * 128, barrier, policy);
                if (before == n) continue;
                copy_bulk(to + before * 128, rest + (block + j) * 16384, (n - before) * 128, barrier, policy);
            }
        }
        if (kind > 0) continue;
#pragma unroll 1
        for (int u = 0; u < 2 * n_units; u++, ring.advance()) {
            const Unit unit = m.units[u / 2];
            await_place();
            const uint32_t barrier = ring.full + ring.slot * 8;
            barrier_expect(barrier, KEYS * HEAD_DIM * 2);
            const int row = (2 * l + u % 2) * p.n_slots + unit.block * KEYS % p.n_slots;
            copy_box(ring.place(), p.rings + unit.segment, unit.head / p.group * HEAD_DIM, row, barrier);
        }
    }
}

__device__ __forceinline__ void store_shared(uint32_t to, const uint4& v) {
    asm volatile("st.shared.v4.u32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}

__device__ __forceinline__ Word* found_of(const EncoderLayers& p, const Unit& unit, int block) {
    const size_t head = unit.segment * p.n_heads + unit.head;
    return p.found + (head * p.max_blocks + block - unit.first_block) * FOUND;
}

// A warp's work on a unit, whose keys are in the ring's next stage and its values in the one after.
__device__ __forceinline__ void attend(const EncoderLayers& p, const Segment& s, const Unit& unit, const Ring& ring,
                                       uint32_t stamp) {
    const int lane = threadIdx.x % 32;
    const int words = p.qkv_width / 4;
    // of the pass's own rows, and of none: zeros
    const int first_fresh = s.position - unit.block * KEYS, end = first_fresh + s.n_rows;
    const Word* q = p.qkv + (s.first_row + lane / 4) * words + unit.head * (HEAD_DIM / 4) + lane % 4 / 2;
    const Word* key = p.qkv + (s.first_row - first_fresh) * words + (p.q_dim + unit.head / p.group * HEAD_DIM) / 4;
    auto fresh = [&](int row, int i) {
        return row >= first_fresh && row < end ? key + row * words + i / 2 * (p.kv_dim / 4) + lane % 8 * 2 + i % 2 : nullptr;
    };
    // queries as the matrix unit's left operand, rows from 8 on zero, and what there may be of the first four fresh keys
    uint32_t queries[HEAD_DIM / 16][4] = {};
    uint64_t some[HEAD_DIM / 8 + 4];
    const int begin = max(first_fresh, 0) / 4 * 4;
    load_words(some, stamp, [&](int i) {
        if (i >= HEAD_DIM / 8) return begin < KEYS ? fresh(begin + lane / 8, i - HEAD_DIM / 8) : nullptr;
        return lane / 4 < s.n_rows ? q + 2 * i : nullptr;
    });
#pragma unroll
    for (int i = 0; i < HEAD_DIM / 8; i++) queries[i / 2][i % 2 * 2] = static_cast<uint32_t>(some[i] >> lane % 2 * 32);
    Ring next = ring;
    next.advance();
    const uint32_t keys = ring.place(), values = next.place();
    ring.wait_full();
    next.wait_full();
#pragma unroll 1
    for (int first = begin; first < KEYS; first += 4) {
        const int row = first + lane / 8;
        uint64_t v[4];
        if (first == begin) {
#pragma unroll
            for (int i = 0; i < 4; i++) v[i] = some[HEAD_DIM / 8 + i];
        } else if (first < end) {
            load_words(v, stamp, [&](int i) { return fresh(row, i); });
        } else {
            v[0] = v[1] = v[2] = v[3] = 0;
        }
        if (row < first_fresh) continue;
        const uint32_t to = place<HEAD_DIM>(row, lane % 8);
        store_shared(keys + to, make_uint4(v[0], v[0] >> 32, v[1], v[1] >> 32));
        store_shared(values + to, make_uint4(v[2], v[2] >> 32, v[3], v[3] >> 32));
    }
    __syncwarp();
    Scores x;
    float out[HEAD_DIM / 8][4];
    attend_block<HEAD_DIM>(x, out, queries, keys, values, unit.block, s.position + lane / 4, p.window, p.scale, true);
    fence_async();
    ring.give_back();
    next.give_back();
    if (lane / 4 >= s.n_rows) return;
    Word* to = found_of(p, unit, unit.block) + lane / 4 * (HEAD_DIM / 2) + lane % 4;
#pragma unroll
    for (int d = 0; d < HEAD_DIM / 8; d++) store_word(to + d * 4, word_of(out[d][0], out[d][1]), stamp);
    store_word(found_of(p, unit, unit.block) + TOTALS + lane, word_of(x.total[0], x.highest[0]), stamp);
}

// Merges what the warps of a head found of a row.
__device__ __forceinline__ void merge_row(const EncoderLayers& p, const Segment* segments, int row, int head, uint32_t stamp) {
    const int lane = threadIdx.x % 32;
    int i = 0;
    while (row >= segments[i].first_row + segments[i].n_rows) i++;
    const Segment& s = segments[i];
    const int in_segment = row - s.first_row;
    const Unit unit = {i, head, 0, first_block(p, s)};
    const int end = last_block(s) + 1;
    // two columns, and a quarter of the row's total
    constexpr int AHEAD = 7;
    Merged merged;
    float2 out = make_float2(0.0f, 0.0f);
#pragma unroll 1
    for (int begin = unit.first_block; begin < end; begin += AHEAD) {
        uint64_t words[2 * AHEAD];
        load_words(words, stamp, [&](int j) -> const Word* {
            if (begin + j / 2 >= end) return nullptr;
            const Word* found = found_of(p, unit, begin + j / 2);
            return found + (j % 2 ? TOTALS + in_segment * 4 + lane % 4 : in_segment * (HEAD_DIM / 2) + lane);
        });
#pragma unroll
        for (int j = 0; j < AHEAD; j++) {
            if (begin + j >= end) break;
            const float2 sums = pair_of(words[2 * j]), stats = pair_of(words[2 * j + 1]);
            const Shrink shrink = merge(merged, stats.y, stats.x);
            out = make_float2(merge_output(out.x, sums.x, shrink), merge_output(out.y, sums.y, shrink));
        }
    }
    const float total = row_total(merged.total);
    const uint32_t own = pack16(__fdiv_rn(out.x, total), __fdiv_rn(out.y, total)), other = __shfl_down_sync(~0u, own, 1);
    if (lane % 2 == 0) store_word(p.attended + (row * p.q_width + head * HEAD_DIM) / 4 + lane / 2, joined(own, other), stamp);
    count(p.counters + HEADS_DONE);
}

// Brings `columns` columns of F16, of which those from `used` on are zeros.
__device__ __forceinline__ void bring_rows(const EncoderLayers& p, Memory& m, Rows& rows, const Word* from, int columns, int used,
                                           uint32_t stamp) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll 1
    for (int begin = 0; begin < columns; begin += CHUNK) {
#pragma unroll 1
        for (int row = warp; row < p.rows; row += 4) {
            uint64_t words[CHUNK / 128];
            load_words(words, stamp, [&](int i) {
                const int column = begin + (i * 32 + lane) * 4;
                return column < used ? from + (row * columns + column) / 4 : nullptr;
            });
#pragma unroll
            for (int i = 0; i < CHUNK / 128; i++) {
                const int column = begin + (i * 32 + lane) * 4;
                uint8_t* to = m.x + column / 64 * 1024 + swizzled(row, column % 64 / 8) + column % 8 * 2;
                if (column < columns) *reinterpret_cast<uint64_t*>(to) = words[i];
            }
        }
        rows.arrive();
    }
}

// Brings normed rows of the residual stream, of words or, where there are none yet, as it is.
__device__ __forceinline__ void bring_normed(const EncoderLayers& p, Memory& m, Rows& rows, const NormWeights& weights,
                                             const Word* sums, uint32_t stamp) {
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll 1
    for (int row = warp; row < p.rows; row += 4) {
        float4 v[MAX_NORMED / 128];
        if (sums == nullptr) {
#pragma unroll
            for (int j = 0; j < MAX_NORMED / 128; j++) {
                const int i = j * 128 + lane * 4;
                v[j] = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
                if (i < p.width) v[j] = *reinterpret_cast<const float4*>(p.residual + row * p.width + i);
            }
        } else {
            uint64_t words[MAX_NORMED / 64];
            load_words(words, stamp, [&](int i) {
                const int column = i / 2 * 128 + lane * 4 + i % 2 * 2;
                return column < p.width ? sums + (row * p.width + column) / 2 : nullptr;
            });
#pragma unroll
            for (int j = 0; j < MAX_NORMED / 128; j++) {
                const float2 low = pair_of(words[2 * j]), high = pair_of(words[2 * j + 1]);
                v[j] = make_float4(low.x, low.y, high.x, high.y);
            }
        }
        store_normed(v, weights, p.width, p.dim, p.eps, m.x, row);
    }
    rows.arrive();
}

// The warpgroup that brings rows and does attention.
__device__ void bring(const EncoderLayers& p, Memory& m, const Shares& shares, Ring ring, Rows rows, int n_units, uint32_t stamp,
                      int warp) {
    const int before_keys = shares.qkv.n > 0 ? p.width / 128 : 0;
    const int after_keys = (shares.wo >= 0 ? (p.q_width + 255) / 256 : 0) + (shares.w13.n > 0 ? p.width / 64 : 0) +
                           (shares.w2 >= 0 ? (p.hidden_width + 255) / 256 : 0);
#pragma unroll 1
    for (int step = 0; step < 2 * (p.end_layer - p.first_layer); step++) {
        const EncoderLayer& layer = p.layers[p.first_layer + step / 2];
        const uint32_t done = step / 2, round = done + 1;
        const bool attention = step % 2 == 0;
        if ((attention ? shares.qkv.n : shares.w13.n) > 0) {
            const NormWeights weights(attention ? layer.attention_norm : layer.ffn_norm, p.width);
            wait_count(p.counters + (attention ? W2_DONE : WO_DONE), (attention ? done : round) * shares.n_wide);
            bring_normed(p, m, rows, weights, step == 0 ? nullptr : p.sums[attention ? 1 : 0], attention ? stamp - 1 : stamp);
        }
        if (attention && n_units > 0) {
            wait_count(p.counters + QKV_DONE, round * shares.n_qkv);
            ring.advance_by(before_keys);
#pragma unroll 1
            for (int u = 0; u < n_units; u++, ring.advance_by(2)) {
                if (u % 4 == warp) attend(p, m.segments[m.units[u].segment], m.units[u], ring, stamp);
            }
            ring.advance_by(after_keys);
        }
        if (attention) {
            // a warp has a row of a head
#pragma unroll 1
            for (int i = blockIdx.x + gridDim.x * warp; i < p.rows * p.n_heads; i += gridDim.x * 4) {
                merge_row(p, m.segments, i / p.n_heads, i % p.n_heads, stamp);
            }
        }
        if ((attention ? shares.wo : shares.w2) >= 0) {
            const uint32_t n_parts = attention ? p.rows * p.n_heads : shares.n_w13;
            wait_count(p.counters + (attention ? HEADS_DONE : W13_DONE), round * n_parts);
            bring_rows(p, m, rows, attention ? p.attended : p.hidden, attention ? p.q_width : p.hidden_width,
                       attention ? p.q_dim : p.hidden_width, stamp);
        }
        if (!attention) stamp++;
    }
}

// Of a row of the matrix unit's sums: outputs 4q, 4q + 2, 4q + 1, 4q + 3 of a tile are numbers 0, 1, 4 and 5 of a thread.
__device__ __forceinline__ float4 quad_of(const float* d) { return make_float4(d[0], d[4], d[1], d[5]); }

__device__ __forceinline__ float4 added(const float4& a, const float4& b) {
    return make_float4(__fadd_rn(a.x, b.x), __fadd_rn(a.y, b.y), __fadd_rn(a.z, b.z), __fadd_rn(a.w, b.w));
}

// What a thread of the first warp needs to store its row.
struct OwnRow {
    int row, column;
    real16* ring;  // of the slot, null where there is no such row
    __device__ __forceinline__ OwnRow(const EncoderLayers& p, const Segment* segments)
        : row(threadIdx.x % 32 / 4), column(threadIdx.x % 4 * 4), ring(nullptr) {
        for (int i = 0; i < p.n_segments; i++) {
            const Segment& s = segments[i];
            const int at = row - s.first_row;
            if (at >= 0 && at < s.n_rows) ring = s.ring + static_cast<size_t>((s.position + at) % p.n_slots) * p.kv_dim;
        }
    }
};

// A thread's part of qkv's tiles: what it takes besides the sums, fetched before them.
struct QkvTiles {
    float4 bias[QKV_TILES], angles[QKV_TILES];
    __device__ __forceinline__ static float4 load(const float* from) { return *reinterpret_cast<const float4*>(from); }
    __device__ __forceinline__ QkvTiles(const EncoderLayers& p, const Shares& shares, const OwnRow& own, const float* biases) {
#pragma unroll
        for (int j = 0; j < QKV_TILES; j++) {
            const int n = (shares.qkv.first + j) * 16 + own.column;
            const bool valid = own.ring != nullptr && j < shares.qkv.n, turned = valid && n < p.q_dim + p.kv_dim;
            bias[j] = valid && biases != nullptr ? load(biases + n) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (turned) angles[j] = load(&p.rope[own.row * (HEAD_DIM / 2) + n % HEAD_DIM / 2].x);
        }
    }
    __device__ __forceinline__ void store(const EncoderLayers& p, const Shares& shares, const OwnRow& own, int l, bool biased,
                                          const float* d, uint32_t stamp) const {
        if (own.ring == nullptr) return;
        const size_t plane = static_cast<size_t>(p.n_slots) * p.kv_dim;
#pragma unroll
        for (int j = 0; j < QKV_TILES; j++) {
            if (j >= shares.qkv.n) continue;
            const int n = (shares.qkv.first + j) * 16 + own.column, key = n - p.q_dim, value = key - p.kv_dim;
            float4 v = quad_of(d + 8 * j);
            if (biased) v = added(v, bias[j]);
            if (value < 0) {
                const float2 low = rotate(v.x, v.y, make_float2(angles[j].x, angles[j].y));
                const float2 high = rotate(v.z, v.w, make_float2(angles[j].z, angles[j].w));
                v = make_float4(low.x, low.y, high.x, high.y);
            }
            if (value >= p.kv_dim) continue;
            const uint64_t word = word_of(v);
            store_word(p.qkv + (own.row * p.qkv_width + n) / 4, word, stamp);
            if (key < 0) continue;
            *reinterpret_cast<uint64_t*>(own.ring + (2 * l + (value >= 0)) * plane + (value >= 0 ? value : key)) = word;
        }
    }
};

// The warpgroup that multiplies.
__device__ void compute(const EncoderLayers& p, Memory& m, const Shares& shares, Ring ring, Rows rows, int n_units, uint32_t stamp,
                        int warp) {
    const OwnRow own(p, m.segments);
    const bool stores = warp == 0 && own.ring != nullptr;
#pragma unroll 1
    for (int step = 0; step < 2 * (p.end_layer - p.first_layer); step++) {
        const int l = p.first_layer + step / 2;
        const bool attention = step % 2 == 0;
        const EncoderLayer& layer = p.layers[l];
        if (attention) {
            if (shares.qkv.n > 0) {
                float d[8 * QKV_TILES];
                const QkvTiles tiles(p, shares, own, layer.qkv_bias);
                multiply<16 * QKV_TILES, 2>(d, ring, rows, p.width);
                if (warp == 0) {
                    tiles.store(p, shares, own, l, layer.qkv_bias != nullptr, d, stamp);
                    count(p.counters + QKV_DONE);
                }
            }
            ring.advance_by(2 * n_units);
        } else if (shares.w13.n > 0) {
            float d[8 * W13_TILES];
            multiply<16 * W13_TILES, 1>(d, ring, rows, p.width);
            if (warp == 0) {
#pragma unroll
                for (int j = 0; j < W13_TILES / 2; j++) {
                    if (!stores || j >= shares.w13.n) continue;
                    // the first tile of a pair has gates and ups of the even outputs, the second those of the odd ones
                    const float* of = d + 16 * j;
                    const float4 v = make_float4(silu_times(of[0], of[4]), silu_times(of[8], of[12]), silu_times(of[1], of[5]),
                                                 silu_times(of[9], of[13]));
                    const int n = (shares.w13.first + j) * 16 + own.column;
                    store_word(p.hidden + (own.row * p.hidden_width + n) / 4, word_of(v), stamp);
                }
                count(p.counters + W13_DONE);
            }
        }
        // a tile of what is added to the residual stream
        const int tile = attention ? shares.wo : shares.w2;
        if (tile >= 0) {
            const int n = tile * 16 + own.column, at = own.row * p.width + n;
            const float* biases = attention ? layer.wo_bias : layer.w2_bias;
            float4* residual = reinterpret_cast<float4*>(p.residual + at);
            float4 before, bias = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
            if (warp == 0) {
                if (stores && biases != nullptr) bias = *reinterpret_cast<const float4*>(biases + n);
                if (step == 0) {
                    if (stores) before = *residual;
                } else {
                    uint64_t words[2];
                    const Word* from = p.sums[attention ? 1 : 0] + at / 2;
                    load_words(words, attention ? stamp - 1 : stamp, [&](int i) { return stores ? from + i : nullptr; });
                    const float2 low = pair_of(words[0]), high = pair_of(words[1]);
                    before = make_float4(low.x, low.y, high.x, high.y);
                }
            }
            float d[8];
            multiply<16, 4>(d, ring, rows, attention ? p.q_width : p.hidden_width);
            if (warp == 0) {
                if (stores) {
                    const float4 sum = quad_of(d), v = added(before, biases == nullptr ? sum : added(sum, bias));
                    Word* to = p.sums[attention ? 0 : 1] + at / 2;
                    store_word(to, word_of(v.x, v.y), stamp);
                    store_word(to + 1, word_of(v.z, v.w), stamp);
                    if (!attention && l + 1 == p.end_layer) *residual = v;
                }
                count(p.counters + (attention ? WO_DONE : W2_DONE));
            }
        }
        if (!attention) stamp++;
    }
    // the last block to get here leaves the counters as it found them
    asm volatile("bar.sync 2, 128;" ::: "memory");
    if (threadIdx.x == 0 && add_acquire_release(p.counters + BLOCKS_DONE, 1) == gridDim.x - 1) {
        for (int i = 0; i < PASSES; i += 32) p.counters[i] = 0;
        p.counters[PASSES]++;
    }
}

// Grid: one block for each multiprocessor; block: THREADS; dynamic shared memory: the ring's slots and Memory.
extern "C" __global__ void __launch_bounds__(THREADS, 1) encoder_layers(const __grid_constant__ EncoderLayers p) {
    extern __shared__ __align__(1024) uint8_t shared[];
    Memory& m = *reinterpret_cast<Memory*>(shared + SLOTS * SLOT_BYTES);
    // the compiler must see that all lanes have the same, or it keeps the matrix unit's operands in the lanes' registers
    const int warp = __shfl_sync(~0u, threadIdx.x / 32, 0);
    if (threadIdx.x == 0) {
        for (int i = 0; i < SLOTS; i++) {
            barrier_init(shared_address(m.full + i), 1);
            barrier_init(shared_address(m.empty + i), 32);
        }
        for (int i = 0; i < CHUNK_BARRIERS; i++) barrier_init(shared_address(m.x_full + i), 4);
        barrier_init_fence();
    }
    // every n-th unit is this block's
    int n_units = 0, begin = 0;
    for (int i = 0; i < p.n_segments; i++) {
        const Segment s = load_l2(p.segments + i);
        if (threadIdx.x == 0) m.segments[i] = s;
        const int first = first_block(p, s), n_blocks = last_block(s) - first + 1, end = begin + p.n_heads * n_blocks;
        for (int u = blockIdx.x + n_units * gridDim.x; u < end; u += gridDim.x, n_units++) {
            const int head = (u - begin) / n_blocks, block = first + (u - begin) % n_blocks;
            if (threadIdx.x == 0) m.units[n_units] = {i, head, block, first};
        }
        begin = end;
    }
    n_units = __shfl_sync(~0u, n_units, 0);
    // of the first layer; none is 0, and passes are 64 apart
    const uint32_t stamp = p.counters[PASSES] * 64 + 1 + p.first_layer;
    __syncthreads();
    const Shares shares(p);
    const Ring ring(shared, m);
    const Rows rows(m);
    if (warp >= 8) {
        fewer_registers<72>();
        if (threadIdx.x == 256) fill(p, m, shares, ring, n_units);
        return;
    }
    more_registers<216>();
    if (warp >= 4) {
        bring(p, m, shares, ring, rows, n_units, stamp, warp - 4);
        return;
    }
    compute(p, m, shares, ring, rows, n_units, stamp, warp);
}

#endif
