// What the parts of the decoder's pass share: its parameters, what a block knows of the pass, loads, barriers, and the
// norms. decoder.cu says how the pass works.

#pragma once

#include "e4m7.cuh"

// From sm_90 on weights come through the bulk copy engine and blocks form clusters of two.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
#define BULK_COPY 1
#else
#define BULK_COPY 0
#endif
// Where warpgroups can trade registers (sm_90a), the warps that help hand theirs to those that compute.
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define TRADE_REGISTERS 1
#else
#define TRADE_REGISTERS 0
#endif

constexpr int WARPS = 8;                  // that compute
constexpr int THREADS = WARPS * 32;
constexpr int BLOCK = THREADS + 4 * 32;   // and one that fills the ring, with three that make it a warpgroup
constexpr int HEAD_DIM = 128;
constexpr int TEAM_WARPS = 4;             // that work on a unit of attention
constexpr int CHUNK = TEAM_WARPS * 32;    // cache positions of a unit: 32 for each warp
constexpr int MAX_CHUNKS = 96;            // that a position may see
constexpr int MAX_ROWS = 128;
constexpr int MAX_LAYERS = 64;
constexpr int INT8_PIECE_BYTES = 1024;    // 16 rows of weights by 64 k in 8 bits
constexpr int STAGE_BYTES = WARPS * PIECE_BYTES;
constexpr int MAX_STAGES = 17;
constexpr int SHARED_BYTES = 5120;        // for `Shared`
constexpr int NO_ROW = 255;

struct DecoderLayer {
    const char* wqkv;  // packed matrices: tiles, then scales of rows
    const char* wo;
    const char* w13;
    const char* w2;
    const float* attention_norm;  // [width]
    const float* ffn_norm;        // [width]
};

// Everything a pass needs. What changes from pass to pass lies behind pointers, so a launch can be replayed. `width` is
// `dim` padded: rows of F32 have that stride, and are zero beyond `dim`.
struct DecoderPass {
    // the model
    int dim, width, n_heads, n_kv_heads, hidden, vocab, n_layers, window;
    float eps;
    float scale;              // of scores: log2(e) / sqrt(HEAD_DIM)
    int max_chunks;           // chunks of the cache that a group of rows may see
    // the launch
    int sum_bytes;            // for sums that wait to be added; then come `exchange_bytes` for those of another block
    int exchange_bytes;
    int stages;               // of the ring; in wide kernels places for tiles of a stage
    int x_stages;             // of wide kernels
    int phase_begin, phase_end;
    const float* final_norm;         // [width]
    const char* tokens;              // [vocab, dim], packed: the embeddings
    const char* head;                // and the output matrix
    const char* head_int8;           // the same in 8 bits, for kernels that multiply with that
    const float* frequencies;        // [HEAD_DIM / 2]
    // the pass
    const int* shape;                // rows, groups, rows of the head
    const int2* groups;              // first row, rows: consecutive positions of one stream, at most 16 / heads per kv head
    const Row* rows;                 // those of a stream one after the other
    // scratch, zero at first
    float* residual;                 // [MAX_ROWS][width]
    float* squares;                  // [2][MAX_ROWS][dim / 16]
    float2* rope;                    // [MAX_ROWS][HEAD_DIM / 2] cosine, sine
    real16* normed;                  // activations, k = dim
    real16* query;                   // [MAX_ROWS][n_heads * HEAD_DIM]
    real16* attended;                // activations, k = n_heads * HEAD_DIM
    real16* activated;               // activations, k = hidden
    float* slices;                   // [SPLITS][dim / 16][MAX_ROWS][16]
    float* partial;                  // [rows of the largest kernel][n_kv_heads][max_chunks][heads per kv head][HEAD_DIM]
    float2* partial_stats;           // the same without HEAD_DIM: highest score, sum
    uint32_t* counters;              // [4 + dim / 16] barrier, blocks that are done, and from [4] on those of tiles
    // results
    unsigned long long* best;        // [rows of the head] the largest logit and its id, see `ranking_key`
    float* logits;                   // [rows of the head][vocab], or null
    DecoderLayer layers[MAX_LAYERS];
};

