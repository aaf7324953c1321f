// Attention of a decoder pass: each unit takes the query heads of one kv head, for a group of rows, over one chunk of the
// cache; then the chunks are added, oldest first. Chunks lie at fixed absolute positions, so a row's result does not depend
// on its group: a chunk that a row doesn't see adds nothing to it, exactly.
//
// The cache of a stream is [n_layers][K, V] planes of n_kv_heads * n_slots * HEAD_DIM, n_slots a multiple of CHUNK and a
// position's slot position % n_slots.
//     K  [n_kv_heads][n_slots][HEAD_DIM]
//     V  [n_kv_heads][n_slots / 32][HEAD_DIM][32]: positions are the fastest index, as the matrix unit wants them
// It must hold finite numbers everywhere: what is masked is multiplied by zero.

#pragma once

#include "decoder_rows.cuh"

// A team of four warps takes a unit, so a block works on two. Scores: warp w of the team takes positions 32w .. 32w+31 of the
// chunk. Values: it takes features 32w .. 32w+31 over all positions.
// The left operand's 16 rows are (row of the group, query head); those that a group lacks are zero.
struct AttentionUnit {
    int row0, rows, position0;
    int n_chunks, chunk_index, kv_head;
    const real16* keys;    // of the chunk's first position
    const real16* values;
    int start, low, high;  // first position of the chunk; first and last position that any row of the group sees
};

__device__ __forceinline__ size_t cache_plane(const DecoderPass& p, int n_slots) {
    return static_cast<size_t>(p.n_kv_heads) * n_slots * HEAD_DIM;
}

__device__ __forceinline__ AttentionUnit attention_unit_of(const DecoderPass& p, const Shared& s, int n_groups, int layer, int unit) {
    AttentionUnit a;
    a.kv_head = unit % p.n_kv_heads;
    const int at = unit / p.n_kv_heads;
    int group = 0;  // the last one that begins at or before `at`
    for (int step = MAX_ROWS / 2; step > 0; step /= 2) {
        if (group + step < n_groups && s.prefix[group + step] <= at) group += step;
    }
    a.n_chunks = s.prefix[group + 1] - s.prefix[group];
    a.chunk_index = at - s.prefix[group];
    a.row0 = s.groups[group].x, a.rows = s.groups[group].y;
    a.position0 = s.position[a.row0];
    a.low = max(0, a.position0 - p.window + 1), a.high = a.position0 + a.rows - 1;
    a.start = (a.low / CHUNK + a.chunk_index) * CHUNK;
    const int n_slots = s.chunks[a.row0] * CHUNK;
    a.keys = s.cache[a.row0] + 2 * layer * cache_plane(p, n_slots) +
             (static_cast<size_t>(a.kv_head) * n_slots + a.start % n_slots) * HEAD_DIM;
    a.values = a.keys + cache_plane(p, n_slots);
    return a;
}

// Asks for the cache that units will read, while the blocks still do other things, if there are few units: what many want
// keeps the barrier before waiting for longer than it saves. Blocks share it out evenly: one that has to bring more than the
// others would be late with its weights.
__device__ __forceinline__ void prefetch_units(const DecoderPass& p, const Shared& s, int n_groups, int layer) {
    constexpr int PIECE = 2048, PIECES = CHUNK * HEAD_DIM * 2 / PIECE;  // of a unit's keys, and of its values
    constexpr int FEW = 96;
    const int units = s.prefix[n_groups] * p.n_kv_heads;
    if (units > FEW) return;
    const int thread = threadIdx.x / 32 + WARPS * (threadIdx.x & 31);  // neighbours are of different warps
    for (int i = blockIdx.x + gridDim.x * thread; i < units * 2 * PIECES; i += gridDim.x * THREADS) {
        const AttentionUnit a = attention_unit_of(p, s, n_groups, layer, i / (2 * PIECES));
        const int piece = i % PIECES, first = a.start + piece * (CHUNK / PIECES);
        // values lie by blocks of 32 positions
        if ((first | 31) < a.low || (first & ~31) > a.high) continue;
        const real16* plane = i / PIECES % 2 == 0 ? a.keys : a.values;
        prefetch_l2(plane + piece * (PIECE / 2), PIECE);
    }
}

constexpr int UNIT_BARRIERS = 3;  // that a team passes in a unit

// Of the sums' place in shared memory, for a team: pass.rs sees to it that there is room for two.
constexpr int TEAM_BYTES = TEAM_WARPS * 16 * (32 * sizeof(real16) + 2 * sizeof(float));

