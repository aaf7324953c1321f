// What the parts of the encoder's layers in one kernel share: its parameters, words by which blocks tell each other what they have,
// the ring through which weights and keys come, and the matrix unit's products. encoder_layers.cu says how the kernel works.

#pragma once

#include "attention.cuh"
#include "hopper.cuh"
#include "norm.cuh"

#if HOPPER

constexpr int HEAD_DIM = 64, MAX_ROWS = 8, MAX_LAYERS = 48, MAX_UNITS = 32, MAX_WIDTH = 5120;
constexpr int QKV_TILES = 3, W13_TILES = 6;  // of 16 outputs of a block, at most
// A place of the ring holds up to 48 outputs by 128 of k, 96 by 64, 16 by 256, or keys or values of a block.
constexpr int SLOTS = 12, SLOT_BYTES = 12288;
// Places that are asked for and not there yet, at most, as in decoder_ring.cuh.
constexpr int IN_FLIGHT = 3;
static_assert(IN_FLIGHT <= SLOTS, "the place of what lands next is not given out again before");
// Rows come in chunks of so many columns.
constexpr int CHUNK = 1280, CHUNK_BARRIERS = 8;
constexpr int THREADS = 384;

// Two numbers of F32 or four of F16, and whose they are.
struct alignas(16) Word {
    uint64_t numbers, stamp;
};

struct EncoderLayer {
    const uint8_t *qkv, *wo, *w13, *w2;  // packed, see pack.cu
    const float *attention_norm, *ffn_norm;
    const float *qkv_bias, *wo_bias, *w2_bias;  // may be null
};

struct EncoderLayers {
    const Segment* segments;
    const TensorMap* rings;  // of each segment's ring: [n_layers * 2 * n_slots][kv_dim], in boxes of 64 by 64
    const float2* rope;      // [rows][HEAD_DIM / 2]
    float* residual;         // [rows][width], read by the first layer and written by the last
    // words, whose stamps are 0 before the first pass
    Word* sums[2];           // [MAX_ROWS][width / 2]: the residual stream after wo and after w2
    Word* qkv;               // [MAX_ROWS][qkv_width / 4]
    Word* attended;          // [MAX_ROWS][q_width / 4]
    Word* hidden;            // [MAX_ROWS][hidden_width / 4]
    Word* found;             // [segments][n_heads][max_blocks][FOUND]
    uint32_t* counters;      // zeros before the first pass
    int rows, n_segments, first_layer, end_layer;
    int dim, width, q_dim, kv_dim, q_width, qkv_width, hidden_width;  // those with padding are multiples of 128
    int n_heads, group, n_slots, window, max_blocks;
    float eps, scale;
    EncoderLayer layers[MAX_LAYERS];
};
static_assert(sizeof(EncoderLayers) <= 4096, "a kernel's parameters");

// Counters lie 128 bytes apart. PASSES counts launches, the others are zero between them.
enum Counter { QKV_DONE = 0, HEADS_DONE = 32, WO_DONE = 64, W13_DONE = 96, W2_DONE = 128, BLOCKS_DONE = 160, PASSES = 192 };

// What a warp found of a block of keys: pairs of its sums of values, then of each row four times a part of the weights' total
// and the highest score.
constexpr int TOTALS = MAX_ROWS * HEAD_DIM / 2, FOUND = TOTALS + MAX_ROWS * 4;

// A block of keys of a head of a segment.
struct Unit {
    int segment, head, block, first_block;
};

// Blocks of keys that a segment's queries see.
__device__ __forceinline__ int first_block(const EncoderLayers& p, const Segment& s) {
    return max(0, s.position - p.window + 1) / KEYS;
}
__device__ __forceinline__ int last_block(const Segment& s) { return (s.position + s.n_rows - 1) / KEYS; }

struct Memory {
    uint8_t x[MAX_WIDTH / 64 * 1024];  // rows, in blocks of 64 columns as the matrix unit wants them
    uint64_t full[SLOTS], empty[SLOTS], x_full[CHUNK_BARRIERS];
    Unit units[MAX_UNITS];
    Segment segments[MAX_ROWS];
};
static_assert(SLOTS * SLOT_BYTES + sizeof(Memory) <= 226 * 1024, "SHARED_BYTES in encoder_layers.rs");

// Tiles [first, first + n) of this block.
struct Share {
    int first, n;
};

// As equal numbers as there can be, the larger ones of the last blocks.
__device__ __forceinline__ Share share_of(int n) {
    const int least = n / gridDim.x, fewer = gridDim.x - n % gridDim.x, block = blockIdx.x;
    return {block * least + max(0, block - fewer), least + (block >= fewer ? 1 : 0)};
}

