//! Products of f32 rows with BF16 weight matrices.
//!
//! Every output is one dot product over `k`, reduced in one fixed order: blocks of [`BLOCK`] elements, in each block one
//! vector accumulator that runs through it, the blocks' vectors added in order, the lanes last. Neither the number of
//! rows, nor the kernel, nor the split over threads touches that order, so a row's results never depend on its company.
//! [AMX](super::amx) has an order of its own, of which the same is true.
//!
//! One row is bound by memory: weights are read in the order of the file. From a few rows on both count, memory and
//! arithmetic, and neither may wait for the other: tiles of sums stay in registers, what they read is in L1, and weights
//! are fetched long before, in the order in which tiles come to them.

#![allow(clippy::needless_range_loop)] // tile indices run over several arrays at once

use std::cell::Cell;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use rayon::current_num_threads;
use rayon::prelude::*;

use super::elementwise::MIN_PARALLEL;
use super::simd::{Isa, LANES, Simd, for_each_isa};
use crate::model::weights::Tensor;

/// Elements of `k` that one accumulator runs through.
const BLOCK: usize = 512;
/// Weight bytes of one task, at least: enough to be worth a thread's while.
const TASK_BYTES: usize = 64 << 10;
/// Tasks of a thread in one product, at least, so that all threads end at about the same time.
const TASKS_PER_THREAD: usize = 4;
/// Weights of one row fetched ahead of need.
const PREFETCH: usize = 4096;
/// Columns and depth of the weights that are fetched to L2 at a time, while those before them are used. Columns are a
/// multiple of every tile's width, depth is one of [`BLOCK`].
const GROUP_COLS: usize = 24;
const GROUP_DEPTH: usize = 3 * BLOCK;
/// Columns that share a depth of input rows in L2.
const STRIP_COLS: usize = 4 * GROUP_COLS;
/// Columns of a task, at most.
const MAX_COLS: usize = 1008;
/// Row tiles that share weights in L1, where their inputs have to stay as well.
const STRIP_TILES: usize = 2;

/// One weight matrix `[n, k]` with its destination.
pub struct Product<'a> {
    pub weight: &'a Tensor,
    pub bias: Option<&'a [f32]>,
    /// `[m, n]`
    pub out: &'a mut [f32],
}

/// Some columns of one product.
pub(super) struct Columns {
    pub weight: *const [u8; 2],
    /// Null where there is none.
    pub bias: *const f32,
    pub out: *mut f32,
    /// Columns, depth, and the distance of output rows.
    pub n: usize,
    pub k: usize,
    pub out_stride: usize,
}

// SAFETY: those of one call are disjoint parts of outputs that the caller holds mutably; the rest is only read.
unsafe impl Send for Columns {}
// SAFETY: as above.
unsafe impl Sync for Columns {}

/// Calls `f`, on all threads, with columns that together are all of the products, whose extents have been checked. They come
/// in multiples of `unit`, but for a product's last ones.
pub(super) fn for_all_columns(products: &mut [Product<'_>], k: usize, unit: usize, f: impl Fn(&Columns) + Send + Sync) {
    let share =
        products.iter().map(|p| p.weight.shape()[0]).sum::<usize>() / (TASKS_PER_THREAD * current_num_threads());
    let width = (TASK_BYTES / (2 * k)).max(share.min(STRIP_COLS)).next_multiple_of(unit).clamp(unit, MAX_COLS);
    let mut parts = Vec::new();
    for product in products {
        let n = product.weight.shape()[0];
        let (weight, out) = (product.weight.data().as_ptr(), product.out.as_mut_ptr());
        for first in (0..n).step_by(width) {
            // SAFETY: `first < n`, so all three stay inside their slices.
            let (weight, bias, out) =
                unsafe { (weight.add(first * k), product.bias.map(|b| b.as_ptr().add(first)), out.add(first)) };
            let bias = bias.unwrap_or(std::ptr::null());
            parts.push(Columns { weight, bias, out, n: width.min(n - first), k, out_stride: n });
        }
    }
    match parts.as_slice() {
        [part] => f(part),
        parts => parts.par_iter().for_each(f),
    }
}

/// Memory that calls use again, whichever thread they are on: as many pieces as there are calls at a time.
pub(super) struct Shelf<T>(Mutex<Vec<Vec<T>>>);

impl<T> Shelf<T> {
    pub const fn new() -> Self {
        Self(Mutex::new(Vec::new()))
    }

    pub fn take(&self) -> Vec<T> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    pub fn put(&self, piece: Vec<T>) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(piece);
    }
}

