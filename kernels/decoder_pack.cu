// Decoder weights from the checkpoint's order into that of decoder.cu, on the device, while the next ones arrive.

#include "common.cuh"

struct PackTiles {
    const __nv_bfloat16* source;  // [rows][columns]
    real16* destination;          // [.. / 16][k / 32][16][32], zeros at first
    int rows, columns;
    int first_row;   // of these rows in the tensor
    int row_offset;  // of the tensor in the merged matrix
    int k;           // columns of the packed matrix
    int half;        // 0 gates and 1 ups of SwiGLU, by turns of eight rows; -1 for everything else
};

// Grid: (any, rows); block: any.
extern "C" __global__ void pack_tiles(const __grid_constant__ PackTiles p) {
    wait_for_previous();
    const __nv_bfloat16* source = p.source + static_cast<size_t>(blockIdx.y) * p.columns;
    const int row = p.first_row + blockIdx.y;
    const int n = p.half < 0 ? p.row_offset + row : row / 8 * 16 + p.half * 8 + row % 8;
    real16* tile = p.destination + static_cast<size_t>(n / 16) * (p.k / 32) * 512 + n % 16 * 32;
    const int step = gridDim.x * blockDim.x, first = blockIdx.x * blockDim.x + threadIdx.x;
    if (p.columns % 2 == 0) {
        for (int i = 2 * first; i < p.columns; i += 2 * step) {
            const float2 pair = __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(source + i));
            *reinterpret_cast<uint32_t*>(tile + i / 32 * 512 + i % 32) = pack16(pair.x, pair.y);
        }
        return;
    }
    for (int i = first; i < p.columns; i += step) tile[i / 32 * 512 + i % 32] = to16(__bfloat162float(source[i]));
}