struct Shares {
    Share qkv, w13;            // in tiles of 16 and in pairs of them
    int wo, w2;                // tile of 16, or -1
    int n_qkv, n_w13, n_wide;  // blocks that have a part
    __device__ __forceinline__ explicit Shares(const EncoderLayers& p) {
        const int blocks = gridDim.x, block = blockIdx.x, n_tiles = p.qkv_width / 16, n_pairs = p.hidden_width / 16;
        qkv = share_of(n_tiles), w13 = share_of(n_pairs);
        n_qkv = min(n_tiles, blocks), n_w13 = min(n_pairs, blocks), n_wide = p.width / 16;
        // w13's larger shares are those of the last blocks, and so is wo; w2 is for the first
        w2 = block < n_wide ? block : -1;
        wo = blocks - 1 - block < n_wide ? blocks - 1 - block : -1;
    }
};

__device__ __forceinline__ void store_word(Word* to, uint64_t numbers, uint32_t stamp) {
    asm volatile("{\n.reg .b128 word;\nmov.b128 word, {%1, %2};\nst.relaxed.gpu.global.b128 [%0], word;\n}\n" ::"l"(to),
                 "l"(numbers), "l"(static_cast<uint64_t>(stamp))
                 : "memory");
}

__device__ __forceinline__ Word load_word(const Word* from) {
    Word word;
    asm volatile("{\n.reg .b128 word;\nld.relaxed.gpu.global.b128 word, [%2];\nmov.b128 {%0, %1}, word;\n}\n"
                 : "=l"(word.numbers), "=l"(word.stamp)
                 : "l"(from)
                 : "memory");
    return word;
}

template <int N>
__device__ __forceinline__ bool all_have(const Word (&words)[N], uint32_t stamp) {
    bool all = true;
#pragma unroll
    for (int i = 0; i < N; i++) all &= words[i].stamp == stamp;
    return all;
}

// N words of each lane, the i-th at from(i), once all have the stamp; those at null are zeros. All lanes of a warp.
template <int N, typename From>
__device__ __forceinline__ void load_words(uint64_t (&numbers)[N], uint32_t stamp, From from) {
    Word words[N];
    do {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const Word* p = from(i);
            words[i] = Word{0, stamp};
            if (p != nullptr) words[i] = load_word(p);
        }
    } while (!__all_sync(~0u, all_have(words, stamp)));
#pragma unroll
    for (int i = 0; i < N; i++) numbers[i] = words[i].numbers;
}

__device__ __forceinline__ uint64_t joined(uint32_t low, uint32_t high) { return static_cast<uint64_t>(high) << 32 | low; }
__device__ __forceinline__ uint64_t word_of(float a, float b) { return joined(__float_as_uint(a), __float_as_uint(b)); }
__device__ __forceinline__ uint64_t word_of(const float4& v) { return joined(pack16(v.x, v.y), pack16(v.z, v.w)); }
__device__ __forceinline__ float2 pair_of(uint64_t numbers) {
    return make_float2(__uint_as_float(static_cast<uint32_t>(numbers)), __uint_as_float(static_cast<uint32_t>(numbers >> 32)));
}

// Says that the calling warp's words are on their way.
__device__ __forceinline__ void count(uint32_t* counter) {
    __syncwarp();
    if (threadIdx.x % 32 == 0) asm volatile("red.relaxed.gpu.global.add.u32 [%0], 1;" ::"l"(counter) : "memory");
}

// The barrier of the warpgroup that brings rows.
__device__ __forceinline__ void bring_sync() { asm volatile("bar.sync 1, 128;" ::: "memory"); }

// Waits, in the warpgroup that brings rows, until a counter says that words are there or soon will be.
__device__ __forceinline__ void wait_count(const uint32_t* counter, uint32_t target) {
    if (threadIdx.x % 128 == 0) {
        uint32_t value;
        do {
            asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(counter) : "memory");
        } while (value < target);
    }
    bring_sync();
}

// The low half of the description of an operand; the high halves are constant, which lets the compiler keep all of it in uniform
// registers.
__device__ __forceinline__ uint32_t operand_low(uint32_t address) { return (address & 0x3FFFF) >> 4 | 1u << 16; }
constexpr int ROWS_HIGH = 1 << 30;                   // the same eight rows over and over
constexpr int WEIGHTS_HIGH = 1 << 30 | 1024 >> 4;    // eight rows after the other

