// Weights from the checkpoint's order into the order of shared memory, on the device, while the next ones arrive.
//
// A packed matrix is [n / 128][k / 64] blocks of 128 rows by 64 columns, 16 KiB each: row after row of 128 bytes, whose
// 16-byte chunks are swizzled (`swizzled` in common.cuh). So any 8 rows or more are one contiguous copy away from being a
// matrix unit's operand.

#include "common.cuh"

struct Pack {
    const __nv_bfloat16* source;  // [rows][columns]
    real16* destination;   // [.. / 128][k / 64][128][64]
    int rows, columns;
    int first_row;       // of these rows in the tensor
    int row_offset;      // of the tensor in the merged matrix
    int k;               // columns of the packed matrix, padded
    int block, block_stride;  // every `block` columns start `block_stride` columns after the last
    int taps;            // convolutions: [channels][taps] becomes [taps][block_stride]; else 1
    int half;            // 0 gates and 1 ups of SwiGLU, interleaved; -1 for everything else
};

__device__ __forceinline__ size_t packed_index(const Pack& p, int row, int column) {
    int tile, r;
    if (p.half < 0) {
        // outputs 2i and 2i + 1 are rows i and i + 8 of a tile: one thread gets both sums
        const int n = p.row_offset + row;
        tile = n / 16;
        r = n % 16 / 2 + n % 2 * 8;
    } else {
        tile = row / 16 * 2 + row % 2;
        r = row % 16 / 2 + p.half * 8;
    }
    return packed_at(tile * 16 + r, column, p.k);
}

// Grid: (any, rows); block: any.
extern "C" __global__ void pack(const __grid_constant__ Pack p) {
    wait_for_previous();
    const __nv_bfloat16* source = p.source + static_cast<size_t>(blockIdx.y) * p.columns;
    const int row = p.first_row + blockIdx.y;
    const int step = gridDim.x * blockDim.x, first = blockIdx.x * blockDim.x + threadIdx.x;
    if (p.taps == 1 && p.block % 2 == 0) {
        for (int i = first; i < p.columns / 2; i += step) {
            const int column = 2 * i / p.block * p.block_stride + 2 * i % p.block;
            const float2 pair = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(source + 2 * i));
            *reinterpret_cast<uint32_t*>(p.destination + packed_index(p, row, column)) = pack16(pair.x, pair.y);
        }
        return;
    }
    for (int i = first; i < p.columns; i += step) {
        const int column = p.taps > 1 ? i % p.taps * p.block_stride + i / p.taps
                                      : i / p.block * p.block_stride + i % p.block;
        p.destination[packed_index(p, row, column)] = to16(__bfloat162float(source[i]));
    }
}

struct Widen {
    const __nv_bfloat16* source;
    float* destination;
    int n;
};

// A vector as F32. Grid * block >= n.
extern "C" __global__ void widen(const __grid_constant__ Widen a) {
    wait_for_previous();
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < a.n) a.destination[i] = __bfloat162float(a.source[i]);
}
