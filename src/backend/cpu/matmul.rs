//! Products of f32 rows with BF16 weight matrices.
//!
//! Every output is one dot product over `k`, reduced in one fixed order: blocks of [`BLOCK`] elements, in each block one
//! vector accumulator that runs through it, the blocks' vectors added in order, the lanes last. Neither the number of
//! rows, nor the kernel, nor the split over threads touches that order, so a row's results never depend on its company.
//!
//! Few rows are bound by memory: weights are read once, straight from the file, a few columns at a time, with all input
//! rows multiplied while they are in registers. Many rows are bound by arithmetic: a block of weights is widened once and
//! then used from cache in register tiles.

#![allow(clippy::needless_range_loop)] // tile indices run over several arrays at once

use rayon::prelude::*;

use super::simd::{Isa, LANES, Simd, for_each_isa};
use crate::model::weights::Tensor;

/// Elements of `k` that one accumulator runs through.
const BLOCK: usize = 512;
/// From this many rows on, weights are widened into a panel first.
const PANEL_FROM_ROWS: usize = 20;
/// Rows of one register tile, at most, where weights are not widened first.
const MOST_ROWS: usize = 6;
/// Weight rows of one panel; a multiple of every tile width.
const PANEL_COLS: usize = 48;
/// Input rows that share a widened panel.
const PANEL_ROWS: usize = 64;
/// Weight bytes of one task when rows are few: enough to be worth a thread's while.
const TASK_BYTES: usize = 64 << 10;
/// Columns of a task are a multiple of this, and this of every tile's width.
const TASK_COLS: usize = 24;
/// Weights fetched ahead of need, over all columns that are read at a time.
const PREFETCH: usize = 4096;

/// One weight matrix `[n, k]` with its destination.
pub struct Product<'a> {
    pub weight: &'a Tensor,
    pub bias: Option<&'a [f32]>,
    /// `[m, n]`
    pub out: &'a mut [f32],
}

/// A rectangle of one product: all rows, some columns.
struct Task {
    /// `[m, k]` where rows are many, else packed.
    x: *const f32,
    weight: *const [u8; 2],
    bias: *const f32,
    out: *mut f32,
    /// Rows, columns, depth, and the distance of output rows.
    m: usize,
    n: usize,
    k: usize,
    out_stride: usize,
}

// SAFETY: tasks of one call read shared inputs and write disjoint columns of outputs that the caller holds mutably.
unsafe impl Send for Task {}
// SAFETY: as above.
unsafe impl Sync for Task {}

