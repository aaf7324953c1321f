// One decoder pass in one persistent kernel: embeddings, all layers, LM head and top-1, for up to 64 rows.
//
// A row is one position of one stream. Rows of a pass may belong to any number of streams; rows of the same stream are
// consecutive positions in consecutive rows.
//
// Shape of the machine. One block per multiprocessor, all resident (cooperative launch), walks the phases
//     embed, then per layer: qkv, attention, wo, w13, w2, and at the end the head
// with a grid barrier between them. Eight warps compute; a ninth streams weights through a ring of 16 KiB stages in
// shared memory, across phase borders: weights do not depend on anything, so the copies of the next matrices are under
// way while barriers, norms and attention happen.
//
// Products. y[N, M] = W[N, K] x[K, M] with mma.m16n8k16: weights are the left operand (16 rows of W), rows of the pass
// are the columns of the right one. A block takes every n-th tile of 16 weight rows; its eight warps split K (warp w
// takes the pieces of 64 k with index w, w + 8, ... of the slice) and their sums are added in warp order through shared
// memory. wo and w2 have too few tiles to fill the machine, so K is cut in `splits` slices that different blocks take.
// Two slices are the two blocks of a cluster, which exchange their sums (sm_90 on); otherwise the last block to finish a
// tile adds the slices in slice order. Nothing of this depends on the number of rows, so a row's bits depend neither on
// how many rows share the pass nor on which.
//
// Attention. The cache is cut in chunks of 256 absolute positions; a block takes the query heads of one kv head, for up
// to 16 (row, head) pairs of one stream, over one chunk. All blocks then add the chunks in order.
//
// Norms. The producer of the residual stream h stores bf16(h * weight * (1 + ada)) and the sums of squares of each 16
// features; the consumer multiplies its result by 1 / rms. It is the same product, with the scalar pulled out.
//
// Layouts (bf16 unless said otherwise; K is padded to a multiple of 64 with zeros)
//     weights    [N / 16][K / 32][16][32]: element (n, k) at ((n/16 * K/32 + k/32) * 16 + n%16) * 32 + k%32
//                N padded to 16 with zeros. wqkv: rows of wq, wk, wv one after the other. w13: tile j holds rows
//                8j .. 8j+7 of w1, then the same rows of w3 (hidden padded to a multiple of 8). The head is the
//                token embedding table in the same layout, which is also where embeddings are gathered from.
//     activations [K / 32][row_stride][32]: element (row, k) at (k/32 * row_stride + row) * 32 + k%32
//     K cache    per stream and layer [n_kv_heads][capacity][128], slot = position mod capacity
//     V cache    per stream and layer [n_kv_heads][capacity / 32][128][32]: positions are the fastest index
#include "common.cuh"

