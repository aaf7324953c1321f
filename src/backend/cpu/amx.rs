//! Products on Intel's matrix unit (AMX), which multiplies BF16 and adds in f32.
//!
//! Inputs stay f32 in effect: each is the sum of three BF16 numbers, its [parts](part), which together hold its 24 bits.
//! An input row is three columns of what the unit multiplies with, one for each part, and an output is the sum of what
//! these three give. So one to five rows cost one multiplication for each tile of weights, and 16 rows cost three.
//!
//! A tile of weights is 16 of their rows by [`DEPTH`] of `k`, read where it lies in the file. A tile of inputs is a group of
//! 16 columns by as much of `k`, packed once for a product. A [span](Span) of up to 16 rows has its sums in registers for
//! all of `k`. Registers that hold nothing are what lets the unit load one tile while it multiplies another, and a busy
//! hyper-thread beside this one takes half of them: so weights and inputs have one register each, though more loads for each
//! multiplication come of it.
//!
//! Every output is reduced in one fixed order: by the unit along `k`, then the parts, first + (second + third). What else is
//! in a tile doesn't touch that order. The unit takes denormal numbers for zeros: inputs from 2^-103 up are held exactly, and
//! each product and sum below 2^-126 is lost. What is not finite stays so, though an infinity may
//! become NaN.

use std::arch::asm;
use std::arch::x86_64::*;
use std::cell::Cell;
use std::sync::LazyLock;

use rayon::prelude::*;

use super::elementwise::MIN_PARALLEL;
use super::matmul::{Columns, Product, Shelf, for_all_columns};

/// BF16 numbers that a row of a tile holds.
const DEPTH: usize = 32;
/// Rows of a tile, and columns of one of sums.
const SIDE: usize = 16;
/// BF16 numbers that stand for an f32.
const PARTS: usize = 3;
/// Input rows of a span, at most, and its groups: as many as its rows have parts.
const SPAN_ROWS: usize = SIDE;
const GROUPS: usize = PARTS;

/// Whether this process may use the unit. Linux has to be asked, once, since it makes the state of a thread 8 kB larger.
pub(super) fn is_available() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| {
        #[allow(unused_unsafe)] // safe in newer versions of Rust
        // SAFETY: every 64-bit processor has the instruction.
        let (most, features) = unsafe { (__cpuid(0).eax, __cpuid_count(7, 0).edx) };
        let (bf16, tile) = (1 << 22, 1 << 24);
        most >= 7 && features & bf16 != 0 && features & tile != 0 && is_permitted()
    });
    *AVAILABLE
}

/// What fails where the processor or the kernel has no such thing.
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: the call takes no pointers.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

/// A register of the unit in memory.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Tile([[u8; 64]; SIDE]);

const ZEROS: Tile = Tile([[0; 64]; SIDE]);

/// Sums of a tile of weights and a span, `[weight row][column]`.
#[repr(C, align(64))]
struct Sums([f32; SIDE * GROUPS * SIDE]);

/// Input rows whose sums are in registers together. Its columns are the rows' first parts, then their second ones, then
/// their third ones.
#[derive(Clone, Copy)]
struct Span {
    first: usize,
    rows: usize,
}

impl Span {
    /// The `i`th of `m` rows.
    fn new(i: usize, m: usize) -> Self {
        let first = i * SPAN_ROWS;
        Self { first, rows: SPAN_ROWS.min(m - first) }
    }

    fn all(m: usize) -> impl DoubleEndedIterator<Item = Self> {
        (0..m.div_ceil(SPAN_ROWS)).map(move |i| Self::new(i, m))
    }

    fn n_groups(self) -> usize {
        (PARTS * self.rows).div_ceil(SIDE)
    }

    /// Tiles of inputs before those of this one, whose `k` is so many tiles deep.
    fn offset(self, k_tiles: usize) -> usize {
        self.first / SPAN_ROWS * GROUPS * k_tiles
    }
}

/// Packed inputs of all rows, `[span][k / DEPTH][group][DEPTH / 2][column][2]`.
struct Inputs<'a> {
    tiles: &'a [Tile],
    k_tiles: usize,
    m: usize,
}

/// Packed inputs, whichever thread a product is on.
static PACKED: Shelf<Tile> = Shelf::new();

thread_local! {
    /// Weights that don't fill tiles.
    static COPIED: Cell<Vec<Tile>> = const { Cell::new(Vec::new()) };
}