// What a block knows of the pass.
struct Shared {
    unsigned long long barriers[2 * MAX_STAGES + 2];  // the ring's [full, empty], those of the exchange and of x
    unsigned long long best[MAX_ROWS];
    real16* cache[MAX_ROWS];
    int position[MAX_ROWS];
    float inverse[MAX_ROWS];    // 1 / rms at the last norm
    float scale[MAX_ROWS];      // what the sums of the running product are multiplied by
    unsigned short chunks[MAX_ROWS];      // of a row's cache
    unsigned short prefix[MAX_ROWS + 1];  // attention chunks of the groups before
    uchar2 groups[MAX_ROWS];
    uint8_t group_of[MAX_ROWS];   // the group of a row
    uint8_t head_row[MAX_ROWS];   // where a row is among those of the head, or NO_ROW
    uint8_t origin[MAX_ROWS];     // and the other way round
    bool last[64];                // whether this block is the last one to add to a tile of the round
};
static_assert(sizeof(Shared) <= SHARED_BYTES, "the ring begins there");

enum Phase { EMBED, QKV, ATTENTION, WO, W13, W2, HEAD };
constexpr int LAYER_PHASES = 5;
// Slices of k in which wo and w2 are summed.
constexpr int SPLITS = 2;

__device__ __forceinline__ Phase phase_kind(const DecoderPass& p, int phase) {
    if (phase == 0) return EMBED;
    if (phase > LAYER_PHASES * p.n_layers) return HEAD;
    return static_cast<Phase>(QKV + (phase - 1) % LAYER_PHASES);
}

// Two steps of 16. Lane (g, t) = (lane / 4, lane % 4) holds eight consecutive k, 8t .. 8t+7, of column g of the right operand
// and of rows g and g + 8 of the left one. The matrix unit's own order within the 32 differs, but
// both operands are permuted alike, so the product is the same sum.
__device__ __forceinline__ void mma_k32(float (&c)[4], const uint4 (&a)[2], const uint4& b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%10,%11,%12,%13}, {%14,%15}, {%0,%1,%2,%3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0].x), "r"(a[0].y), "r"(a[0].z), "r"(a[0].w), "r"(b.x), "r"(b.y), "r"(a[1].x), "r"(a[1].y), "r"(a[1].z),
          "r"(a[1].w), "r"(b.z), "r"(b.w));
}

// Eight numbers of 8 bits, 128 more than they stand for, as F16: 0x6400 + n is 1024 + n.
__device__ __forceinline__ uint4 widened(uint32_t first, uint32_t second) {
    auto pair = [](uint32_t four, uint32_t selector) {
        const uint32_t bits = __byte_perm(four, 0x64646464u, selector);
        const __half2 off = __half2half2(__ushort_as_half(0x6480));
        const __half2 value = __hsub2(*reinterpret_cast<const __half2*>(&bits), off);
        return *reinterpret_cast<const uint32_t*>(&value);
    };
    return make_uint4(pair(first, 0x4140), pair(first, 0x4342), pair(second, 0x4140), pair(second, 0x4342));
}

// A lane's part of a piece of weights as it is in memory.
template <bool INT8>
struct Packed {
    static constexpr int QUADS = INT8 ? 2 : 3;
    uint4 quads[QUADS];
};

// The lane's fragments, see `mma_k32`: of the first 32 k or the second.
template <bool INT8>
__device__ __forceinline__ void fragments(const Packed<INT8>& from, int half, uint4 (&w)[2]) {
    if constexpr (INT8) {
        const uint4 &low = from.quads[0], &high = from.quads[1];
        left_operand(half ? widened(low.z, low.w) : widened(low.x, low.y),
                     half ? widened(high.z, high.w) : widened(high.x, high.y), w);
    } else {
        e4m7_fragments(from.quads, half, w);
    }
}

// Loads that skip L1: other blocks of the same launch wrote the data.
__device__ __forceinline__ uint4 load_fresh(const void* p) { return __ldcg(reinterpret_cast<const uint4*>(p)); }

// The same, in the order in which they are written: the compiler would rather spare registers than have all on the way at once.
__device__ __forceinline__ uint4 load_now(const void* p) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(p));
    return v;
}

__device__ __forceinline__ uint32_t load_acquire(const uint32_t* p) {
    uint32_t v;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(v) : "l"(p) : "memory");
    return v;
}

// Makes what the block wrote before its last barrier visible to whoever sees the counter.
__device__ __forceinline__ void add_release(uint32_t* p, uint32_t v) {
    asm volatile("red.release.gpu.global.add.u32 [%0], %1;" ::"l"(p), "r"(v) : "memory");
}

// Asks for `bytes` (a multiple of 16) from p on to be in L2; below sm_90 for the 128-byte lines that begin there.
__device__ __forceinline__ void prefetch_l2(const void* p, int bytes) {
#if BULK_COPY
    asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(p), "r"(bytes) : "memory");