__device__ __forceinline__ void attention_unit(const DecoderPass& p, const AttentionUnit& unit, char* shared, int team, int warp,
                                               int lane) {
    real16* probabilities = reinterpret_cast<real16*>(shared + team * TEAM_BYTES);     // [TEAM_WARPS][16][32]
    float* maxima = reinterpret_cast<float*>(probabilities + TEAM_WARPS * 16 * 32);  // [TEAM_WARPS][16]
    float* sums = maxima + TEAM_WARPS * 16;                                          // [TEAM_WARPS][16]
    const int g = lane >> 2, t = lane & 3;
    const int heads = p.n_heads / p.n_kv_heads;
    const int start = unit.start, kv_head = unit.kv_head;
    const uint4 zero = make_uint4(0, 0, 0, 0);

    // row of the group and head of this lane's rows g and g + 8
    int r[2], h[2];
    uint4 rows_of_q[4][2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
        r[half] = (g + half * 8) / heads;
        h[half] = g + half * 8 - r[half] * heads;
        const int head = kv_head * heads + h[half];
        const real16* query = p.query + (static_cast<size_t>(unit.row0 + r[half]) * p.n_heads + head) * HEAD_DIM;
#pragma unroll
        for (int i = 0; i < 4; i++) rows_of_q[i][half] = r[half] < unit.rows ? load_fresh(query + i * 32 + t * 8) : zero;
    }
    uint4 q[4][2];
#pragma unroll
    for (int i = 0; i < 4; i++) left_operand(rows_of_q[i][0], rows_of_q[i][1], q[i]);
    // K of the warp's 32 positions. Tiles of 8 that nobody sees stay zero.
    const int mine = start + warp * 32;
    uint4 k[4][4];
    const real16* keys = unit.keys + (warp * 32 + g) * HEAD_DIM + t * 8;
#pragma unroll
    for (int j = 0; j < 4; j++) {
        const bool any = mine + j * 8 <= unit.high && mine + j * 8 + 7 >= unit.low;
#pragma unroll
        for (int i = 0; i < 4; i++) k[j][i] = any ? load_now(keys + j * 8 * HEAD_DIM + i * 32) : zero;
    }

    // V of the warp's 32 features and all positions: on its way while the scores are computed, or at least normalised
    uint4 v[TEAM_WARPS][4];
    const real16* values = unit.values + (warp * 32 + g) * 32 + t * 8;
    auto load_values = [&]() {
#pragma unroll
        for (int b = 0; b < TEAM_WARPS; b++) {
            const bool inside = start + b * 32 <= unit.high && start + b * 32 + 31 >= unit.low;
#pragma unroll
            for (int d = 0; d < 4; d++) v[b][d] = inside ? load_now(values + (b * HEAD_DIM + d * 8) * 32) : zero;
        }
    };
    if (TRADE_REGISTERS) load_values();

    float scores[4][4] = {};
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int i = 0; i < 4; i++) mma_k32(scores[j], q[i], k[j][i]);
    }
    if (!TRADE_REGISTERS) load_values();

    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int half = e >> 1, position = unit.position0 + r[half];
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int at = mine + j * 8 + t * 2 + (e & 1);
            const bool seen = r[half] < unit.rows && at <= position && at > position - p.window;
            scores[j][e] = seen ? __fmul_rn(scores[j][e], p.scale) : -INFINITY;
            top[half] = fmaxf(top[half], scores[j][e]);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 1));
        top[half] = fmaxf(top[half], __shfl_xor_sync(~0u, top[half], 2));
        if (t == 0) maxima[warp * 16 + g + half * 8] = top[half];
    }
    team_sync(team);
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float highest = -INFINITY;
#pragma unroll
        for (int w = 0; w < TEAM_WARPS; w++) highest = fmaxf(highest, maxima[w * 16 + g + half * 8]);
        top[half] = highest;
        const float safe = highest == -INFINITY ? 0.0f : highest;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const __half2 pair = __floats2half2_rn(power_of_two(__fadd_rn(scores[j][half * 2], -safe)),
                                                   power_of_two(__fadd_rn(scores[j][half * 2 + 1], -safe)));
            const float2 rounded = __half22float2(pair);
            sum = __fadd_rn(sum, __fadd_rn(rounded.x, rounded.y));
            *reinterpret_cast<__half2*>(probabilities + (warp * 16 + g + half * 8) * 32 + j * 8 + t * 2) = pair;
        }
        sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 1));
        sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, 2));
        if (t == 0) sums[warp * 16 + g + half * 8] = sum;
    }
    team_sync(team);
    float out[4][4] = {};