/// As [`multiply`](super::matmul::multiply), which has checked the extents, where [`is_available`].
pub(super) fn multiply(x: &[f32], m: usize, k: usize, products: &mut [Product<'_>]) {
    let Some(last) = Span::all(m).last() else { return };
    let k_tiles = k.div_ceil(DEPTH);
    let mut packed = PACKED.take();
    packed.resize(last.offset(k_tiles) + last.n_groups() * k_tiles, ZEROS);
    let pack = |(i, tile): (usize, &mut Tile)| {
        let span = Span::new(i / (GROUPS * k_tiles), m);
        let (i, n_groups) = (i - span.offset(k_tiles), span.n_groups());
        // SAFETY: the machine has AVX-512.
        unsafe { pack_tile(&x[span.first * k..][..span.rows * k], k, i % n_groups, i / n_groups, tile) };
    };
    if x.len() < MIN_PARALLEL {
        packed.iter_mut().enumerate().for_each(pack);
    } else {
        packed.par_iter_mut().with_min_len(64).enumerate().for_each(pack);
    }
    let inputs = Inputs { tiles: &packed, k_tiles, m };
    // SAFETY: the machine has the unit, and the caller has checked the extents.
    for_all_columns(products, k, SIDE, |columns| unsafe { run(&inputs, columns) });
    PACKED.put(packed);
}

/// Part 0, 1 or 2 of sixteen numbers, in the upper halves of the lanes; what is in the lower ones is no part of it. Each part
/// is what the parts before it leave of a number, cut off after 8 bits: huge numbers don't become infinite.
#[inline]
#[target_feature(enable = "avx512f")]
fn part(index: usize, x: __m512) -> __m512i {
    let upper = _mm512_set1_epi32(0xFFFF_0000_u32 as i32);
    let mut rest = x;
    for _ in 0..index {
        rest = _mm512_sub_ps(rest, _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(rest), upper)));
    }
    _mm512_castps_si512(rest)
}

/// Columns `SIDE * group..` of a span, `k_tile * DEPTH..` of `k`; zeros behind both.
///
/// # Safety
/// `x` is the span's rows of `k`, and `k_tile * DEPTH < k`.
#[target_feature(enable = "avx512f")]
unsafe fn pack_tile(x: &[f32], k: usize, group: usize, k_tile: usize, tile: &mut Tile) {
    let rows = x.len() / k;
    let first = k_tile * DEPTH;
    let mask = u32::from(lanes(k - first)) | u32::from(lanes((k - first).saturating_sub(SIDE))) << SIDE;
    let mut columns = [_mm512_setzero_si512(); SIDE];
    for (i, column) in columns.iter_mut().enumerate() {
        let (index, row) = ((group * SIDE + i) / rows, (group * SIDE + i) % rows);
        if index == PARTS {
            break;
        }
        let halves = [0, SIDE].map(|i| {
            let at = x.as_ptr().wrapping_add(row * k + first + i);
            // SAFETY: lanes outside of the row are masked out.
            let x = unsafe { _mm512_maskz_loadu_ps((mask >> i) as __mmask16, at) };
            _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(part(index, x)))
        });
        *column = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(halves[0]), halves[1]);
    }
    for (row, pairs) in tile.0.iter_mut().zip(transpose(columns)) {
        // SAFETY: a row has 64 bytes.
        unsafe { _mm512_storeu_si512(row.as_mut_ptr().cast(), pairs) };
    }
}

/// The first `n` of sixteen lanes.
fn lanes(n: usize) -> __mmask16 {
    if n < SIDE { (1 << n) - 1 } else { !0 }
}