#else
    for (int i = 0; i < bytes; i += 128) {
        asm volatile("prefetch.global.L2 [%0];" ::"l"(static_cast<const char*>(p) + i) : "memory");
    }
#endif
}

__device__ __forceinline__ void give_registers() {
#if TRADE_REGISTERS
    asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
#endif
}
__device__ __forceinline__ void take_registers() {
#if TRADE_REGISTERS
    asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
#endif
}

__device__ __forceinline__ void barrier_init(uint32_t barrier, uint32_t count) {
    asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
__device__ __forceinline__ void barrier_arrive(uint32_t barrier) {
    asm volatile("{\n.reg .b64 state;\nmbarrier.arrive.shared.b64 state, [%0];\n}\n" ::"r"(barrier) : "memory");
}
__device__ __forceinline__ void barrier_wait(uint32_t barrier, uint32_t parity) {
#if BULK_COPY
#define TRY_WAIT "mbarrier.try_wait.parity.shared.b64"
#else
#define TRY_WAIT "mbarrier.test_wait.parity.shared.b64"
#endif
    asm volatile("{\n.reg .pred p;\nagain:\n" TRY_WAIT " p, [%0], %1;\n@!p bra again;\n}\n" ::"r"(barrier), "r"(parity)
                 : "memory");
}

// Whether `barrier_wait` would return at once.
__device__ __forceinline__ bool barrier_test(uint32_t barrier, uint32_t parity) {
    uint32_t over;
    asm volatile("{\n.reg .pred p;\nmbarrier.test_wait.parity.shared.b64 p, [%1], %2;\nselp.u32 %0, 1, 0, p;\n}\n"
                 : "=r"(over)
                 : "r"(barrier), "r"(parity)
                 : "memory");
    return over != 0;
}

#if BULK_COPY
// Arrives, and expects `bytes` more to come in before the barrier's phase is complete.
__device__ __forceinline__ void barrier_expect(uint32_t barrier, uint32_t bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
// Stores to the same place in the shared memory of another block of the cluster, and counts the bytes on its barrier.
__device__ __forceinline__ void store_to_peer(float* p, uint32_t barrier, uint32_t rank, float4 v) {
    uint32_t remote, remote_barrier;
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote) : "r"(shared_address(p)), "r"(rank));
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(remote_barrier) : "r"(barrier), "r"(rank));
    asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
                     remote),
                 "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w), "r"(remote_barrier)
                 : "memory");
}
// `bytes` (a multiple of 16) from global to shared memory, counted on `barrier`, which expects them already. The policy says
// how soon the data may leave L2.
__device__ __forceinline__ void bulk_copy(uint32_t to, const void* from, uint32_t bytes, uint32_t barrier, uint64_t policy) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint [%0], [%1], %2, [%3], %4;" ::"r"(
            to),
        "l"(from), "r"(bytes), "r"(barrier), "l"(policy)
        : "memory");
}
// Orders what threads wrote before what the copy engine reads.
__device__ __forceinline__ void fence_copies() { asm volatile("fence.proxy.async;" ::: "memory"); }
// To be passed before shared memory that this thread has read is given back to the copy engine. Its writes do not queue behind
// reads: one that still waits when the barrier's phase ends would find what the engine has brought since.
__device__ __forceinline__ void fence_reads() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// For what all blocks read.
__device__ __forceinline__ uint64_t evict_last_policy() {
    uint64_t policy;
    asm volatile("createpolicy.fractional.L2::evict_last.b64 %0, 1.0;" : "=l"(policy));
    return policy;
}
#else
// Counts an arrival of this lane on `barrier` when its copies so far have landed.
__device__ __forceinline__ void copy_arrive(uint32_t barrier) {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(barrier) : "memory");
}
// Copies of this kind are writes as any other, which the barrier orders after reads.
__device__ __forceinline__ void fence_reads() {}
__device__ __forceinline__ void copy_wait_all() { asm volatile("cp.async.wait_all;" ::: "memory"); }
#endif

// The barrier of the warps that compute.
__device__ __forceinline__ void block_sync() { asm volatile("bar.sync 1, %0;" ::"n"(THREADS) : "memory"); }

// The barrier of the warps of a team. Its number is a constant, or the compiler takes all sixteen.
__device__ __forceinline__ void team_sync(int team) {
    if (team == 0) {
        asm volatile("bar.sync 2, %0;" ::"n"(TEAM_WARPS * 32) : "memory");
    } else {
        asm volatile("bar.sync 3, %0;" ::"n"(TEAM_WARPS * 32) : "memory");
    }
}