/// All rows of some columns.
struct Task<'a> {
    /// One row, or rows as [`pack`] puts them.
    x: &'a [f32],
    tiles: &'a [RowTile],
    columns: &'a Columns,
}

/// Rows that one register tile holds.
struct RowTile {
    first: usize,
    rows: usize,
}

/// `out = x · weightᵀ + bias` for several weights that share `x`, `[m, k]`.
pub fn multiply(isa: Isa, x: &[f32], m: usize, products: &mut [Product<'_>]) {
    let k = products.first().map_or(0, |p| p.weight.shape()[1..].iter().product());
    assert_eq!(x.len(), m * k, "input rows");
    for product in products.iter() {
        let n = product.weight.shape()[0];
        assert_eq!(product.weight.data().len(), n * k, "weight");
        assert_eq!(product.out.len(), m * n, "output");
        assert!(product.bias.is_none_or(|b| b.len() == n), "bias");
    }
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if isa == Isa::Amx {
        return super::amx::multiply(x, m, k, products);
    }
    let tiles = row_tiles(isa, m);
    let mut packed = PACKED.take();
    if m > 1 {
        pack(x, k, &tiles, &mut packed);
    }
    // SAFETY: a vector is so many numbers.
    let packed_rows = unsafe { std::slice::from_raw_parts(packed.as_ptr().cast(), packed.len() * LANES) };
    let rows = if m > 1 { packed_rows } else { x };
    for_all_columns(products, k, GROUP_COLS, |columns| {
        let task = Task { x: rows, tiles: &tiles, columns };
        // SAFETY: the asserts above make every pointer valid for the extents in the task; columns are disjoint.
        unsafe { run_with_scratch(isa, &task) }
    });
    PACKED.put(packed);
}

/// Inputs as tiles read them.
static PACKED: Shelf<Vector> = Shelf::new();

thread_local! {
    // Memory that a thread's tasks use again, since allocating so much so often leaves holes.
    static TOTALS: Cell<Vec<Vector>> = const { Cell::new(Vec::new()) };
}

/// # Safety
/// As for [`run`].
unsafe fn run_with_scratch(isa: Isa, task: &Task<'_>) {
    let mut totals = TOTALS.take();
    // SAFETY: as promised by the caller.
    unsafe { run(isa, task, &mut totals) };
    TOTALS.set(totals);
}

/// As few tiles as hold so many rows, all about the same; the first has the most.
fn row_tiles(isa: Isa, m: usize) -> Vec<RowTile> {
    let n = m.div_ceil(isa.tile_rows());
    let first = |i: usize| (i * m).div_ceil(n);
    (0..n).map(|i| RowTile { first: first(i), rows: first(i + 1) - first(i) }).collect()
}

/// One vector, where it crosses no cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Vector([f32; LANES]);

const ZEROS: Vector = Vector([0.0; LANES]);

/// Puts input rows into `packed` in the order in which tiles read them, `[row tile][k / LANES][row]`, with zeros behind `k`.
fn pack(x: &[f32], k: usize, tiles: &[RowTile], packed: &mut Vec<Vector>) {
    let vectors = k.div_ceil(LANES);
    packed.resize(x.len() / k * vectors, ZEROS);
    let mut rest = packed.as_mut_slice();
    let parts = tiles.iter().map(|tile| {
        let (own, others) = std::mem::take(&mut rest).split_at_mut(tile.rows * vectors);
        rest = others;
        (tile, own)
    });
    let pack_tile = |(tile, packed): (&RowTile, &mut [Vector])| {
        for (row, x) in x[tile.first * k..].chunks_exact(k).take(tile.rows).enumerate() {
            let places = packed[row..].iter_mut().step_by(tile.rows);
            let (whole, last) = x.as_chunks::<LANES>();
            for (place, vector) in places.zip(whole.iter()) {
                place.0 = *vector;
            }
            if !last.is_empty() {
                let place = &mut packed[(vectors - 1) * tile.rows + row];
                *place = ZEROS;
                place.0[..last.len()].copy_from_slice(last);
            }
        }
    };
    if x.len() < MIN_PARALLEL {
        parts.for_each(pack_tile);
    } else {
        parts.collect::<Vec<_>>().into_par_iter().for_each(pack_tile);
    }
}

for_each_isa! {
    /// # Safety
    /// The task's pointers must be valid for its extents.
    fn run(task: &Task<'_>, totals: &mut Vec<Vector>) = run_generic
}

#[inline(always)]
unsafe fn run_generic<S: Simd>(t: &Task<'_>, totals: &mut Vec<Vector>) {
    unsafe {
        // as many columns at a time as leave the sums in registers
        match (S::TILE_ROWS, t.tiles.first().map_or(0, |tile| tile.rows)) {
            (_, 0) => {}
            (_, 1) => (0..t.columns.n).for_each(|col| dot::<S>(t, col)),
            (9, 2) => strips::<S, 2, 1, 4>(t, totals),
            (9, 3) => strips::<S, 3, 2, 4>(t, totals),
            (9, 4) => strips::<S, 4, 3, 4>(t, totals),
            (9, 5) => strips::<S, 5, 4, 4>(t, totals),
            (9, 6) => strips::<S, 6, 5, 4>(t, totals),
            (9, 7) => strips::<S, 7, 6, 3>(t, totals),
            (9, 8) => strips::<S, 8, 7, 3>(t, totals),
            (9, _) => strips::<S, 9, 8, 3>(t, totals),
            (6, 2) => strips::<S, 2, 1, 2>(t, totals),
            (_, 2) => strips::<S, 2, 1, 1>(t, totals),
            (_, 3) => strips::<S, 3, 2, 1>(t, totals),
            (_, 4) => strips::<S, 4, 3, 1>(t, totals),
            (_, 5) => strips::<S, 5, 4, 1>(t, totals),
            (_, _) => strips::<S, 6, 5, 1>(t, totals),
        }
    }
}

/// Outputs of several rows, in tiles of `R` or `Q` rows and `C` columns. `totals` is scratch.
#[inline(always)]
unsafe fn strips<S: Simd, const R: usize, const Q: usize, const C: usize>(t: &Task<'_>, totals: &mut Vec<Vector>) {
    unsafe {
        for first in (0..t.columns.n).step_by(STRIP_COLS) {
            for tiles in t.tiles.chunks(STRIP_TILES) {
                Strip { t, tiles, cols: first..t.columns.n.min(first + STRIP_COLS) }.multiply::<S, R, Q, C>(totals);
            }
        }
    }
}

/// Some columns of a task in some of its row tiles.
struct Strip<'a> {
    t: &'a Task<'a>,
    tiles: &'a [RowTile],
    cols: Range<usize>,
}

impl Strip<'_> {
    #[inline(always)]
    unsafe fn multiply<S: Simd, const R: usize, const Q: usize, const C: usize>(&self, totals: &mut Vec<Vector>) {
        unsafe {
            let Strip { t, tiles, cols } = self;
            let first_row = tiles[0].first;
            let m: usize = tiles.iter().map(|tile| tile.rows).sum();
            totals.resize(totals.len().max(cols.len() * m), ZEROS);
            let totals = totals.as_mut_ptr();
            let &Columns { weight, k, .. } = t.columns;
            for depth in (0..k).step_by(GROUP_DEPTH) {
                let depth_end = k.min(depth + GROUP_DEPTH);
                for group in cols.clone().step_by(GROUP_COLS) {
                    let group_end = cols.end.min(group + GROUP_COLS);
                    let next_group = match (group_end < cols.end, depth_end < k) {
                        (true, _) => group_end * k + depth,
                        (false, true) => cols.start * k + depth_end,
                        (false, false) => cols.end * k, // maybe another task's
                    };
                    for block in (depth..depth_end).step_by(BLOCK) {
                        let mut col = group;
                        while col < group_end {
                            let width = if col + C <= group_end { C } else { 1 };
                            let next_tile = match (col + width < group_end, block + BLOCK < depth_end) {
                                (true, _) => (col + width) * k + block,
                                (false, true) => group * k + block + BLOCK,
                                (false, false) => next_group,
                            };
                            let at = col * k + block;
                            for &RowTile { first: row, rows } in *tiles {
                                let tile = Tile {
                                    x: t.x.as_ptr().add(row * k.next_multiple_of(LANES) + rows * block),
                                    weight: weight.add(at),
                                    stride: k,
                                    depth: BLOCK.min(k - block),
                                    totals: totals.add((col - cols.start) * m + row - first_row),
                                    totals_stride: m,
                                    first: block == 0,
                                };
                                let next = (row == first_row).then(|| {
                                    let next_group = at + next_group - (group * k + depth);
                                    (weight.wrapping_add(next_tile), weight.wrapping_add(next_group))
                                });
                                if width < C || !tile.depth.is_multiple_of(2 * LANES) {
                                    tile.accumulate_rest::<S>(rows, width);
                                } else if rows == R {
                                    tile.accumulate::<S, R, C>(next);
                                } else {
                                    tile.accumulate::<S, Q, C>(next);
                                }
                            }
                            col += width;
                        }
                    }
                }
            }
            for row in 0..m {
                for col in cols.clone() {
                    let total = S::load(totals.add((col - cols.start) * m + row).cast());
                    finish::<S>(t, first_row + row, col, total);
                }
            }
        }
    }
}