/// `out = x · weightᵀ + bias` for several weights that share `x`, `[m, k]`.
pub fn multiply(isa: Isa, x: &[f32], m: usize, products: &mut [Product<'_>]) {
    let k = products.first().map_or(0, |p| p.weight.shape()[1..].iter().product());
    assert_eq!(x.len(), m * k, "input rows");
    let many = m >= PANEL_FROM_ROWS;
    let cols =
        if many { PANEL_COLS } else { (TASK_BYTES / (2 * k)).next_multiple_of(TASK_COLS).clamp(TASK_COLS, 1008) };
    let packed = if many { Vec::new() } else { pack(x, m, k) };
    let x = if many { x.as_ptr() } else { packed.as_ptr().cast() };
    let mut tasks = Vec::new();
    for product in products {
        let n = product.weight.shape()[0];
        assert_eq!(product.weight.data().len(), n * k, "weight");
        assert_eq!(product.out.len(), m * n, "output");
        assert!(product.bias.is_none_or(|b| b.len() == n), "bias");
        let (weight, out) = (product.weight.data().as_ptr(), product.out.as_mut_ptr());
        for first in (0..n).step_by(cols) {
            // SAFETY: `first < n`, so all three stay inside their slices.
            let (weight, bias, out) =
                unsafe { (weight.add(first * k), product.bias.map(|b| b.as_ptr().add(first)), out.add(first)) };
            let bias = bias.unwrap_or(std::ptr::null());
            tasks.push(Task { x, weight, bias, out, m, n: cols.min(n - first), k, out_stride: n });
        }
    }
    // SAFETY: the asserts above make every pointer valid for the extents in its task; tasks write disjoint columns.
    match (many, tasks.as_slice()) {
        (false, [task]) => unsafe { few_rows(isa, task) },
        (false, tasks) => tasks.par_iter().for_each(|task| unsafe { few_rows(isa, task) }),
        (true, tasks) => tasks.par_iter().for_each_init(Panel::new, |panel, task| unsafe {
            many_rows(isa, task, panel);
        }),
    }
}

for_each_isa! {
    /// # Safety
    /// The task's pointers must be valid for its extents.
    fn few_rows(task: &Task) = few_rows_generic
}

#[inline(always)]
unsafe fn few_rows_generic<S: Simd>(t: &Task) {
    unsafe {
        for (row, rows) in row_tiles(t.m) {
            // as many columns at a time as leave the sums in registers: a column's weights are loaded and widened once for
            // all rows, a row's inputs once for all columns
            match (S::TILE, rows) {
                ((4, 6), 2) => strip::<S, 2, 4>(t, row),
                ((4, 6), 3) => strip::<S, 3, 4>(t, row),
                ((4, 6), 4) => strip::<S, 4, 4>(t, row),
                ((4, 6), 5) => strip::<S, 5, 4>(t, row),
                ((4, 6), _) if rows > 1 => strip::<S, 6, 4>(t, row),
                (_, 1) => strip::<S, 1, 1>(t, row),
                (_, 2) => strip::<S, 2, 2>(t, row),
                (_, 3) => strip::<S, 3, 1>(t, row),
                (_, 4) => strip::<S, 4, 1>(t, row),
                (_, 5) => strip::<S, 5, 1>(t, row),
                _ => strip::<S, 6, 1>(t, row),
            }
        }
    }
}

/// First row and number of rows of each register tile.
fn row_tiles(m: usize) -> impl Iterator<Item = (usize, usize)> {
    let n = m.div_ceil(MOST_ROWS);
    (0..n).map(move |i| (i * m / n, (i + 1) * m / n - i * m / n))
}

/// One vector, where it crosses no cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Vector([f32; LANES]);

/// Input rows in the order in which tiles read them, `[row tile][k / LANES][row]`, with zeros behind `k`.
fn pack(x: &[f32], m: usize, k: usize) -> Vec<Vector> {
    let mut packed = Vec::with_capacity(m * k.div_ceil(LANES));
    for (row, rows) in row_tiles(m) {
        for i in (0..k).step_by(LANES) {
            for x in x[row * k..].chunks_exact(k).take(rows) {
                let mut vector = Vector([0.0; LANES]);
                let n = LANES.min(k - i);
                vector.0[..n].copy_from_slice(&x[i..i + n]);
                packed.push(vector);
            }
        }
    }
    packed
}

/// Outputs of `R` rows in all columns.
#[inline(always)]
unsafe fn strip<S: Simd, const R: usize, const C: usize>(t: &Task, row: usize) {
    unsafe {
        let whole = t.n - t.n % C;
        (0..whole).step_by(C).for_each(|col| dots::<S, R, C>(t, row, col));
        (whole..t.n).for_each(|col| dots::<S, R, 1>(t, row, col));
    }
}

/// Outputs of `R` rows, which are packed, in `C` columns.
#[inline(always)]
unsafe fn dots<S: Simd, const R: usize, const C: usize>(t: &Task, row: usize, col: usize) {
    unsafe {
        let (x, weight) = (t.x.add(row * t.k.next_multiple_of(LANES)), t.weight.add(col * t.k));
        let mut total = [[S::splat(0.0); C]; R];
        let mut start = 0;
        while start < t.k {
            let end = t.k.min(start + BLOCK);
            let mut acc = [[S::splat(0.0); C]; R];
            // what comes so much later: further on in these columns, or in the next ones
            let ahead = start + PREFETCH / C.next_power_of_two();
            let ahead = if ahead < t.k { ahead } else { ahead + (C - 1) * t.k };
            let ahead = weight.wrapping_add(ahead).wrapping_sub(start);
            let mut i = start;
            while i + 2 * LANES <= end {
                for c in 0..C {
                    S::prefetch(ahead.wrapping_add(c * t.k + i).cast());
                }
                for i in [i, i + LANES] {
                    let mut w = [S::splat(0.0); C];
                    for (c, w) in w.iter_mut().enumerate() {
                        *w = S::load_bf16(weight.add(c * t.k + i));
                    }
                    for r in 0..R {
                        let x = S::load(x.add(R * i + r * LANES));
                        for c in 0..C {
                            acc[r][c] = S::fma(x, w[c], acc[r][c]);
                        }
                    }
                }
                i += 2 * LANES;
            }
            while i < end {
                let n = LANES.min(end - i);
                for c in 0..C {
                    let w = S::load_bf16_part(weight.add(c * t.k + i), n);
                    for r in 0..R {
                        acc[r][c] = S::fma(S::load(x.add(R * i + r * LANES)), w, acc[r][c]);
                    }
                }
                i += LANES;
            }
            for (total, acc) in total.iter_mut().flatten().zip(acc.into_iter().flatten()) {
                *total = if start == 0 { acc } else { S::add(*total, acc) };
            }
            start = end;
        }
        for (r, total) in total.into_iter().enumerate() {
            for (c, total) in total.into_iter().enumerate() {
                finish::<S>(t, row + r, col + c, total);
            }
        }
    }
}

#[inline(always)]
unsafe fn finish<S: Simd>(t: &Task, row: usize, col: usize, total: S::V) {
    unsafe {
        let bias = if t.bias.is_null() { 0.0 } else { *t.bias.add(col) };
        *t.out.add(row * t.out_stride + col) = S::sum(total) + bias;
    }
}

/// Scratch of one thread: a widened block of weights and the running vectors of the outputs that use it.
struct Panel {
    weights: Vec<f32>,
    totals: Vec<f32>,
}

impl Panel {
    fn new() -> Self {
        Self { weights: vec![0.0; PANEL_COLS * BLOCK], totals: vec![0.0; PANEL_ROWS * PANEL_COLS * LANES] }
    }
}

for_each_isa! {
    /// # Safety
    /// The task's pointers must be valid for its extents, and it may have at most `PANEL_COLS` columns.
    fn many_rows(task: &Task, panel: &mut Panel) = many_rows_generic
}

#[inline(always)]
unsafe fn many_rows_generic<S: Simd>(t: &Task, panel: &mut Panel) {
    unsafe {
        // the tile is a constant of the set; the other arms are dropped at compile time
        match S::TILE {
            (4, 6) => many_rows_tiled::<S, 4, 6>(t, panel),
            (2, 3) => many_rows_tiled::<S, 2, 3>(t, panel),
            (2, 2) => many_rows_tiled::<S, 2, 2>(t, panel),
            _ => many_rows_tiled::<S, 1, 2>(t, panel),
        }
    }
}

#[inline(always)]
unsafe fn many_rows_tiled<S: Simd, const R: usize, const C: usize>(t: &Task, panel: &mut Panel) {
    unsafe {
        let totals = panel.totals.as_mut_ptr();
        for first in (0..t.m).step_by(PANEL_ROWS) {
            let m = PANEL_ROWS.min(t.m - first);
            let mut start = 0;
            while start < t.k {
                let depth = BLOCK.min(t.k - start);
                widen::<S>(t, start, depth, &mut panel.weights);
                let weights = panel.weights.as_ptr();
                let x = t.x.add(first * t.k + start);
                let tile = |row: usize, col: usize| Tile {
                    x: x.add(row * t.k),
                    x_stride: t.k,
                    weights: weights.add(col * BLOCK),
                    depth,
                    totals: totals.add((row * PANEL_COLS + col) * LANES),
                    first: start == 0,
                };
                let (full_rows, full_cols) = (m - m % R, t.n - t.n % C);
                for col in (0..full_cols).step_by(C) {
                    for row in (0..full_rows).step_by(R) {
                        tile(row, col).accumulate::<S, R, C>();
                    }
                    for row in full_rows..m {
                        tile(row, col).accumulate::<S, 1, C>();
                    }
                }
                for col in full_cols..t.n {
                    for row in 0..m {
                        tile(row, col).accumulate::<S, 1, 1>();
                    }
                }
                start += depth;
            }
            for row in 0..m {
                for col in 0..t.n {
                    finish::<S>(t, first + row, col, S::load(totals.add((row * PANEL_COLS + col) * LANES)));
                }
            }
        }
    }
}

/// Widens `depth` elements of all the task's weight rows, each padded with zeros to whole vectors.
#[inline(always)]
unsafe fn widen<S: Simd>(t: &Task, start: usize, depth: usize, out: &mut [f32]) {
    unsafe {
        for col in 0..t.n {
            let weight = t.weight.add(col * t.k + start);
            let out = out.as_mut_ptr().add(col * BLOCK);
            let whole = depth - depth % LANES;
            for i in (0..whole).step_by(LANES) {
                S::prefetch(weight.wrapping_add(i + BLOCK).cast());
                S::store(out.add(i), S::load_bf16(weight.add(i)));
            }
            if whole < depth {
                S::store(out.add(whole), S::load_bf16_part(weight.add(whole), depth - whole));
            }
        }
    }
}

/// A register tile's inputs and running vectors.
struct Tile {
    x: *const f32,
    x_stride: usize,
    weights: *const f32,
    depth: usize,
    totals: *mut f32,
    first: bool,
}

impl Tile {
    #[inline(always)]
    unsafe fn accumulate<S: Simd, const R: usize, const C: usize>(&self) {
        unsafe {
            let mut acc = [[S::splat(0.0); C]; R];
            let whole = self.depth - self.depth % LANES;
            for i in (0..whole).step_by(LANES) {
                let mut x = [S::splat(0.0); R];
                for (r, x) in x.iter_mut().enumerate() {
                    *x = S::load(self.x.add(r * self.x_stride + i));
                }
                for c in 0..C {
                    let w = S::load(self.weights.add(c * BLOCK + i));
                    for r in 0..R {
                        acc[r][c] = S::fma(x[r], w, acc[r][c]);
                    }
                }
            }
            if whole < self.depth {
                for r in 0..R {
                    let x = S::load_part(self.x.add(r * self.x_stride + whole), self.depth - whole);
                    for c in 0..C {
                        acc[r][c] = S::fma(x, S::load(self.weights.add(c * BLOCK + whole)), acc[r][c]);
                    }
                }
            }
            for (r, acc) in acc.into_iter().enumerate() {
                for (c, acc) in acc.into_iter().enumerate() {
                    let total = self.totals.add((r * PANEL_COLS + c) * LANES);
                    S::store(total, if self.first { acc } else { S::add(S::load(total), acc) });
                }
            }
        }
    }
}
