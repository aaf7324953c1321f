//! Sliding-window attention over a ring of keys and values.
//!
//! Keys are kept sixteen positions to a block, transposed, so that a score needs no reduction over lanes: it is one chain
//! of multiply-adds over `head_dim`, and sixteen of them run side by side. Blocks lie at fixed absolute positions, and
//! sums run over positions in order; so the result of a query depends on its position alone, not on which other queries
//! are computed with it.

#![allow(clippy::needless_range_loop)] // tile indices run over several arrays at once

use std::alloc::{Layout, alloc_zeroed};

use rayon::prelude::*;

use super::simd::{Isa, LANES, Simd, for_each_isa};
use crate::{Error, Result};

/// Queries that share each load of keys and values.
const TILE: usize = 4;

/// Keys and values of one layer of one stream: the last `window - 1` positions and room for a pass.
pub struct KvRing {
    /// `[n_kv_heads, n_blocks, head_dim, LANES]`
    keys: Vec<f32>,
    /// `[n_kv_heads, n_blocks * LANES, value_width]`
    values: Vec<f32>,
    n_kv_heads: usize,
    head_dim: usize,
    n_blocks: usize,
}

impl KvRing {
    /// A ring for queries that see `window` positions, at most `max_rows` of them new in one pass or forgotten after it.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn new(n_kv_heads: usize, head_dim: usize, window: usize, max_rows: usize) -> Result<Self> {
        let n_blocks = (window + max_rows).div_ceil(LANES) + 2;
        let slots = n_kv_heads * n_blocks * LANES;
        let keys = zeroed(slots * head_dim)?;
        let values = zeroed(slots * head_dim.next_multiple_of(LANES))?;
        Ok(Self { keys, values, n_kv_heads, head_dim, n_blocks })
    }

    /// A copy of a ring of so many positions so far.
    ///
    /// # Errors
    /// When there is no memory for it.
    pub fn fork(&self, n_positions: u64) -> Result<Self> {
        let used = usize::try_from(n_positions).unwrap_or(usize::MAX).div_ceil(LANES).min(self.n_blocks);
        let copy = |from: &[f32]| {
            let mut to = zeroed(from.len())?;
            let stride = from.len() / (self.n_kv_heads * self.n_blocks) * self.n_blocks;
            let n = stride / self.n_blocks * used;
            to.chunks_mut(stride).zip(from.chunks(stride)).for_each(|(to, from)| to[..n].copy_from_slice(&from[..n]));
            Ok(to)
        };
        Ok(Self { keys: copy(&self.keys)?, values: copy(&self.values)?, ..*self })
    }

    fn value_width(&self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Stores one position's key and value, both `[n_kv_heads, head_dim]`.
    pub fn append(&mut self, position: u64, key: &[f32], value: &[f32]) {
        let (block, lane) = self.slot(position);
        let (width, hd) = (self.value_width(), self.head_dim);
        for head in 0..self.n_kv_heads {
            let block = head * self.n_blocks + block;
            for (d, &x) in key[head * hd..][..hd].iter().enumerate() {
                self.keys[(block * hd + d) * LANES + lane] = x;
            }
            self.values[(block * LANES + lane) * width..][..hd].copy_from_slice(&value[head * hd..][..hd]);
        }
    }

    /// Appends one position's key and value to these vectors, in the order that [`append`](Self::append) takes.
    pub fn read(&self, position: u64, keys: &mut Vec<f32>, values: &mut Vec<f32>) {
        let (block, lane) = self.slot(position);
        let (width, hd) = (self.value_width(), self.head_dim);
        for head in 0..self.n_kv_heads {
            let block = head * self.n_blocks + block;
            keys.extend((0..hd).map(|d| self.keys[(block * hd + d) * LANES + lane]));
            values.extend_from_slice(&self.values[(block * LANES + lane) * width..][..hd]);
        }
    }

    fn slot(&self, position: u64) -> (usize, usize) {
        let lanes = LANES as u64;
        ((position / lanes % self.n_blocks as u64) as usize, (position % lanes) as usize)
    }
}

/// `n` zeros, whose pages are taken only when they are written.
fn zeroed(n: usize) -> Result<Vec<f32>> {
    let no_memory = || Error::Backend(format!("no memory for the keys and values of a stream: {n} numbers"));
    let layout = Layout::array::<f32>(n).map_err(|_| no_memory())?;
    if layout.size() == 0 {
        return Ok(Vec::new());
    }
    // SAFETY: the layout is not empty; the memory is that of `n` numbers, all initialised, from the global allocator.
    unsafe {
        let memory = alloc_zeroed(layout).cast::<f32>();
        if memory.is_null() { Err(no_memory()) } else { Ok(Vec::from_raw_parts(memory, n, n)) }
    }
}