namespace vox {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * 32;      // that compute
constexpr int kBlock = kThreads + 4 * 32;  // and a warp that fills the ring, with three that make it a warpgroup
constexpr int kHeadDim = 128;
constexpr int kChunk = 256;        // cache positions per attention unit: 32 for each warp
constexpr int kMaxRows = 64;
constexpr int kPiece = 2048;       // bytes of a weight piece: 16 rows of W by 64 k
constexpr int kStageBytes = kWarps * kPiece;
constexpr int kMiscBytes = 3072;
constexpr int kMaxLayers = 64;
[[maybe_unused]] constexpr int kCopyStages = 4;     // ring stages without the bulk copy engine
[[maybe_unused]] constexpr int kExchangeBytes = 8192;  // two halves; bulk copies only
constexpr int kSteps = 9;          // pieces of x that a warp keeps in registers

// Sums that wait to be added: 64 rows need 512 bytes per warp, row and tile.
__host__ __device__ constexpr int reduce_bytes(int row_tiles) { return row_tiles > 2 ? 32768 : 24576; }

struct DecoderLayer {
    const bf16* wqkv;
    const bf16* wo;
    const bf16* w13;
    const bf16* w2;
    const float* attention_norm;  // [dim]
    const float* ffn_norm;        // [dim]
};

// Everything a pass needs. Pointers are device pointers. What changes from pass to pass lies behind pointers, so a
// launch can be replayed by a graph.
struct DecoderPass {
    // the model
    int dim, n_heads, n_kv_heads, hidden, vocab, n_layers, window;
    int capacity;             // cache slots per stream, a multiple of 256, at least window + 63
    int wo_splits, w2_splits;
    float eps;
    int row_stride;           // rows that scratch buffers hold: a multiple of 8, at least 8 * NT of every launch
    int max_chunks;           // chunks that partial results have room for: capacity / 256 + 1
    int stages;               // ring stages (bulk copies only, at most 12; 4 otherwise)
    // phases to run: 0 embed, 1 + 5 * layer + {0 qkv, 1 attention, 2 wo, 3 w13, 4 w2}, 1 + 5 * n_layers head
    int phase_begin, phase_end;
    const float* final_norm;         // [dim]
    const bf16* head;                // packed [vocab, dim]
    const float* inverse_frequency;  // [64]
    // the pass
    const int* shape;                // [2] rows, groups
    const int2* groups;              // [groups] {first row, rows}: at most 16 / (n_heads / n_kv_heads) consecutive positions of one stream
    const int* position;             // [rows]
    const int* token;                // [rows]
    const float* const* audio;       // [rows] -> [dim], or null
    const float* const* ada;         // [rows] -> [n_layers][dim], or null
    bf16* const* cache;              // [rows] -> [n_layers][2][n_kv_heads * capacity * 128], K then V
    // scratch, zero at first
    float* residual;                 // [row_stride][dim]
    float* squares;                  // [row_stride][dim / 16]
    float2* rope;                    // [row_stride][64] cos, sin
    bf16* normed;                    // activations, K = dim
    bf16* query;                     // [row_stride][n_heads * 128]
    bf16* attended;                  // activations, K = n_heads * 128
    bf16* activated;                 // activations, K = hidden
    float* slices;                   // [splits][dim / 16][row_stride][16]
    float* partial;                  // [row_stride][n_kv_heads][max_chunks][group][128]
    float2* partial_stats;           // [row_stride][n_kv_heads][max_chunks][group] maximum, sum
    uint32_t* counters;              // [4 + dim / 16]
    unsigned long long* best;        // [row_stride]
    // results
    int* next;                       // [rows] top-1 id, the lowest on ties
    float* next_logit;               // [rows]
    float* logits;                   // [rows][vocab], or null
    DecoderLayer layers[kMaxLayers];
};

// What a block keeps of the pass in shared memory.
struct Tables {
    bf16** cache;         // [64]
    int* position;        // [64]
    uchar2* groups;       // [64] first row, rows
    unsigned char* group_of;  // [64] the group of a row
    unsigned short* prefix;  // [65] attention chunks of the groups before
};

enum Kind { kEmbed, kQkv, kAttention, kWo, kW13, kW2, kHead };

__device__ __forceinline__ Kind kind_of(const DecoderPass& p, int phase) {
    if (phase == 0) return kEmbed;
    if (phase > 5 * p.n_layers) return kHead;
    return static_cast<Kind>(kQkv + (phase - 1) % 5);
}

// The part of a product that this block does.
struct Share {
    const char* weights;
    int tiles;        // tiles of 16 weight rows in the matrix
    int pieces;       // 64-k pieces in a row of tiles
    int slice;        // which K slice
    int begin, end;   // its pieces
    int first, step;  // tiles first, first + step, ...
    int count;        // how many
};

__device__ __forceinline__ Share share_of(const DecoderPass& p, int phase, Kind kind) {
    const int layer = (phase - 1) / 5;
    const int tiles_dim = p.dim / 16, tiles_qkv = (p.n_heads + 2 * p.n_kv_heads) * (kHeadDim / 16);
    const int tiles_13 = (p.hidden + 7) / 8;
    Share s;
    int splits = 1;
    int rotation;  // tiles dealt before, so that the blocks with one tile more are different ones each time
    switch (kind) {
        case kQkv:
            s.weights = reinterpret_cast<const char*>(p.layers[layer].wqkv);
            s.tiles = tiles_qkv, s.pieces = (p.dim + 63) / 64;
            rotation = layer * (tiles_qkv + tiles_13);
            break;
        case kWo:
            s.weights = reinterpret_cast<const char*>(p.layers[layer].wo);
            s.tiles = tiles_dim, s.pieces = p.n_heads * kHeadDim / 64, splits = p.wo_splits;
            rotation = layer * 2 * tiles_dim;
            break;
        case kW13:
            s.weights = reinterpret_cast<const char*>(p.layers[layer].w13);
            s.tiles = tiles_13, s.pieces = (p.dim + 63) / 64;
            rotation = layer * (tiles_qkv + tiles_13) + tiles_qkv;
            break;
        case kW2:
            s.weights = reinterpret_cast<const char*>(p.layers[layer].w2);
            s.tiles = tiles_dim, s.pieces = (p.hidden + 63) / 64, splits = p.w2_splits;
            rotation = layer * 2 * tiles_dim + tiles_dim;
            break;
        default:
            s.weights = reinterpret_cast<const char*>(p.head);
            s.tiles = (p.vocab + 15) / 16, s.pieces = (p.dim + 63) / 64;
            rotation = p.n_layers * (tiles_qkv + tiles_13);
            break;
    }
    s.step = gridDim.x / splits;
    s.slice = blockIdx.x % splits;
    const int place = blockIdx.x / splits;
    s.begin = s.slice * s.pieces / splits;
    s.end = (s.slice + 1) * s.pieces / splits;
    s.first = (place + s.step - rotation % s.step) % s.step;
    s.count = place >= s.step || s.first >= s.tiles ? 0 : (s.tiles - s.first + s.step - 1) / s.step;
    return s;
}

// The block's ring of weight stages. A stage is what the eight warps need for one step of one tile: up to eight pieces,
// which lie one after the other in the packed matrix. Stages come in the order phases, groups of `TG` tiles, steps of K,
// tiles of the group. A ninth warp fills the ring, as far ahead of its use as there is room.
struct Ring {
    char* stages;
    int slot;
    uint32_t parity;