#pragma unroll
    for (int b = 0; b < TEAM_WARPS; b++) {
        const uint4* a = reinterpret_cast<const uint4*>(probabilities + b * 512);
        uint4 probability[2];
        left_operand(a[lane], a[32 + lane], probability);
#pragma unroll
        for (int d = 0; d < 4; d++) mma_k32(out[d], probability, v[b][d]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        if (r[half] >= unit.rows) continue;
        const int row = unit.row0 + r[half];
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < TEAM_WARPS; w++) sum = __fadd_rn(sum, sums[w * 16 + g + half * 8]);
        if (unit.n_chunks == 1) {
#pragma unroll
            for (int d = 0; d < 4; d++) {
                const int n = (kv_head * heads + h[half]) * HEAD_DIM + warp * 32 + d * 8 + t * 2;
                *reinterpret_cast<uint32_t*>(p.attended + activation_index(row, n)) =
                    pack16(__fdiv_rn(out[d][half * 2], sum), __fdiv_rn(out[d][half * 2 + 1], sum));
            }
        } else {
            const size_t at =
                ((static_cast<size_t>(row) * p.n_kv_heads + kv_head) * p.max_chunks + unit.chunk_index) * heads + h[half];
#pragma unroll
            for (int d = 0; d < 4; d++) {
                *reinterpret_cast<float2*>(p.partial + at * HEAD_DIM + warp * 32 + d * 8 + t * 2) =
                    make_float2(out[d][half * 2], out[d][half * 2 + 1]);
            }
            if (warp == 0 && t == 0) p.partial_stats[at] = make_float2(top[half], sum);
        }
    }
    team_sync(team);  // shared memory is free for the next unit
}

// For a team that has no unit while the block's other one has: it passes as many barriers, because racecheck takes threads
// for unordered that have passed different numbers of them, even behind a barrier of all.
__device__ __forceinline__ void without_unit(int team) {
    for (int i = 0; i < UNIT_BARRIERS; i++) team_sync(team);
}

// Adds the chunks of every (row, query head), in their order: a warp each, four features a lane.
__device__ void combine_chunks(const DecoderPass& p, const Shared& s, int rows, int warp, int lane) {
    const int heads = p.n_heads / p.n_kv_heads;
    for (int item = blockIdx.x + gridDim.x * warp; item < rows * p.n_heads; item += gridDim.x * WARPS) {
        const int row = item / p.n_heads, head = item - row * p.n_heads, group = s.group_of[row];
        const int n = s.prefix[group + 1] - s.prefix[group];
        if (n == 1) continue;
        const size_t at =
            (static_cast<size_t>(row) * p.n_kv_heads + head / heads) * p.max_chunks * heads + head % heads;
        const float2 none = make_float2(-INFINITY, 0.0f);
        // of the first chunks all is on its way at once
        constexpr int AHEAD = TRADE_REGISTERS ? 20 : 8;
        const float4* partial = reinterpret_cast<const float4*>(p.partial + at * HEAD_DIM) + lane;
        auto part_of = [&](int c) { return __ldcg(partial + static_cast<size_t>(c) * heads * (HEAD_DIM / 4)); };
        float4 ahead[AHEAD];
#pragma unroll
        for (int c = 0; c < AHEAD; c++) ahead[c] = c < n ? part_of(c) : make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        float2 stats[MAX_CHUNKS / 32];  // of chunks lane, lane + 32, ...
        float highest = -INFINITY;
#pragma unroll
        for (int i = 0; i < MAX_CHUNKS / 32; i++) {
            stats[i] = lane + i * 32 < n ? __ldcg(&p.partial_stats[at + (lane + i * 32) * heads]) : none;
            highest = fmaxf(highest, stats[i].x);
        }
#pragma unroll
        for (int o = 16; o > 0; o >>= 1) highest = fmaxf(highest, __shfl_xor_sync(~0u, highest, o));
#pragma unroll
        for (int i = 0; i < MAX_CHUNKS / 32; i++) stats[i].x = power_of_two(__fadd_rn(stats[i].x, -highest));
        float sum = 0.0f;
        float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
        auto add = [&](int c, float4 part) {
            static_assert(MAX_CHUNKS == 96);
            const float2 own = c < 32 ? stats[0] : c < 64 ? stats[1] : stats[2];
            const float weight = __shfl_sync(~0u, own.x, c & 31);
            sum = __fmaf_rn(weight, __shfl_sync(~0u, own.y, c & 31), sum);
            out.x = __fmaf_rn(weight, part.x, out.x), out.y = __fmaf_rn(weight, part.y, out.y);
            out.z = __fmaf_rn(weight, part.z, out.z), out.w = __fmaf_rn(weight, part.w, out.w);
        };
#pragma unroll
        for (int c = 0; c < AHEAD; c++) {
            if (c < n) add(c, ahead[c]);
        }
#pragma unroll 8
        for (int c = AHEAD; c < n; c++) add(c, part_of(c));
        out = make_float4(__fdiv_rn(out.x, sum), __fdiv_rn(out.y, sum), __fdiv_rn(out.z, sum), __fdiv_rn(out.w, sum));
        store_activation(p.attended, row, head * HEAD_DIM + lane * 4, out);
    }
}
