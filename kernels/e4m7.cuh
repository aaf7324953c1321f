// Decoder weights in 12 bits: a sign, 4 bits of exponent and the 7 of BF16's mantissa, with a power of two for each row.
//
// A row's scale is the largest power of two up to its largest magnitude, so quotients lie below 2 and are F16 numbers whose
// top bit of the exponent is clear. Those from 2^-14 on keep all eight significant bits of BF16; smaller ones are rounded to
// multiples of 2^-21. So no weight is off by more than 2^-22 of its row's largest, a two-thousandth of what rounding its input
// to F16 may do to that one's product. Most of what a step of the decoder does is read weights: this is a quarter less to read,
// and less to keep.
//
// A matrix is [N / 16][K / 64] pieces of 16 rows by 64 k, of PIECE_BYTES each, and then the scales of its rows. N and K are
// padded with zeros. Of a piece, lane (g, t) of the matrix unit has four octets: k = 8t .. 8t+7 of rows g and g + 8 of the
// first 32 k, then of the second. An octet is three words, and word i of a lane's twelve is word i % 4 of quad
// i / 4 * 32 + lane.

#pragma once

#include "common.cuh"

constexpr int PIECE_BYTES = 1536;
// The same as F16, for kernels that would have to widen it again and again: for each 32 k and each of the matrix unit's two steps
// a lane's four pairs, of rows g and g + 8 by turns.
constexpr int WIDENED_PIECE_BYTES = 2048;
constexpr uint32_t E4M7_MASK = 0xbff8bff8u;  // the bits in use of two F16 numbers

// The left operand of `mma_k32` from eight consecutive k of rows g (`low`) and g + 8 (`high`).
__device__ __forceinline__ void left_operand(const uint4& low, const uint4& high, uint4 (&a)[2]) {
    a[0] = make_uint4(low.x, high.x, low.y, high.y), a[1] = make_uint4(low.z, high.z, low.w, high.w);
}

// Eight numbers as pairs of F16. The first three words are the first three pairs, whose unused bits hold the fourth.
__device__ __forceinline__ uint4 octet_pairs(uint32_t a, uint32_t b, uint32_t c) {
    const uint32_t last = ((a << 3) & 0x00380038u) | ((b << 6) & 0x01c001c0u) | ((c << 9) & 0x0e000e00u) |
                          ((a >> 2) & 0x10001000u) | ((b >> 1) & 0x20002000u) | ((c << 1) & 0x80008000u);
    return make_uint4(a & E4M7_MASK, b & E4M7_MASK, c & E4M7_MASK, last);
}

// A lane's fragments of 32 of a piece's 64 k, from its three quads.
__device__ __forceinline__ void e4m7_fragments(const uint4 (&quads)[3], int half, uint4 (&w)[2]) {
    const uint4 &a = quads[0], &b = quads[1], &c = quads[2];
    left_operand(half ? octet_pairs(b.z, b.w, c.x) : octet_pairs(a.x, a.y, a.z),
                 half ? octet_pairs(c.y, c.z, c.w) : octet_pairs(a.w, b.x, b.y), w);
}

// The other way round of `octet_pairs`.
__device__ __forceinline__ void octet_words(const uint4& pairs, uint32_t (&words)[3]) {
    const uint32_t last = pairs.w;
    words[0] = pairs.x | ((last >> 3) & 0x00070007u) | ((last << 2) & 0x40004000u);
    words[1] = pairs.y | ((last >> 6) & 0x00070007u) | ((last << 1) & 0x40004000u);
    words[2] = pairs.z | ((last >> 9) & 0x00070007u) | ((last >> 1) & 0x40004000u);
}

// Where word i of the octet of row r (of 16), column k (a multiple of 8, of 64) is in a piece.
__device__ __forceinline__ int octet_word_at(int r, int k, int i) {
    const int word = (k / 32 * 2 + r / 8) * 3 + i, lane = r % 8 * 4 + k % 32 / 8;
    return (word / 4 * 32 + lane) * 4 + word % 4;
}

// The bits of x, of magnitude below 2, as F16.
__device__ __forceinline__ uint32_t e4m7_bits(float x) {
    const float magnitude = fabsf(x);
    const uint32_t small = __float2int_rn(magnitude * 0x1p21f) << 3;  // quanta of 2^-21; 128 of them are the least normal number
    const uint32_t bits = magnitude < 0x1p-14f ? small : __half_as_ushort(__float2half_rn(magnitude));
    return (bits | (x < 0.0f ? 0x8000u : 0u)) & 0xbff8u;
}