    __device__ __forceinline__ static int count(const DecoderPass& p) {
#if VOX_BULK_COPY
        return p.stages;
#else
        return kCopyStages;
#endif
    }
    __device__ __forceinline__ static uint32_t full(int slot) {
        extern __shared__ __align__(128) char shared[];
        return smem_address(shared) + slot * 16;
    }
    __device__ __forceinline__ static uint32_t empty(int slot) { return full(slot) + 8; }
    // One thread.
    __device__ __forceinline__ static void initialise(const DecoderPass& p) {
        for (int i = 0; i < count(p); i++) {
            mbarrier_init(full(i), VOX_BULK_COPY ? 1 : 32);
            mbarrier_init(empty(i), kWarps);
        }
    }
    __device__ __forceinline__ void advance(const DecoderPass& p) {
        if (++slot == count(p)) slot = 0, parity ^= 1;
    }
    // Calls visit(address, pieces) for every stage of the launch, in order.
    template <int TG, typename Visit>
    __device__ __forceinline__ static void walk(const DecoderPass& p, Visit visit) {
        for (int phase = p.phase_begin; phase < p.phase_end; phase++) {
            const Kind kind = kind_of(p, phase);
            if (kind == kEmbed || kind == kAttention) continue;
            const Share share = share_of(p, phase, kind);
            const long long stride = static_cast<long long>(share.step) * share.pieces * kPiece;
            const char* start =
                share.weights + (static_cast<long long>(share.first) * share.pieces + share.begin) * kPiece;
            for (int group = 0; group < share.count; group += TG, start += stride * TG) {
                const int tiles = min(TG, share.count - group);
                const char* step = start;
                for (int left = share.end - share.begin; left > 0; left -= kWarps, step += kStageBytes) {
                    const char* from = step;
                    for (int tile = 0; tile < tiles; tile++, from += stride) visit(from, min(left, kWarps));
                }
            }
        }
    }
    // The ninth warp's work: fills the ring.
    template <int TG>
    __device__ __forceinline__ void fill(const DecoderPass& p, int lane) {
        int done = 0;
#if VOX_BULK_COPY
        if (lane != 0) return;
        const uint64_t policy = evict_first_policy();
#endif
        walk<TG>(p, [&](const char* from, int pieces) {
            if (done >= count(p)) mbarrier_wait(empty(slot), parity ^ 1);
            char* to = stages + slot * kStageBytes;
#if VOX_BULK_COPY
            bulk_copy(smem_address(to), from, pieces * kPiece, full(slot), policy);
#else
            for (int i = 0; i < pieces; i++)
#pragma unroll
                for (int j = lane * 16; j < kPiece; j += 512)
                    copy_async_16(smem_address(to + i * kPiece + j), from + i * kPiece + j);
            copy_arrive(full(slot));
#endif
            advance(p);
            done++;
        });
#if !VOX_BULK_COPY
        copy_wait_all();
#endif
    }
    // Waits for the next stage and returns the warp's piece of it; `release` gives it back once every lane has used it.
    __device__ __forceinline__ const uint4* wait(int warp) {
        mbarrier_wait(full(slot), parity);
        return reinterpret_cast<const uint4*>(stages + slot * kStageBytes + warp * kPiece);
    }
    __device__ __forceinline__ static void release(int slot, int lane) {
        __syncwarp();
        if (lane == 0) mbarrier_arrive(empty(slot));
    }
};

// The barrier of the eight warps that compute.
__device__ __forceinline__ void block_sync() { asm volatile("bar.sync 1, %0;" ::"n"(kThreads) : "memory"); }

// The grid barrier in two halves; between them a block may prepare what does not depend on others.
__device__ __forceinline__ void grid_arrive(uint32_t* counter) {
    block_sync();
    if (threadIdx.x == 0) add_release(counter, 1u);
}
__device__ __forceinline__ void grid_wait(const uint32_t* counter, uint32_t target) {
    if (threadIdx.x == 0)
        while (load_acquire(counter) < target) {
        }
    block_sync();
}

__device__ __forceinline__ size_t activation_index(int row, int k, int row_stride) {
    return (static_cast<size_t>(k >> 5) * row_stride + row) * 32 + (k & 31);
}

// Stores the residual stream, its normed form for the next product and its sum of squares, 16 features by 16 lanes.
__device__ __forceinline__ void store_residual(const DecoderPass& p, int row, int n, float h, float weight, uint32_t mask) {
    p.residual[static_cast<size_t>(row) * p.dim + n] = h;
    p.normed[activation_index(row, n, p.row_stride)] = __float2bfloat16_rn(h * weight);
    float square = h * h;
#pragma unroll
    for (int o = 8; o > 0; o >>= 1) square += __shfl_xor_sync(mask, square, o);
    if ((n & 15) == 0) p.squares[static_cast<size_t>(row) * (p.dim / 16) + n / 16] = square;
}

// x = audio + token embedding, and the rotation table of the pass.
__device__ void embed(const DecoderPass& p, int rows) {
    const int tiles = p.dim / 16, lane16 = threadIdx.x & 15;
    const uint32_t mask = 0xffffu << (threadIdx.x & 16);
    const float* weight = p.layers[0].attention_norm;
    const int pieces32 = (p.dim + 63) / 64 * 2;
    for (int i = (blockIdx.x * kThreads + threadIdx.x) / 16; i < rows * tiles; i += gridDim.x * (kThreads / 16)) {
        const int row = i / tiles, n = i % tiles * 16 + lane16;
        const int id = p.token[row];
        const float* audio = p.audio[row];
        float h = __bfloat162float(
            p.head[((static_cast<size_t>(id >> 4) * pieces32 + (n >> 5)) * 16 + (id & 15)) * 32 + (n & 31)]);
        if (audio) h += audio[n];
        store_residual(p, row, n, h, weight[n], mask);
    }
    for (int i = blockIdx.x * kThreads + threadIdx.x; i < rows * 64; i += gridDim.x * kThreads) {
        // The angle is an f32 product; it is then reduced in double, so that only its own rounding is left.
        const double angle = static_cast<double>(static_cast<float>(p.position[i >> 6]) * p.inverse_frequency[i & 63]);
        const double turns = angle * 0.15915494309189535;
        float sine, cosine;
        sincospif(static_cast<float>(2.0 * (turns - rint(turns))), &sine, &cosine);
        p.rope[i] = make_float2(cosine, sine);
    }
}

// 1 / rms of every row, into shared memory.
__device__ void row_scales(const DecoderPass& p, int rows, float* scale, int warp, int lane) {
    const int tiles = p.dim / 16;
    for (int row = warp; row < rows; row += kWarps) {
        const float* squares = p.squares + static_cast<size_t>(row) * tiles;
        float sum = 0.0f;
        for (int i = lane; i < tiles; i += 32) sum += __ldcg(squares + i);
#pragma unroll
        for (int o = 16; o > 0; o >>= 1) sum += __shfl_xor_sync(0xffffffffu, sum, o);
        if (lane == 0) scale[row] = 1.0f / sqrtf(sum / static_cast<float>(p.dim) + p.eps);
    }
}

// Where (row, feature) of a warp's 16-feature tile lies among the sums that wait to be added: no two lanes of a
// fragment store meet in a bank. Rows are padded to an even number.
__device__ __forceinline__ int reduce_index(int row, int feature) {
    return (row ^ ((row >> 2) & 1)) * 16 + (feature ^ (((row >> 1) & 1) << 3));
}

__device__ __forceinline__ unsigned long long ranking_key(float value, int id) {
    uint32_t bits = __float_as_uint(value);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<unsigned long long>(bits) << 32 | static_cast<uint32_t>(~id);
}

// One attention unit: the query heads of one kv head, for one group of rows, over one chunk of the cache. Scores:
// warp w takes positions 32w .. 32w+31 of the chunk. Values: warp w takes features 16w .. 16w+15 over all positions.
// The left operand's 16 rows are (row of the group, query head); rows that a group lacks are zero.
struct AttentionUnit {
    int row0, rows, position0;
    int n_chunks, chunk_index, kv_head, heads_log2;
    const bf16* keys;    // of the chunk's first position
    const bf16* values;
    int start, low, high;  // first position of the chunk; first and last position that any row of the group sees
};

__device__ __forceinline__ AttentionUnit attention_unit_of(const DecoderPass& p, const Tables& tables, int layer, int u) {
    AttentionUnit a;
    a.heads_log2 = 31 - __clz(p.n_heads / p.n_kv_heads);
    a.kv_head = u % p.n_kv_heads;
    const int at = u / p.n_kv_heads;
    int group = 0;
    while (tables.prefix[group + 1] <= at) group++;
    a.n_chunks = tables.prefix[group + 1] - tables.prefix[group];
    a.chunk_index = at - tables.prefix[group];
    a.row0 = tables.groups[group].x, a.rows = tables.groups[group].y;
    a.position0 = tables.position[a.row0];
    a.low = max(0, a.position0 - p.window + 1), a.high = a.position0 + a.rows - 1;
    a.start = (a.low / kChunk + a.chunk_index) * kChunk;
    const size_t plane = static_cast<size_t>(p.n_kv_heads) * p.capacity * kHeadDim;
    a.keys = tables.cache[a.row0] + static_cast<size_t>(layer) * 2 * plane +
             (static_cast<size_t>(a.kv_head) * p.capacity + a.start % p.capacity) * kHeadDim;
    a.values = a.keys + plane;
    return a;
}

// Asks for this block's part of the cache while the products that come before still run.
__device__ void attention_prefetch(const DecoderPass& p, const Tables& tables, int n_groups, int layer) {
    const int units = tables.prefix[n_groups] * p.n_kv_heads;
    for (int u = blockIdx.x; u < units; u += gridDim.x) {
        const AttentionUnit a = attention_unit_of(p, tables, layer, u);
        const int from = max(a.low - a.start, 0) & ~31, to = (min(a.high - a.start, kChunk - 1) | 31) + 1;
        const char* keys = reinterpret_cast<const char*>(a.keys + from * kHeadDim);
        const char* values = reinterpret_cast<const char*>(a.values + from * kHeadDim);
        const int bytes = (to - from) * kHeadDim * 2;
        for (int i = threadIdx.x * 2048; i < bytes; i += kThreads * 2048) {
            prefetch_l2(keys + i, 2048);
            prefetch_l2(values + i, 2048);
        }
    }
}

__device__ __forceinline__ void attention_unit(const DecoderPass& p, const AttentionUnit& unit, char* shared, int warp, int lane) {
    bf16* probabilities = reinterpret_cast<bf16*>(shared);             // [8][16][32]
    float* maxima = reinterpret_cast<float*>(shared + 8192);           // [8][16]
    float* sums = maxima + kWarps * 16;                                // [8][16]
    const int g = lane >> 2, t = lane & 3;
    const int heads_log2 = unit.heads_log2, heads = 1 << heads_log2;
    const int row0 = unit.row0, position0 = unit.position0, start = unit.start;
    const int kv_head = unit.kv_head, n_chunks = unit.n_chunks, chunk_index = unit.chunk_index;
    const uint4 zero = make_uint4(0, 0, 0, 0);

    uint4 q[4][2];
    const int mine = start + warp * 32;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int m = g + half * 8, row = row0 + (m >> heads_log2);
        const bf16* query =
            p.query + (static_cast<size_t>(row) * p.n_heads + kv_head * heads + (m & (heads - 1))) * kHeadDim;
#pragma unroll
        for (int i = 0; i < 4; i++)
            q[i][half] = m >> heads_log2 < unit.rows ? load_shared_by_blocks(query + i * 32 + t * 8) : zero;
    }
    // K of the warp's 32 positions. Blocks of 32 that nobody sees stay zero.
    uint4 k[4][4];
    const bool any = mine <= unit.high && mine + 31 >= unit.low;
#pragma unroll
    for (int j = 0; j < 4; j++)
#pragma unroll
        for (int i = 0; i < 4; i++)
            k[j][i] = any ? load_shared_by_blocks(unit.keys + (warp * 32 + j * 8 + g) * kHeadDim + i * 32 + t * 8) : zero;