/// A register tile in one block.
struct Tile {
    /// Packed.
    x: *const f32,
    weight: *const [u8; 2],
    /// Distance of weight rows.
    stride: usize,
    depth: usize,
    /// Running vectors, `[column][row]`, and the distance of columns.
    totals: *mut Vector,
    totals_stride: usize,
    first: bool,
}

impl Tile {
    /// Where depth is a multiple of two vectors: nothing but the sums needs registers throughout. Meanwhile weights are
    /// fetched: those of the next tile to L1, and of the tile at this place in the next group to L2.
    #[inline(always)]
    unsafe fn accumulate<S: Simd, const R: usize, const C: usize>(
        &self,
        next: Option<(*const [u8; 2], *const [u8; 2])>,
    ) {
        unsafe {
            let (weight, stride) = (self.weight, self.stride);
            let mut acc = [[S::splat(0.0); C]; R];
            let prefetch = |i: usize| {
                let Some((next_tile, next_group)) = next else { return };
                for c in 0..C {
                    S::prefetch_l2(next_group.wrapping_add(c * stride + i).cast());
                    S::prefetch(next_tile.wrapping_add(c * stride + i).cast());
                }
            };
            prefetch(self.depth - 1); // weights need not begin where a cache line does
            for i in (0..self.depth).step_by(2 * LANES) {
                prefetch(i);
                for i in [i, i + LANES] {
                    let mut w = [S::splat(0.0); C];
                    for (c, w) in w.iter_mut().enumerate() {
                        *w = S::load_bf16(weight.add(c * stride + i));
                    }
                    for r in 0..R {
                        let x = S::load(self.x.add(R * i + r * LANES));
                        for c in 0..C {
                            acc[r][c] = S::fma(x, w[c], acc[r][c]);
                        }
                    }
                }
            }
            for (r, acc) in acc.into_iter().enumerate() {
                for (c, acc) in acc.into_iter().enumerate() {
                    self.add::<S>(r, c, acc);
                }
            }
        }
    }