/// Element `j` of vector `i` becomes element `i` of vector `j`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(v: [__m512i; SIDE]) -> [__m512i; SIDE] {
    // quarters of vectors are turned in themselves, 4 by 4, ...
    let mut turned = [_mm512_setzero_si512(); SIDE];
    for i in (0..SIDE).step_by(4) {
        let [a, b, c, d] = [v[i], v[i + 1], v[i + 2], v[i + 3]];
        let (ab0, ab1) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd0, cd1) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        turned[i] = _mm512_unpacklo_epi64(ab0, cd0);
        turned[i + 1] = _mm512_unpackhi_epi64(ab0, cd0);
        turned[i + 2] = _mm512_unpacklo_epi64(ab1, cd1);
        turned[i + 3] = _mm512_unpackhi_epi64(ab1, cd1);
    }
    // ... and then go where they belong
    let mut out = turned;
    for i in 0..4 {
        let [a, b, c, d] = [turned[i], turned[i + 4], turned[i + 8], turned[i + 12]];
        let (ab0, ab1) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0xDD>(a, b));
        let (cd0, cd1) = (_mm512_shuffle_i32x4::<0x88>(c, d), _mm512_shuffle_i32x4::<0xDD>(c, d));
        out[i] = _mm512_shuffle_i32x4::<0x88>(ab0, cd0);
        out[i + 4] = _mm512_shuffle_i32x4::<0x88>(ab1, cd1);
        out[i + 8] = _mm512_shuffle_i32x4::<0xDD>(ab0, cd0);
        out[i + 12] = _mm512_shuffle_i32x4::<0xDD>(ab1, cd1);
    }
    out
}

/// # Safety
/// The machine has the unit, and there are inputs for the depth of the columns.
#[target_feature(enable = "avx512f")]
unsafe fn run(inputs: &Inputs<'_>, columns: &Columns) {
    let k = columns.k;
    let mut copied = COPIED.take();
    let mut sums = Sums([0.0; _]);
    // SAFETY: as promised by the caller; nothing else on this thread uses the unit meanwhile.
    unsafe {
        configure();
        for span in Span::all(inputs.m) {
            let tiles = inputs.tiles.as_ptr().add(span.offset(inputs.k_tiles)).cast();
            for col in (0..columns.n).step_by(SIDE) {
                let weight = columns.weight.add(col * k);
                let cols = SIDE.min(columns.n - col);
                let mut weights = Weights { at: weight.cast(), row: 2 * k, step: 64 };
                if cols < SIDE || !k.is_multiple_of(DEPTH) {
                    copied.resize(inputs.k_tiles, ZEROS);
                    copy(weight, k, cols, &mut copied);
                    weights = Weights { at: copied.as_ptr().cast(), row: 64, step: size_of::<Tile>() };
                }
                multiply_span(span.n_groups(), weights, tiles, inputs.k_tiles, &mut sums);
                finish(columns, span, col, &sums);
            }
        }
        release();
    }
    COPIED.set(copied);
}

/// Makes tiles of `rows` rows of `k`, with zeros behind both.
///
/// # Safety
/// The rows have these elements.
unsafe fn copy(weight: *const [u8; 2], k: usize, rows: usize, to: &mut [Tile]) {
    to.fill(ZEROS);
    for (k_tile, tile) in to.iter_mut().enumerate() {
        let n = DEPTH.min(k - k_tile * DEPTH);
        for (row, to) in tile.0.iter_mut().enumerate().take(rows) {
            // SAFETY: as promised by the caller; a row of a tile holds DEPTH elements.
            unsafe {
                let from = weight.add(row * k + k_tile * DEPTH);
                std::ptr::copy_nonoverlapping(from.cast(), to.as_mut_ptr(), 2 * n);
            }
        }
    }
}

/// Adds up the parts, and writes the outputs of a span in the columns of one tile of weights.
///
/// # Safety
/// As for [`run`].
#[target_feature(enable = "avx512f")]
unsafe fn finish(t: &Columns, span: Span, col: usize, sums: &Sums) {
    let mask = lanes(t.n - col);
    // SAFETY: outputs and biases outside of the task are masked out or left out, and there is room for all sums that are read.
    unsafe {
        let bias = if t.bias.is_null() { _mm512_setzero_ps() } else { _mm512_maskz_loadu_ps(mask, t.bias.add(col)) };
        let mut columns = [_mm512_setzero_si512(); SIDE];
        for (i, column) in columns.iter_mut().enumerate() {
            let part = |part: usize| _mm512_loadu_ps(sums.0.as_ptr().add(i * GROUPS * SIDE + part * span.rows));
            *column = _mm512_castps_si512(_mm512_add_ps(part(0), _mm512_add_ps(part(1), part(2))));
        }
        for (i, outputs) in transpose(columns).into_iter().enumerate().take(span.rows) {
            let out = t.out.add((span.first + i) * t.out_stride + col);
            _mm512_mask_storeu_ps(out, mask, _mm512_add_ps(_mm512_castsi512_ps(outputs), bias));
        }
    }
}