    // V of the warp's 16 features and all positions: on its way while the scores are computed, or at least normalised.
    uint4 v[kWarps][2];
    auto load_values = [&]() {
#pragma unroll
        for (int b = 0; b < kWarps; b++) {
            const bool inside = start + b * 32 <= unit.high && start + b * 32 + 31 >= unit.low;
#pragma unroll
            for (int d = 0; d < 2; d++)
                v[b][d] =
                    inside ? load_shared_by_blocks(unit.values + (b * kHeadDim + warp * 16 + d * 8 + g) * 32 + t * 8) : zero;
        }
    };
#if VOX_MORE_REGISTERS
    load_values();
#endif

    float s[4][4];
#pragma unroll
    for (int j = 0; j < 4; j++) {
#pragma unroll
        for (int e = 0; e < 4; e++) s[j][e] = 0.0f;
#pragma unroll
        for (int i = 0; i < 4; i++) mma_k32(s[j], q[i][0], q[i][1], k[j][i]);
    }
#if !VOX_MORE_REGISTERS
    load_values();
#endif
    const float scale = rsqrtf(static_cast<float>(kHeadDim)) * 1.4426950408889634f;
    float top[2] = {-INFINITY, -INFINITY};
#pragma unroll
    for (int e = 0; e < 4; e++) {
        const int r = (g + (e >> 1) * 8) >> heads_log2, position = position0 + r;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int at = mine + j * 8 + t * 2 + (e & 1);
            const bool seen = r < unit.rows && at <= position && at > position - p.window;
            s[j][e] = seen ? s[j][e] * scale : -INFINITY;
            top[e >> 1] = fmaxf(top[e >> 1], s[j][e]);
        }
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        top[half] = fmaxf(top[half], __shfl_xor_sync(0xffffffffu, top[half], 1));
        top[half] = fmaxf(top[half], __shfl_xor_sync(0xffffffffu, top[half], 2));
        if (t == 0) maxima[warp * 16 + g + half * 8] = top[half];
    }
    block_sync();
