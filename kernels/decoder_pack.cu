// Decoder weights from the checkpoint's order into that of decoder.cu, on the device, while the next ones arrive.

#include "e4m7.cuh"

// The largest magnitude of a row, infinite if one of its numbers is not finite; all lanes of a warp.
__device__ __forceinline__ float largest_of(const __nv_bfloat16* row, int columns, int lane) {
    float largest = 0.0f;
    for (int i = lane; i < columns; i += 32) {
        const float x = fabsf(__bfloat162float(row[i]));
        largest = fmaxf(largest, x == x ? x : INFINITY);
    }
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, offset));
    return largest;
}

struct PackTiles {
    const __nv_bfloat16* source;  // [rows][columns]
    uint32_t* destination;        // see e4m7.cuh; zeros at first
    float* scales;                // [..]
    int rows, columns;
    int first_row;   // of these rows in the tensor
    int row_offset;  // of the tensor in the merged matrix
    int k;           // columns of the packed matrix
    int half;        // 0 gates and 1 ups of SwiGLU, by turns of eight rows; -1 for everything else
};

// A row that is not finite has no finite scale. Grid: (rows / 8); block: 256, a warp a row.
extern "C" __global__ void __launch_bounds__(256) pack_tiles(const __grid_constant__ PackTiles p) {
    wait_for_previous();
    const int lane = threadIdx.x % 32, own = blockIdx.x * 8 + threadIdx.x / 32, row = p.first_row + own;
    if (own >= p.rows) return;
    const __nv_bfloat16* source = p.source + static_cast<size_t>(own) * p.columns;
    const int n = p.half < 0 ? p.row_offset + row : row / 8 * 16 + p.half * 8 + row % 8;
    const float largest = largest_of(source, p.columns, lane);
    const float scale = largest > 0.0f ? power_below(fmaxf(largest, 0x1p-126f)) : 1.0f;
    if (lane == 0) p.scales[n] = isinf(largest) ? __int_as_float(0x7fffffff) : scale;
    uint32_t* tile = p.destination + static_cast<size_t>(n / 16) * (p.k / 64) * (PIECE_BYTES / 4);
    for (int i = lane * 8; i < p.columns; i += 256) {
        uint32_t bits[8], words[3];
        for (int j = 0; j < 8; j++) {
            bits[j] = i + j < p.columns ? e4m7_bits(__fdiv_rn(__bfloat162float(source[i + j]), scale)) : 0;
        }
        octet_words(make_uint4(bits[0] | bits[1] << 16, bits[2] | bits[3] << 16, bits[4] | bits[5] << 16,
                               bits[6] | bits[7] << 16),
                    words);
        for (int j = 0; j < 3; j++) tile[i / 64 * (PIECE_BYTES / 4) + octet_word_at(n % 16, i % 64, j)] = words[j];
    }
}

struct WidenTiles {
    const uint4* source;  // pieces, see e4m7.cuh
    uint4* destination;
    int n_pieces;
};

// The same numbers as F16; scales are copied apart. Grid * block / 32 >= n_pieces: a warp a piece.
extern "C" __global__ void __launch_bounds__(256) widen_tiles(const __grid_constant__ WidenTiles p) {
    wait_for_previous();
    const int lane = threadIdx.x % 32, piece = blockIdx.x * 8 + threadIdx.x / 32;
    if (piece >= p.n_pieces) return;
    const uint4* from = p.source + static_cast<size_t>(piece) * (PIECE_BYTES / 16) + lane;
    const uint4 quads[3] = {from[0], from[32], from[64]};
    uint4* to = p.destination + static_cast<size_t>(piece) * (WIDENED_PIECE_BYTES / 16) + lane;
#pragma unroll
    for (int half = 0; half < 2; half++) {
        uint4 w[2];
        e4m7_fragments(quads, half, w);
        to[half * 64] = w[0], to[half * 64 + 32] = w[1];
    }
}

struct QuantiseRows {
    const __nv_bfloat16* source;  // [rows][columns]
    uint8_t* destination;         // [.. / 16][k / 64][16][4][2][8]
    float* scales;                // [..]
    int rows, columns;
    int first_row;  // of these rows in the matrix
    int k;          // columns of the packed matrix
};

// A matrix in 8 bits: the largest magnitude of a row is 127, and bytes are 128 more than what they stand for. Of each 64 k of
// a row, lane t = 0 .. 3 of the matrix unit finds its eight of the first 32 and of the second one after the other. A row that
// is not finite has no finite scale. Grid: (rows / 8); block: 256, a warp a row.
extern "C" __global__ void __launch_bounds__(256) quantise_rows(const __grid_constant__ QuantiseRows p) {
    wait_for_previous();
    const int lane = threadIdx.x % 32, own = blockIdx.x * 8 + threadIdx.x / 32, n = p.first_row + own;
    if (own >= p.rows) return;
    const __nv_bfloat16* source = p.source + static_cast<size_t>(own) * p.columns;
    const float largest = largest_of(source, p.columns, lane);
    if (lane == 0) p.scales[n] = isinf(largest) ? __int_as_float(0x7fffffff) : __fdiv_rn(largest, 127.0f);
    const float inverse = largest > 0.0f ? __fdiv_rn(127.0f, largest) : 0.0f;
    uint8_t* row = p.destination + static_cast<size_t>(n / 16) * p.k * 16 + n % 16 * 64;
    for (int i = lane * 8; i < p.columns; i += 256) {
        uint8_t bytes[8];
        for (int j = 0; j < 8; j++) {
            const float x = i + j < p.columns ? __bfloat162float(source[i + j]) : 0.0f;
            bytes[j] = static_cast<uint8_t>(128 + __float2int_rn(__fmul_rn(x, inverse)));
        }
        *reinterpret_cast<uint2*>(row + i / 64 * 1024 + i % 32 / 8 * 16 + i % 64 / 32 * 8) =
            make_uint2(bytes[0] | bytes[1] << 8 | bytes[2] << 16 | static_cast<uint32_t>(bytes[3]) << 24,
                       bytes[4] | bytes[5] << 8 | bytes[6] << 16 | static_cast<uint32_t>(bytes[7]) << 24);
    }
}