// d += x w for eight rows of x and 16 of w, both with k along the rows, in shared memory. Not `accumulate`: d = x w.
__device__ __forceinline__ void multiply_rows(float (&d)[8], uint32_t x, uint32_t w, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 x, w;\nmov.b64 x, {%8, %11};\nmov.b64 w, {%9, %12};\nsetp.ne.b32 p, %10, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n16k16.f32.f16.f16 {%0,%1,%2,%3,%4,%5,%6,%7}, x, w, p, 1, 1, 0, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
        : "r"(x), "r"(w), "r"(static_cast<int>(accumulate)), "n"(ROWS_HIGH), "n"(WEIGHTS_HIGH));
}

// As above, with 48 of w.
__device__ __forceinline__ void multiply_rows(float (&d)[24], uint32_t x, uint32_t w, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 x, w;\nmov.b64 x, {%24, %27};\nmov.b64 w, {%25, %28};\nsetp.ne.b32 p, %26, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n48k16.f32.f16.f16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23"
        "}, x, w, p, 1, 1, 0, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23])
        : "r"(x), "r"(w), "r"(static_cast<int>(accumulate)), "n"(ROWS_HIGH), "n"(WEIGHTS_HIGH));
}

// As above, with 96 of w.
__device__ __forceinline__ void multiply_rows(float (&d)[48], uint32_t x, uint32_t w, bool accumulate) {
    asm volatile(
        "{\n.reg .pred p;\n.reg .b64 x, w;\nmov.b64 x, {%48, %51};\nmov.b64 w, {%49, %52};\nsetp.ne.b32 p, %50, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n96k16.f32.f16.f16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,"
        "%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47"
        "}, x, w, p, 1, 1, 0, 0;\n}\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]),
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15]),
          "+f"(d[16]), "+f"(d[17]), "+f"(d[18]), "+f"(d[19]), "+f"(d[20]), "+f"(d[21]), "+f"(d[22]), "+f"(d[23]),
          "+f"(d[24]), "+f"(d[25]), "+f"(d[26]), "+f"(d[27]), "+f"(d[28]), "+f"(d[29]), "+f"(d[30]), "+f"(d[31]),
          "+f"(d[32]), "+f"(d[33]), "+f"(d[34]), "+f"(d[35]), "+f"(d[36]), "+f"(d[37]), "+f"(d[38]), "+f"(d[39]),
          "+f"(d[40]), "+f"(d[41]), "+f"(d[42]), "+f"(d[43]), "+f"(d[44]), "+f"(d[45]), "+f"(d[46]), "+f"(d[47])
        : "r"(x), "r"(w), "r"(static_cast<int>(accumulate)), "n"(ROWS_HIGH), "n"(WEIGHTS_HIGH));
}

// Where a thread's turn in the ring is.
struct Ring {
    uint32_t slots, full, empty;
    uint32_t slot = 0, parity = 0;

    __device__ __forceinline__ explicit Ring(uint8_t* shared, Memory& m)
        : slots(shared_address(shared)), full(shared_address(m.full)), empty(shared_address(m.empty)) {}
    __device__ __forceinline__ uint32_t place() const { return slots + slot * SLOT_BYTES; }
    __device__ __forceinline__ void wait_full() const { barrier_wait(full + slot * 8, parity); }
    __device__ __forceinline__ void wait_empty() const { barrier_wait(empty + slot * 8, parity ^ 1); }
    // A warp's work, every lane of which does it for itself, as in decoder_ring.cuh.
    __device__ __forceinline__ void give_back() const { barrier_arrive(empty + slot * 8); }
    __device__ __forceinline__ void give_back_before() const {
        barrier_arrive(empty + (slot == 0 ? SLOTS - 1 : slot - 1) * 8);
    }
    __device__ __forceinline__ void advance() {
        if (++slot == SLOTS) slot = 0, parity ^= 1;
    }
    __device__ __forceinline__ void advance_by(int n) {
        slot += n;
        for (; slot >= SLOTS; slot -= SLOTS) parity ^= 1;
    }
};

// The rows in shared memory, which come in chunks.
struct Rows {
    uint32_t x, full;
    uint32_t chunk = 0;  // so far

    __device__ __forceinline__ explicit Rows(Memory& m) : x(shared_address(m.x)), full(shared_address(m.x_full)) {}
    __device__ __forceinline__ uint32_t barrier() const { return full + chunk % CHUNK_BARRIERS * 8; }
    __device__ __forceinline__ void wait() {
        barrier_wait(barrier(), chunk / CHUNK_BARRIERS & 1);
        chunk++;
    }
    // After a warp's writes of the chunk.
    __device__ __forceinline__ void arrive() {
        fence_async();
        __syncwarp();
        if (threadIdx.x % 32 == 0) barrier_arrive(barrier());
        chunk++;
    }
};

#endif