/// Makes all eight registers tiles of 16 rows of 64 bytes.
///
/// # Safety
/// The machine has the unit, and the process may use it.
unsafe fn configure() {
    #[repr(align(64))]
    struct Config([u8; 64]);
    let mut config = Config([0; 64]);
    config.0[0] = 1; // the only way to divide the unit's memory so far
    for tile in 0..8 {
        config.0[16 + 2 * tile] = 64;
        config.0[48 + tile] = SIDE as u8;
    }
    // SAFETY: as promised by the caller; without `nomem` the block reads what was written.
    unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const config, options(nostack, readonly)) };
}

/// Gives the registers back: while they hold something, the system saves it with the thread.
///
/// # Safety
/// As for [`configure`].
unsafe fn release() {
    // SAFETY: as promised by the caller.
    unsafe { asm!("tilerelease", options(nostack, nomem)) };
}

/// Where a tile's row of weights is, and the distances of rows and of steps in bytes.
#[derive(Clone, Copy)]
struct Weights {
    at: *const u8,
    row: usize,
    step: usize,
}

/// One block of assembly, as nothing else may touch the registers between its instructions: sums in registers 0 to 2, weights
/// in 4, inputs in 5. Those of a group are what `$group` counts. Weights of four steps later are fetched meanwhile, as
/// the processor doesn't look that far ahead.
macro_rules! multiply_groups {
    ($weights:expr, $inputs:expr, $steps:expr, $sums:expr, $n_groups:literal: $($group:literal)*) => {
        asm!(
            $(concat!("tilezero tmm", $group),)*
            "2:",
            "tileloadd tmm4, [{weights} + {row}]",
            "prefetcht0 [{weights} + 256]",
            "prefetcht0 [{weights} + {row} + 256]",
            "prefetcht0 [{weights} + {row} * 2 + 256]",
            "prefetcht0 [{weights} + {row3} + 256]",
            "prefetcht0 [{weights} + {row} * 4 + 256]",
            "prefetcht0 [{weights} + {row5} + 256]",
            "prefetcht0 [{weights} + {row3} * 2 + 256]",
            "prefetcht0 [{weights} + {row7} + 256]",
            "prefetcht0 [{half} + 256]",
            "prefetcht0 [{half} + {row} + 256]",
            "prefetcht0 [{half} + {row} * 2 + 256]",
            "prefetcht0 [{half} + {row3} + 256]",
            "prefetcht0 [{half} + {row} * 4 + 256]",
            "prefetcht0 [{half} + {row5} + 256]",
            "prefetcht0 [{half} + {row3} * 2 + 256]",
            "prefetcht0 [{half} + {row7} + 256]",
            "add {half}, {step}",
            $(
                concat!("tileloadd tmm5, [{inputs} + {line} + 1024 * ", $group, "]"),
                concat!("tdpbf16ps tmm", $group, ", tmm4, tmm5"),
            )*
            "add {weights}, {step}",
            concat!("add {inputs}, 1024 * ", $n_groups),
            "dec {steps}",
            "jnz 2b",
            $(concat!("tilestored [{sums} + {sums_row} + 64 * ", $group, "], tmm", $group),)*
            weights = inout(reg) $weights.at => _,
            half = inout(reg) $weights.at.wrapping_add(SIDE / 2 * $weights.row) => _,
            row = in(reg) $weights.row,
            row3 = in(reg) 3 * $weights.row,
            row5 = in(reg) 5 * $weights.row,
            row7 = in(reg) 7 * $weights.row,
            step = in(reg) $weights.step,
            inputs = inout(reg) $inputs => _,
            line = in(reg) 64_usize,
            steps = inout(reg) $steps => _,
            sums = in(reg) $sums.0.as_mut_ptr(),
            sums_row = in(reg) 4 * GROUPS * SIDE,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        )
    };
}

/// Sums of the products of a tile's row of weights and a span of so many groups.
///
/// # Safety
/// There are weights and inputs for so many steps, at least one, and the unit is configured.
unsafe fn multiply_span(n_groups: usize, weights: Weights, inputs: *const u8, steps: usize, sums: &mut Sums) {
    // SAFETY: as promised by the caller.
    unsafe {
        match n_groups {
            1 => multiply_groups!(weights, inputs, steps, sums, 1: 0),
            2 => multiply_groups!(weights, inputs, steps, sums, 2: 0 1),
            _ => multiply_groups!(weights, inputs, steps, sums, 3: 0 1 2),
        }
    }
}
