//! What happens between the products: norms, rotations, activations. All of it works on single rows.

use rayon::prelude::*;

use super::simd::{Isa, LANES, Simd, for_each_isa};

/// Elements below which a second thread costs more than it brings.
pub const MIN_PARALLEL: usize = 1 << 14;

/// Applies `f` to corresponding rows of `a` and `b`, which have `width_a` and `width_b` elements each.
pub fn for_rows(a: &mut [f32], width_a: usize, b: &[f32], width_b: usize, f: impl Fn(&mut [f32], &[f32]) + Sync) {
    if a.len() < MIN_PARALLEL {
        a.chunks_exact_mut(width_a).zip(b.chunks_exact(width_b)).for_each(|(a, b)| f(a, b));
    } else {
        a.par_chunks_exact_mut(width_a).zip(b.par_chunks_exact(width_b)).for_each(|(a, b)| f(a, b));
    }
}

/// `out = x / √(mean(x²) + eps) · weight`, all of one row.
pub fn rms_norm(isa: Isa, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    assert!(x.len() == weight.len() && x.len() == out.len(), "widths");
    let mut sum = 0.0;
    // SAFETY: a slice is valid for its length.
    unsafe { sum_of_squares(isa, x, &mut sum) };
    let inverse = 1.0 / (sum / x.len() as f32 + eps).sqrt();
    for ((out, &x), &weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * inverse * weight;
    }
}

for_each_isa! {
    fn sum_of_squares(x: &[f32], sum: &mut f32) = sum_of_squares_generic
}

#[inline(always)]
unsafe fn sum_of_squares_generic<S: Simd>(x: &[f32], sum: &mut f32) {
    unsafe {
        let (vectors, rest) = x.as_chunks::<LANES>();
        let mut acc = S::splat(0.0);
        for v in vectors {
            let v = S::load(v.as_ptr());
            acc = S::fma(v, v, acc);
        }
        let last = S::load_part(rest.as_ptr(), rest.len());
        *sum = S::sum(S::fma(last, last, acc));
    }
}

/// `gate = silu(gate) · up`, elementwise.
pub fn swiglu(isa: Isa, gate: &mut [f32], up: &[f32]) {
    assert_eq!(gate.len(), up.len(), "widths");
    // SAFETY: the slices are valid for their common length.
    unsafe { swiglu_row(isa, gate, up) }
}

for_each_isa! {
    fn swiglu_row(gate: &mut [f32], up: &[f32]) = swiglu_row_generic
}

#[inline(always)]
unsafe fn swiglu_row_generic<S: Simd>(gate: &mut [f32], up: &[f32]) {
    unsafe {
        let whole = gate.len() - gate.len() % LANES;
        let (g, u) = (gate.as_mut_ptr(), up.as_ptr());
        for i in (0..whole).step_by(LANES) {
            S::store(g.add(i), silu_up::<S>(S::load(g.add(i)), S::load(u.add(i))));
        }
        let rest = gate.len() - whole;
        let mut lanes = [0.0; LANES];
        S::store(lanes.as_mut_ptr(), silu_up::<S>(S::load_part(g.add(whole), rest), S::load_part(u.add(whole), rest)));
        gate[whole..].copy_from_slice(&lanes[..rest]);
    }
}

/// A function, as closures are not compiled for the set of those that they are in.
#[inline(always)]
unsafe fn silu_up<S: Simd>(gate: S::V, up: S::V) -> S::V {
    unsafe {
        let e = S::exp(S::mul(gate, S::splat(-1.0)));
        S::mul(S::div(gate, S::add(S::splat(1.0), e)), up)
    }
}

/// The exact GELU, `x/2 · (1 + erf(x/√2))`.
pub fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + libm::erff(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// Applies [`gelu`] to all elements.
pub fn gelu_all(x: &mut [f32]) {
    x.par_chunks_mut(MIN_PARALLEL / 8).for_each(|part| part.iter_mut().for_each(|x| *x = gelu(*x)));
}

/// `x += y`
pub fn add(x: &mut [f32], y: &[f32]) {
    x.iter_mut().zip(y).for_each(|(x, &y)| *x += y);
}

/// Rotary embedding: element pairs `(2j, 2j + 1)` of a head turn by `position · theta^(-2j / head_dim)`.
pub struct Rope {
    /// `[head_dim / 2]`
    frequencies: Vec<f32>,
}

/// `theta^(-2j / head_dim)` of every pair.
pub fn frequencies(head_dim: usize, theta: f64) -> Vec<f32> {
    (0..head_dim / 2).map(|j| (1.0 / theta.powf((2 * j) as f64 / head_dim as f64)) as f32).collect()
}

impl Rope {
    pub fn new(head_dim: usize, theta: f64) -> Self {
        Self { frequencies: frequencies(head_dim, theta) }
    }

    /// Cosine and sine of every pair's angle at this position, `[head_dim / 2]` each; the angle is an f32 product, as in
    /// the official code.
    pub fn angles(&self, position: u64) -> Vec<(f32, f32)> {
        self.frequencies.iter().map(|&f| position as f32 * f).map(|a| (a.cos(), a.sin())).collect()
    }
}

/// Turns all heads of one row.
pub fn rotate(row: &mut [f32], angles: &[(f32, f32)]) {
    for head in row.chunks_exact_mut(2 * angles.len()) {
        for (pair, &(cos, sin)) in head.as_chunks_mut::<2>().0.iter_mut().zip(angles) {
            let [a, b] = *pair;
            *pair = [a * cos - b * sin, a * sin + b * cos];
        }
    }
}