// The grid's barrier in two halves; between them a block may prepare what does not depend on others.
__device__ __forceinline__ void grid_arrive(uint32_t* counter) {
    block_sync();
    if (threadIdx.x == 0) add_release(counter, 1u);
}
__device__ __forceinline__ void grid_wait(const uint32_t* counter, uint32_t target) {
    if (threadIdx.x == 0) {
        while (load_acquire(counter) < target) {
        }
    }
    block_sync();
}

__device__ __forceinline__ size_t activation_index(int row, int k) {
    return (static_cast<size_t>(k >> 5) * MAX_ROWS + row) * 32 + (k & 31);
}

// 1 / rms of a row from its sums of squares; all lanes of a warp.
template <typename P>
__device__ __forceinline__ float inverse_rms(const P& p, int norm, int row, int lane) {
    const int tiles = (p.dim + 15) / 16;
    const float* squares = p.squares + static_cast<size_t>((norm & 1) * MAX_ROWS + row) * tiles;
    float sum = 0.0f;
    for (int i = lane; i < tiles; i += 32) sum = __fadd_rn(sum, __ldcg(squares + i));
    return 1.0f / sqrtf(warp_sum(sum) / static_cast<float>(p.dim) + p.eps);
}

// Sums of squares of a warp's rows, up to NT of them, on their way: nobody waits for the loads before `row_scales` needs them.
template <int NT>
struct Squares {
    static constexpr int AHEAD = 6;
    float values[AHEAD][NT];

    // The tiles first, first + 32, ... of the warp's rows.
    __device__ __forceinline__ void load(const DecoderPass& p, int norm, int rows, int warp, int first) {
        const int tiles = (p.dim + 15) / 16;
        const float* squares = p.squares + static_cast<size_t>((norm & 1) * MAX_ROWS + warp) * tiles;
#pragma unroll
        for (int i = 0; i < AHEAD; i++) {
#pragma unroll
            for (int j = 0; j < NT; j++) {
                const bool valid = first + i * 32 < tiles && warp + j * WARPS < rows;
                values[i][j] = valid ? __ldcg(squares + j * WARPS * tiles + first + i * 32) : 0.0f;
            }
        }
    }
};

// What the sums of a product with normed rows are multiplied by, and `inverse` for those who write the next norm's rows.
// Norms are counted from the first layer's on; rows of the last one are those of the head. `squares` has the first ones, of
// tiles from `lane` on. The sums are those of `inverse_rms`.
template <int NT>
__device__ __forceinline__ void row_scales(const DecoderPass& p, Shared& s, Squares<NT>& squares, int norm, int rows, int warp,
                                           int lane) {
    const bool last = norm == 2 * p.n_layers;
    const int tiles = (p.dim + 15) / 16;
    float sums[NT] = {};
    for (int first = lane;;) {
#pragma unroll
        for (int i = 0; i < Squares<NT>::AHEAD; i++) {
#pragma unroll
            for (int j = 0; j < NT; j++) sums[j] = __fadd_rn(sums[j], squares.values[i][j]);
        }
        first += Squares<NT>::AHEAD * 32;
        if (first - lane >= tiles) break;
        squares.load(p, norm, rows, warp, first);
    }
    // each row's sum in a lane, which finishes it beside the others
    float sum = 0.0f;
#pragma unroll
    for (int j = 0; j < NT; j++) {
        const float of_row = warp_sum(sums[j]);
        if (lane == j) sum = of_row;
    }
    const int row = warp + lane * WARPS;
    if (lane >= NT || row >= rows) return;
    const float inverse = 1.0f / sqrtf(sum / static_cast<float>(p.dim) + p.eps);
    const int origin = last ? s.origin[row] : row;
    s.scale[row] = norm == 0 ? inverse : inverse / power_below(s.inverse[origin]);
    if (!last) s.inverse[row] = inverse;
}

// Where (row, feature) of a warp's 16-feature tile lies among the sums that wait to be added: no two lanes of a fragment
// store meet in a bank. Rows are padded to an even number.
__device__ __forceinline__ int sum_index(int row, int feature) {
    return (row ^ ((row >> 2) & 1)) * 16 + (feature ^ (((row >> 1) & 1) << 3));
}

// Orders (value, lowest id); what is not a number comes first, and is found by whoever reads the result.
__device__ __forceinline__ unsigned long long ranking_key(float value, int id) {
    uint32_t bits = __float_as_uint(value);
    bits = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    if (value != value) bits = ~0u;
    return static_cast<unsigned long long>(bits) << 32 | static_cast<uint32_t>(~id);
}