/// New rows of one stream: `n_rows` consecutive positions from `position` on, all stored in `ring`.
pub struct Rows<'a> {
    pub ring: &'a KvRing,
    pub position: u64,
    /// `[n_rows, n_heads, head_dim]`
    pub q: &'a [f32],
    /// `[n_rows, n_heads, head_dim]`
    pub out: &'a mut [f32],
}

/// One query head at one position.
#[derive(Clone, Copy)]
struct Query {
    q: *const f32,
    out: *mut f32,
    position: u64,
}

struct Task<'a> {
    ring: &'a KvRing,
    kv_head: usize,
    /// `n_queries` of these are real, the others repeat the first.
    queries: [Query; TILE],
    n_queries: usize,
    window: usize,
    scale: f32,
}

// SAFETY: tasks of one call read shared inputs and write disjoint parts of outputs that the caller holds mutably.
unsafe impl Send for Task<'_> {}
// SAFETY: as above.
unsafe impl Sync for Task<'_> {}

/// `out = softmax(q kᵀ / √head_dim) v` over the last `window` positions of each query; query head `h` of `n_heads` reads
/// key/value head `h / (n_heads / n_kv_heads)`.
pub fn attend(isa: Isa, n_heads: usize, window: usize, batch: &mut [Rows<'_>]) {
    let mut tasks = Vec::new();
    for rows in batch {
        let ring = rows.ring;
        let (hd, group) = (ring.head_dim, n_heads / ring.n_kv_heads);
        assert_eq!(rows.q.len(), rows.out.len(), "queries and outputs");
        assert!(n_heads.is_multiple_of(ring.n_kv_heads) && rows.q.len().is_multiple_of(n_heads * hd), "whole rows");
        let n_rows = rows.q.len() / (n_heads * hd);
        assert!((window + n_rows).div_ceil(LANES) < ring.n_blocks, "a ring that is too small");
        let (q, out) = (rows.q.as_ptr(), rows.out.as_mut_ptr());
        for kv_head in 0..ring.n_kv_heads {
            // SAFETY: rows and heads stay below their numbers.
            let queries: Vec<_> = (0..n_rows * group)
                .map(|i| {
                    let (row, head) = (i / group, kv_head * group + i % group);
                    let at = (row * n_heads + head) * hd;
                    unsafe { Query { q: q.add(at), out: out.add(at), position: rows.position + row as u64 } }
                })
                .collect();
            tasks.extend(queries.chunks(TILE).map(|some| Task {
                ring,
                kv_head,
                queries: std::array::from_fn(|i| *some.get(i).unwrap_or(&some[0])),
                n_queries: some.len(),
                window,
                scale: 1.0 / (hd as f32).sqrt(),
            }));
        }
    }
    // SAFETY: the pointers come from slices of the right length, and no two real queries share an output.
    tasks.par_iter().for_each_init(Vec::new, |scores, task| unsafe { attend_tile(isa, task, scores) });
}

for_each_isa! {
    /// # Safety
    /// The task's pointers must be valid for `head_dim` elements.
    fn attend_tile(task: &Task<'_>, scores: &mut Vec<f32>) = attend_tile_generic
}

#[inline(always)]
unsafe fn attend_tile_generic<S: Simd>(t: &Task<'_>, scores: &mut Vec<f32>) {
    let lanes = LANES as u64;
    let oldest = |q: &Query| (q.position + 1).saturating_sub(t.window as u64);
    let first_position = t.queries.iter().map(oldest).min().unwrap_or(0);
    let last_position = t.queries.iter().map(|q| q.position).max().unwrap_or(0);
    let first_block = first_position / lanes;
    let n_blocks = (last_position / lanes - first_block + 1) as usize;
    let n_slots = n_blocks * LANES;
    scores.clear();
    scores.resize(TILE * n_slots, 0.0);

    let block_of =
        |i: usize| t.kv_head * t.ring.n_blocks + ((first_block + i as u64) % t.ring.n_blocks as u64) as usize;
    unsafe {
        let mut i = 0;
        while i < n_blocks {
            i += if n_blocks - i >= 2 {
                score_blocks::<S, 2>(t, [block_of(i), block_of(i + 1)], scores, n_slots, i)
            } else {
                score_blocks::<S, 1>(t, [block_of(i)], scores, n_slots, i)
            };
        }

        let mut sums = [0.0; TILE];
        for (q, query) in t.queries.iter().enumerate() {
            let row = &mut scores[q * n_slots..][..n_slots];
            row[..(oldest(query) - first_block * lanes) as usize].fill(f32::NEG_INFINITY);
            row[(query.position - first_block * lanes) as usize + 1..].fill(f32::NEG_INFINITY);
            sums[q] = exponentials::<S>(row);
        }

        // one run of slots, or two where the ring wraps
        let slots = Slots {
            scores: scores.as_ptr(),
            stride: n_slots,
            first: (first_position - first_block * lanes) as usize,
            end: (last_position - first_block * lanes) as usize + 1,
        };
        let vectors = t.ring.value_width() / LANES;
        let mut vector = 0;
        while vector < vectors {
            vector += match (S::VALUE_VECTORS, vectors - vector) {
                (4, 4..) => weigh_values::<S, 4>(t, &slots, first_block, vector, &sums),
                (4, 2..) => weigh_values::<S, 2>(t, &slots, first_block, vector, &sums),
                _ => weigh_values::<S, 1>(t, &slots, first_block, vector, &sums),
            };
        }
    }
}

/// Scores of the tile's queries against `B` blocks of keys; returns `B`.
#[inline(always)]
unsafe fn score_blocks<S: Simd, const B: usize>(
    t: &Task<'_>,
    blocks: [usize; B],
    scores: &mut [f32],
    stride: usize,
    first: usize,
) -> usize {
    unsafe {
        let hd = t.ring.head_dim;
        let keys = blocks.map(|block| t.ring.keys.as_ptr().add(block * hd * LANES));
        let mut acc = [[S::splat(0.0); B]; TILE];
        for d in 0..hd {
            let k = keys.map(|keys| S::load(keys.add(d * LANES)));
            for (acc, query) in acc.iter_mut().zip(&t.queries) {
                let q = S::splat(*query.q.add(d));
                for b in 0..B {
                    acc[b] = S::fma(q, k[b], acc[b]);
                }
            }
        }
        let scale = S::splat(t.scale);
        for (q, acc) in acc.into_iter().enumerate() {
            for (b, acc) in acc.into_iter().enumerate() {
                S::store(scores.as_mut_ptr().add(q * stride + (first + b) * LANES), S::mul(acc, scale));
            }
        }
        B
    }
}

/// Replaces scores by `e^(score - max)` and returns their sum.
#[inline(always)]
unsafe fn exponentials<S: Simd>(scores: &mut [f32]) -> f32 {
    unsafe {
        let p = scores.as_mut_ptr();
        let mut max = S::splat(f32::NEG_INFINITY);
        for i in (0..scores.len()).step_by(LANES) {
            max = S::max(max, S::load(p.add(i)));
        }
        let minus_max = S::splat(-S::max_lane(max));
        let mut sum = S::splat(0.0);
        for i in (0..scores.len()).step_by(LANES) {
            let e = S::exp(S::add(S::load(p.add(i)), minus_max));
            S::store(p.add(i), e);
            sum = S::add(sum, e);
        }
        S::sum(sum)
    }
}

/// Where the weights of a tile's values are: four rows of `stride`, of which `first..end` count.
struct Slots {
    scores: *const f32,
    stride: usize,
    first: usize,
    end: usize,
}

/// Weighted sums of `N` vectors of the value rows, from vector `vector` on; returns `N`.
#[inline(always)]
unsafe fn weigh_values<S: Simd, const N: usize>(
    t: &Task<'_>,
    slots: &Slots,
    first_block: u64,
    vector: usize,
    sums: &[f32; TILE],
) -> usize {
    unsafe {
        let (width, hd) = (t.ring.value_width(), t.ring.head_dim);
        let ring_slots = t.ring.n_blocks * LANES;
        let values = t.ring.values.as_ptr().add(t.kv_head * ring_slots * width + vector * LANES);
        let offset = (first_block % t.ring.n_blocks as u64) as usize * LANES;
        let mut acc = [[S::splat(0.0); N]; TILE];
        for i in slots.first..slots.end {
            let slot = if offset + i < ring_slots { offset + i } else { offset + i - ring_slots };
            let v: [S::V; N] = std::array::from_fn(|n| S::load(values.add(slot * width + n * LANES)));
            for (q, acc) in acc.iter_mut().enumerate() {
                let weight = S::splat(*slots.scores.add(q * slots.stride + i));
                for n in 0..N {
                    acc[n] = S::fma(weight, v[n], acc[n]);
                }
            }
        }
        for (q, acc) in acc.into_iter().enumerate().take(t.n_queries) {
            for (n, acc) in acc.into_iter().enumerate() {
                let mut lanes = [0.0; LANES];
                S::store(lanes.as_mut_ptr(), S::div(acc, S::splat(sums[q])));
                let first = (vector + n) * LANES;
                let count = LANES.min(hd - first);
                std::ptr::copy_nonoverlapping(lanes.as_ptr(), t.queries[q].out.add(first), count);
            }
        }
        N
    }
}