    /// At any depth.
    #[inline(always)]
    unsafe fn accumulate_rest<S: Simd>(&self, rows: usize, cols: usize) {
        unsafe {
            for r in 0..rows {
                for c in 0..cols {
                    let mut acc = S::splat(0.0);
                    for i in (0..self.depth).step_by(LANES) {
                        let x = S::load(self.x.add(rows * i + r * LANES));
                        let n = LANES.min(self.depth - i);
                        acc = S::fma(x, S::load_bf16_part(self.weight.add(c * self.stride + i), n), acc);
                    }
                    self.add::<S>(r, c, acc);
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn add<S: Simd>(&self, r: usize, c: usize, acc: S::V) {
        unsafe {
            let total = self.totals.add(c * self.totals_stride + r).cast();
            S::store(total, if self.first { acc } else { S::add(S::load(total), acc) });
        }
    }
}

/// Output of one row in one column.
#[inline(always)]
unsafe fn dot<S: Simd>(t: &Task<'_>, col: usize) {
    unsafe {
        let k = t.columns.k;
        let (x, weight) = (t.x.as_ptr(), t.columns.weight.add(col * k));
        let mut total = S::splat(0.0);
        for block in (0..k).step_by(BLOCK) {
            let end = k.min(block + BLOCK);
            let mut acc = S::splat(0.0);
            let mut i = block;
            while i + 2 * LANES <= end {
                S::prefetch(weight.wrapping_add(i + PREFETCH).cast());
                for i in [i, i + LANES] {
                    acc = S::fma(S::load(x.add(i)), S::load_bf16(weight.add(i)), acc);
                }
                i += 2 * LANES;
            }
            while i < end {
                let n = LANES.min(end - i);
                acc = S::fma(S::load_part(x.add(i), n), S::load_bf16_part(weight.add(i), n), acc);
                i += LANES;
            }
            total = if block == 0 { acc } else { S::add(total, acc) };
        }
        finish::<S>(t, 0, col, total);
    }
}

#[inline(always)]
unsafe fn finish<S: Simd>(t: &Task<'_>, row: usize, col: usize, total: S::V) {
    unsafe {
        let &Columns { bias, out, out_stride, .. } = t.columns;
        let bias = if bias.is_null() { 0.0 } else { *bias.add(col) };
        *out.add(row * out_stride + col) = S::sum(total) + bias;
    }
}