#pragma unroll
    for (int half = 0; half < 2; half++) {
        float m = -INFINITY;
#pragma unroll
        for (int w = 0; w < kWarps; w++) m = fmaxf(m, maxima[w * 16 + g + half * 8]);
        top[half] = m;
        const float safe = m == -INFINITY ? 0.0f : m;
        float sum = 0.0f;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const __nv_bfloat162 pair =
                __floats2bfloat162_rn(exp2f(s[j][half * 2] - safe), exp2f(s[j][half * 2 + 1] - safe));
            const float2 rounded = __bfloat1622float2(pair);
            sum += rounded.x + rounded.y;
            *reinterpret_cast<__nv_bfloat162*>(probabilities + (warp * 16 + g + half * 8) * 32 + j * 8 + t * 2) = pair;
        }
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        if (t == 0) sums[warp * 16 + g + half * 8] = sum;
    }
    block_sync();
    float o[2][4] = {};
#pragma unroll
    for (int b = 0; b < kWarps; b++) {
        const uint4* a = reinterpret_cast<const uint4*>(probabilities + b * 512);
        const uint4 a_low = a[lane], a_high = a[32 + lane];
#pragma unroll
        for (int d = 0; d < 2; d++) mma_k32(o[d], a_low, a_high, v[b][d]);
    }
#pragma unroll
    for (int half = 0; half < 2; half++) {
        const int m = g + half * 8, r = m >> heads_log2, h = m & (heads - 1), row = row0 + r;
        if (r >= unit.rows) continue;
        float sum = 0.0f;
#pragma unroll
        for (int w = 0; w < kWarps; w++) sum += sums[w * 16 + m];
        if (n_chunks == 1) {
#pragma unroll
            for (int d = 0; d < 2; d++) {
                const int n = (kv_head * heads + h) * kHeadDim + warp * 16 + d * 8 + t * 2;
                *reinterpret_cast<uint32_t*>(p.attended + activation_index(row, n, p.row_stride)) =
                    pack_bf16(o[d][half * 2] / sum, o[d][half * 2 + 1] / sum);
            }
        } else {
            const size_t at =
                ((static_cast<size_t>(row) * p.n_kv_heads + kv_head) * p.max_chunks + chunk_index) * heads + h;
#pragma unroll
            for (int d = 0; d < 2; d++)
                *reinterpret_cast<float2*>(p.partial + at * kHeadDim + warp * 16 + d * 8 + t * 2) =
                    make_float2(o[d][half * 2], o[d][half * 2 + 1]);
            if (warp == 0 && t == 0) p.partial_stats[at] = make_float2(top[half], sum);
        }
    }
    block_sync();  // shared memory is free for the next unit
}

// Adds the chunks of every (row, query head), in chunk order: a warp each, four features a lane.
__device__ void combine_chunks(const DecoderPass& p, const Tables& tables, int rows, int warp, int lane) {
    const int heads_log2 = 31 - __clz(p.n_heads / p.n_kv_heads), heads = 1 << heads_log2;
    for (int item = blockIdx.x + gridDim.x * warp; item < rows * p.n_heads; item += gridDim.x * kWarps) {
        const int row = item / p.n_heads, head = item - row * p.n_heads, group = tables.group_of[row];
        const int n = tables.prefix[group + 1] - tables.prefix[group];
        if (n == 1) continue;
        const size_t at = (static_cast<size_t>(row) * p.n_kv_heads + (head >> heads_log2)) * p.max_chunks * heads +
                          (head & (heads - 1));
        const float2 none = make_float2(-INFINITY, 0.0f);
        const float2 low = lane < n ? __ldcg(&p.partial_stats[at + lane * heads]) : none;
        const float2 high = lane + 32 < n ? __ldcg(&p.partial_stats[at + (lane + 32) * heads]) : none;
        float maximum = fmaxf(low.x, high.x);
#pragma unroll
        for (int o = 16; o > 0; o >>= 1) maximum = fmaxf(maximum, __shfl_xor_sync(0xffffffffu, maximum, o));
        const float low_weight = exp2f(low.x - maximum), high_weight = exp2f(high.x - maximum);
        float sum = 0.0f;
        float4 out = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll 8
        for (int c = 0; c < n; c++) {
            const float4 part =
                __ldcg(reinterpret_cast<const float4*>(p.partial + (at + static_cast<size_t>(c) * heads) * kHeadDim) + lane);
            const float weight = __shfl_sync(0xffffffffu, c < 32 ? low_weight : high_weight, c & 31);
            sum = fmaf(weight, __shfl_sync(0xffffffffu, c < 32 ? low.y : high.y, c & 31), sum);
            out.x = fmaf(weight, part.x, out.x), out.y = fmaf(weight, part.y, out.y);
            out.z = fmaf(weight, part.z, out.z), out.w = fmaf(weight, part.w, out.w);
        }
        *reinterpret_cast<uint2*>(p.attended + activation_index(row, head * kHeadDim + lane * 4, p.row_stride)) =
            make_uint2(pack_bf16(out.x / sum, out.y / sum), pack_bf16(out.z / sum, out.w / sum));
    }
}

// NT: tiles of 8 rows (the pass has at most 8 * NT rows). TG: tiles of 16 weight rows that a warp carries at once; with
// TG = 1 a warp keeps its whole part of x in registers and goes through its tiles one by one, otherwise it reads x once
// for every TG tiles, a piece ahead of its use.
//
// grid: one block per multiprocessor, all resident. block: 384. Dynamic shared memory, 16-byte aligned:
// 3072 + reduce_bytes(NT) + stages * 16384, and 8192 more from sm_90 on, where two blocks form a cluster; `stages`
// is 4 below sm_90.
template <int NT, int TG>
__device__ __forceinline__ void decoder_pass(const DecoderPass& p) {
    extern __shared__ __align__(128) char shared[];
    // The first 200 bytes are mbarriers: the ring's, [12] full, empty, and that of the exchange.
    unsigned long long* best = reinterpret_cast<unsigned long long*>(shared + 768);  // [64]
    Tables tables;
    tables.cache = reinterpret_cast<bf16**>(shared + 1280);
    tables.position = reinterpret_cast<int*>(shared + 1792);
    tables.groups = reinterpret_cast<uchar2*>(shared + 2048);
    tables.prefix = reinterpret_cast<unsigned short*>(shared + 2176);
    float* scale = reinterpret_cast<float*>(shared + 2320);           // [64]
    uint32_t* flags = reinterpret_cast<uint32_t*>(shared + 2576);     // [64]
    tables.group_of = reinterpret_cast<unsigned char*>(shared + 2832);   // [64]
    char* reduce_area = shared + kMiscBytes;
    float* reduce = reinterpret_cast<float*>(reduce_area);
    constexpr int kReduce = reduce_bytes(NT);
#if VOX_BULK_COPY
    float* exchange = reinterpret_cast<float*>(reduce_area + kReduce);
    const uint32_t exchange_barrier = smem_address(shared) + 192;
    int exchanges = 0;
    char* ring_area = reduce_area + kReduce + kExchangeBytes;
#else
    char* ring_area = reduce_area + kReduce;
#endif
    const int tid = threadIdx.x, warp = tid >> 5, lane = tid & 31, g = lane >> 2, t = lane & 3;

    Ring ring{ring_area, 0, 0};
    if (tid == 0) {
        Ring::initialise(p);
#if VOX_BULK_COPY
        mbarrier_init(exchange_barrier, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
    }
    __syncthreads();
#if VOX_BULK_COPY
    cluster_barrier();
#endif
    if (warp >= kWarps) {
        give_registers();
        if (warp == kWarps) ring.fill<TG>(p, lane);
        return;
    }
    take_registers();

    const int rows = p.shape[0], n_groups = p.shape[1];
    if (tid < kMaxRows) best[tid] = 0;
    if (tid < rows) {
        tables.cache[tid] = p.cache[tid];
        tables.position[tid] = p.position[tid];
    }
    if (tid < n_groups) {
        const int2 group = p.groups[tid];
        tables.groups[tid] = make_uchar2(group.x, group.y);
        for (int i = 0; i < group.y; i++) tables.group_of[group.x + i] = tid;
        const int position = p.position[group.x];
        tables.prefix[tid + 1] =
            (position + group.y - 1) / kChunk - max(0, position - p.window + 1) / kChunk + 1;
    }
    block_sync();
    if (tid == 0) {
        int sum = 0;
        tables.prefix[0] = 0;
        for (int i = 1; i <= n_groups; i++) tables.prefix[i] = sum += tables.prefix[i];
    }
    block_sync();

    uint32_t target = 0;
    const int even_rows = (rows + 1) & ~1;
    const int tile_floats = even_rows * 16;
    // Tiles whose sums fit in shared memory at once.
    const int round_tiles = min(min(kReduce / (kWarps * 4), kExchangeBytes / 8) / tile_floats, 64);

    for (int phase = p.phase_begin; phase < p.phase_end; phase++) {
        const Kind kind = kind_of(p, phase);
        const int layer = (phase - 1) / 5;
        if (phase > p.phase_begin) grid_arrive(p.counters), target += gridDim.x;
        if (kind == kEmbed) {
            embed(p, rows);
            continue;
        }
        if (kind == kAttention) {
            const int units = tables.prefix[n_groups] * p.n_kv_heads;
            int u = blockIdx.x;
            AttentionUnit unit;
            if (u < units) unit = attention_unit_of(p, tables, layer, u);
            if (phase > p.phase_begin) grid_wait(p.counters, target);
            while (u < units) {
                attention_unit(p, unit, reduce_area, warp, lane);
                u += gridDim.x;
                if (u < units) unit = attention_unit_of(p, tables, layer, u);
            }
            if (tables.prefix[n_groups] > n_groups) {
                // Some row's chunks have to be added.
                grid_arrive(p.counters), target += gridDim.x;
                grid_wait(p.counters, target);
                combine_chunks(p, tables, rows, warp, lane);
            }
            continue;
        }
        const Share share = share_of(p, phase, kind);
        const bf16* x = kind == kWo ? p.attended : kind == kW2 ? p.activated : p.normed;
        const int splits = kind == kWo ? p.wo_splits : kind == kW2 ? p.w2_splits : 1;
        const int piece0 = share.begin + warp;
        const bool adds = kind == kWo || kind == kW2;
        const float* norm = kind == kWo                ? p.layers[layer].ffn_norm
                            : layer + 1 == p.n_layers ? p.final_norm
                                                      : p.layers[layer + 1].attention_norm;

        // Fragments of x: lane (g, t) holds k = 8t .. 8t+7 of each 32, of row 8i + g.
        auto load_x = [&](uint4 (&b)[NT][2], int piece) {
#pragma unroll
            for (int i = 0; i < NT; i++)
#pragma unroll
                for (int half = 0; half < 2; half++)
                    b[i][half] = i * 8 + g < rows && piece < share.end
                                     ? load_shared_by_blocks(
                                           x + (static_cast<size_t>(piece * 2 + half) * p.row_stride + i * 8 + g) * 32 + t * 8)
                                     : make_uint4(0, 0, 0, 0);
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
            for (int j = 0; j < NT; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) acc[j][e] = 0.0f;
        };
        auto store_sums = [&](const float (&acc)[NT][4], int local) {
            float* own = reduce + (warp * round_tiles + local) * tile_floats;
#pragma unroll
            for (int j = 0; j < NT; j++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int row = j * 8 + t * 2 + (e & 1);
                    if (row < rows) own[reduce_index(row, g + (e >> 1) * 8)] = acc[j][e];
                }
        };
        // What the end of wo and w2 adds to and multiplies with. When every thread has at most one element, it is loaded
        // before the products, and so are the rotations of qkv.
        struct Addend {
            float residual, weight;
        };
        auto addend = [&](int row, int n) {
            const float* ada = kind == kWo ? p.ada[row] : nullptr;
            Addend a{__ldcg(&p.residual[static_cast<size_t>(row) * p.dim + n]), norm[n]};
            if (ada) a.weight *= 1.0f + ada[static_cast<size_t>(layer) * p.dim + n];
            return a;
        };
        const bool early = NT == 1 && share.count * rows * 16 <= kThreads && share.count <= round_tiles;
        Addend ready{0.0f, 0.0f};
        float2 ready_turn = make_float2(0.0f, 0.0f);
        // Adds the warps' sums of this block's tiles begin .. begin + tiles - 1 and does what the phase does with them.
        auto finish = [&](int begin, int tiles) {
            auto sum_of = [&](int local, int row, int feature) {
                const float* from = reduce + local * tile_floats + reduce_index(row, feature);
                float sum = 0.0f;
#pragma unroll
                for (int w = 0; w < kWarps; w++) sum += from[w * round_tiles * tile_floats];
                return sum;
            };
            auto add_to_residual = [&](int row, int n, float sum) {
                const Addend a = early ? ready : addend(row, n);
                store_residual(p, row, n, a.residual + sum, a.weight, 0xffffu << (lane & 16));
            };
            block_sync();
            const int items = tiles * rows * 16;
#if VOX_BULK_COPY
            const bool paired = splits == 2;
            // Two halves: the other block is at most one exchange ahead.
            float* received = exchange + (exchanges & 1) * (kExchangeBytes / 8);
            if (paired && tid == 0)
                mbarrier_expect(exchange_barrier, (tiles + ((begin & 1) == share.slice)) / 2 * rows * 64);
#else
            [[maybe_unused]] const bool paired = false;
#endif
            for (int base = 0; base < items; base += kThreads) {
                const int item = base + tid, feature = item & 15;
                const bool valid = item < items;
                const int row = valid ? (item >> 4) % rows : 0, local = valid ? (item >> 4) / rows : 0;
                const int tile = share.first + (begin + local) * share.step;
#if VOX_BULK_COPY
                if (paired) {
                    // The two slices are the two blocks of a cluster: each finishes every other tile.
                    if (valid && ((begin + local) & 1) != share.slice)
                        store_to_peer(received + item, exchange_barrier, share.slice ^ 1, sum_of(local, row, feature));
                    continue;
                }
#endif
                const float sum = sum_of(local, row, feature);
                switch (kind) {
                    case kQkv: {
                        const int n = tile * 16 + feature;
                        const float y = sum * scale[row];
                        const float other = __shfl_xor_sync(0xffffffffu, y, 1);
                        const int n_query = p.n_heads * kHeadDim, n_key = p.n_kv_heads * kHeadDim;
                        const size_t plane = static_cast<size_t>(n_key) * p.capacity;
                        if (!valid) break;
                        if (n < n_query + n_key) {
                            if (feature & 1) break;
                            const float2 turn = early ? ready_turn : __ldcg(&p.rope[row * 64 + (n % kHeadDim) / 2]);
                            const uint32_t pair = pack_bf16(y * turn.x - other * turn.y, y * turn.y + other * turn.x);
                            if (n < n_query) {
                                *reinterpret_cast<uint32_t*>(p.query + static_cast<size_t>(row) * n_query + n) = pair;
                            } else {
                                const int slot = tables.position[row] % p.capacity, head = (n - n_query) / kHeadDim;
                                bf16* keys = tables.cache[row] + static_cast<size_t>(layer) * 2 * plane;
                                *reinterpret_cast<uint32_t*>(
                                    keys + (static_cast<size_t>(head) * p.capacity + slot) * kHeadDim + n % kHeadDim) = pair;
                            }
                        } else {
                            const int slot = tables.position[row] % p.capacity, head = (n - n_query - n_key) / kHeadDim;
                            bf16* values = tables.cache[row] + static_cast<size_t>(layer) * 2 * plane + plane;
                            values[static_cast<size_t>(head) * p.capacity * kHeadDim +
                                   (static_cast<size_t>(slot >> 5) * kHeadDim + n % kHeadDim) * 32 + (slot & 31)] =
                                __float2bfloat16_rn(y);
                        }
                        break;
                    }
                    case kW13: {
                        const float y = sum * scale[row];
                        const float up = __shfl_down_sync(0xffffffffu, y, 8);
                        if (valid && feature < 8)
                            p.activated[activation_index(row, tile * 8 + feature, p.row_stride)] =
                                __float2bfloat16_rn(y / (1.0f + expf(-y)) * up);
                        break;
                    }
                    case kHead: {
                        const int n = tile * 16 + feature;
                        const float y = sum * scale[row];
                        if (valid && n < p.vocab && p.logits) p.logits[static_cast<size_t>(row) * p.vocab + n] = y;
                        unsigned long long key = valid && n < p.vocab ? ranking_key(y, n) : 0;
#pragma unroll
                        for (int o = 8; o > 0; o >>= 1) {
                            const unsigned long long rival = __shfl_xor_sync(0xffffffffu, key, o);
                            key = rival > key ? rival : key;
                        }
                        if (feature == 0 && valid) atomicMax(&best[row], key);
                        break;
                    }
                    default:
                        if (!valid) break;
                        if (splits == 1)
                            add_to_residual(row, tile * 16 + feature, sum);
                        else
                            p.slices[((static_cast<size_t>(share.slice) * share.tiles + tile) * p.row_stride + row) * 16 +
                                     feature] = sum;
                }
            }
            if (splits == 1) return;
#if VOX_BULK_COPY
            if (paired) {
                mbarrier_wait(exchange_barrier, exchanges++ & 1);
                for (int item = tid; item < items; item += kThreads) {
                    const int feature = item & 15, row = (item >> 4) % rows, local = (item >> 4) / rows;
                    if (((begin + local) & 1) == share.slice)
                        add_to_residual(row, (share.first + (begin + local) * share.step) * 16 + feature,
                                        sum_of(local, row, feature) + received[item]);
                }
                return;
            }
#endif
            // The last slice to arrive at a tile adds them all, in slice order.
            block_sync();
            if (tid < tiles) {
                uint32_t* counter = p.counters + 4 + share.first + (begin + tid) * share.step;
                const bool last = add_acquire_release(counter, 1u) == static_cast<uint32_t>(splits - 1);
                if (last) *counter = 0;
                flags[tid] = last;
            }
            block_sync();
            for (int item = tid; item < items; item += kThreads) {
                const int feature = item & 15, row = (item >> 4) % rows, local = (item >> 4) / rows;
                if (!flags[local]) continue;
                const int tile = share.first + (begin + local) * share.step;
                float sum = 0.0f;
                for (int s = 0; s < splits; s++)
                    sum += __ldcg(
                        &p.slices[((static_cast<size_t>(s) * share.tiles + tile) * p.row_stride + row) * 16 + feature]);
                add_to_residual(row, tile * 16 + feature, sum);
            }
        };

        const int steps = (share.end - share.begin + kWarps - 1) / kWarps;
        if (kind == kQkv) attention_prefetch(p, tables, n_groups, layer);
        if (adds) {
            // The end of the phase should not wait for device memory.
            for (int i = tid; i < share.count; i += kThreads) {
                const int n = (share.first + i * share.step) * 16;
                prefetch_l2(reinterpret_cast<const char*>(norm + n), 64);
                const float* ada = kind == kWo ? p.ada[0] : nullptr;
                if (ada) prefetch_l2(reinterpret_cast<const char*>(ada + static_cast<size_t>(layer) * p.dim + n), 64);
            }
        }
        if (phase > p.phase_begin) grid_wait(p.counters, target);
        if constexpr (TG == 1) {
            uint4 b[kSteps][NT][2];
#pragma unroll
            for (int i = 0; i < kSteps; i++) load_x(b[i], piece0 + i * kWarps);
            if (kind == kQkv || kind == kW13 || kind == kHead) row_scales(p, rows, scale, warp, lane);
            if (early && (adds || kind == kQkv) && tid < share.count * rows * 16) {
                const int row = (tid >> 4) % rows, n = (share.first + (tid >> 4) / rows * share.step) * 16 + (tid & 15);
                if (adds)
                    ready = addend(row, n);
                else
                    ready_turn = __ldcg(&p.rope[row * 64 + (n % kHeadDim) / 2]);
            }
            for (int begin = 0; begin < share.count; begin += round_tiles) {
                const int tiles = min(round_tiles, share.count - begin);
                block_sync();  // the sums of the round before have been read
                for (int local = 0; local < tiles; local++) {
                    float acc[NT][4];
                    clear(acc);
                    for (int first = 0; first < steps; first += kSteps) {
                        if (steps > kSteps) {
#pragma unroll
                            for (int i = 0; i < kSteps; i++) load_x(b[i], piece0 + (first + i) * kWarps);
                        }
                        // The next stage's fragments are read while the matrix unit works on this one's.
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
                        for (int i = 0; i < kSteps; i++)
                            if (first + i < steps) {
                                int next = 0;
                                if (i + 1 < kSteps && first + i + 1 < steps) next = fetch(a[(i + 1) & 1]);
                                if (piece0 + (first + i) * kWarps < share.end) {
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
                    store_sums(acc, local);
                }
                finish(begin, tiles);
            }
        } else {
            uint4 b[NT][2];
            load_x(b, piece0);
            if (kind == kQkv || kind == kW13 || kind == kHead) row_scales(p, rows, scale, warp, lane);
            for (int group = 0; group < share.count; group += TG) {
                const int group_tiles = min(TG, share.count - group);
                float acc[TG][NT][4];
#pragma unroll
                for (int i = 0; i < TG; i++) clear(acc[i]);
                for (int i = 0; i < steps; i++) {
                    uint4 ahead[NT > 4 ? 1 : NT][2];
                    if constexpr (NT > 4)
                        load_x(b, piece0 + i * kWarps);
                    else
                        load_x(ahead, i + 1 < steps ? piece0 + (i + 1) * kWarps : piece0);
#pragma unroll
                    for (int tile = 0; tile < TG; tile++)
                        if (tile < group_tiles) multiply(acc[tile], b, piece0 + i * kWarps < share.end);
                    if constexpr (NT <= 4) {
#pragma unroll
                        for (int j = 0; j < NT; j++) b[j][0] = ahead[j][0], b[j][1] = ahead[j][1];
                    }
                }
                for (int round = 0; round < group_tiles; round += round_tiles) {
                    const int tiles = min(round_tiles, group_tiles - round);
                    block_sync();
#pragma unroll
                    for (int i = 0; i < TG; i++)
                        if (i >= round && i < round + tiles) store_sums(acc[i], i - round);
                    finish(group + round, tiles);
                }
            }
        }
        if (kind == kHead) {
            block_sync();
            if (tid < rows) atomicMax(&p.best[tid], best[tid]);
        }
    }

    // The last block to get here leaves the counters as it found them and publishes the ids.
    __threadfence();
    block_sync();
    if (tid == 0) flags[0] = atomicAdd(p.counters + 1, 1u) == gridDim.x - 1;
    block_sync();
    if (flags[0]) {
        __threadfence();
        if (tid == 0) p.counters[0] = 0, p.counters[1] = 0;
        if (p.phase_end == 5 * p.n_layers + 2 && tid < rows) {
            const unsigned long long key = atomicExch(&p.best[tid], 0ull);
            const uint32_t bits = static_cast<uint32_t>(key >> 32);
            p.next[tid] = static_cast<int>(~static_cast<uint32_t>(key));
            p.next_logit[tid] = __uint_as_float(bits & 0x80000000u ? bits & 0x7fffffffu : ~bits);
        }
    }
}

}  // namespace vox

#if VOX_BULK_COPY
#define VOX_CLUSTER __cluster_dims__(2, 1, 1)
#else
#define VOX_CLUSTER
#endif
#define VOX_DECODER_PASS(NT, TG)                                                                              \
    extern "C" __global__ void __launch_bounds__(vox::kBlock, 1) VOX_CLUSTER                                \
        decoder_pass_##NT(const __grid_constant__ vox::DecoderPass p) {                                       \
        vox::decoder_pass<NT, TG>(p);                                                                         \
    }

// Up to 8, 16, 32, 40 and 64 rows. More rows leave fewer registers for x and tiles, so x is read more often.
VOX_DECODER_PASS(1, 1)
#if VOX_MORE_REGISTERS
VOX_DECODER_PASS(2, 9)
VOX_DECODER_PASS(4, 5)
VOX_DECODER_PASS(5, 4)
VOX_DECODER_PASS(8, 2)
#else
VOX_DECODER_PASS(2, 5)
VOX_DECODER_PASS(4, 3)
VOX_DECODER_PASS(5, 3)
VOX_DECODER_PASS(8, 2)
#endif
