//! Kernels against plain f64 loops, over awkward sizes, on every instruction set of the machine.

use super::attention::{KvRing, Rows, attend};
use super::elementwise::{rms_norm, swiglu};
use super::matmul::{Product, multiply};
use super::simd::Isa;
use crate::model::weights::Tensor;

/// Uniform in -1..1.
fn random(n: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|x| x.to_bits()).collect()
}

#[track_caller]
fn assert_near(got: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let off = (f64::from(got) - expected).abs();
        assert!(off <= tolerance * expected.abs().max(1.0), "{what}: [{i}] is {got}, expected {expected}");
    }
}

/// Sets whose vectors fuse multiply and add: their results have the same bits. AMX computes products in an order of its own.
fn fused() -> Vec<Isa> {
    let is_fused = |isa: &Isa| match isa {
        #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
        Isa::Amx => false,
        isa => *isa != Isa::Portable,
    };
    Isa::available().into_iter().filter(is_fused).collect()
}

fn product(isa: Isa, x: &[f32], m: usize, weight: &Tensor, bias: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; m * weight.shape()[0]];
    multiply(isa, x, m, &mut [Product { weight, bias: Some(bias), out: &mut out }]);
    out
}

/// [`product`] in f64.
fn exact(x: &[f32], m: usize, weight: &Tensor, bias: &[f32]) -> Vec<f64> {
    let (w, n) = (weight.to_f32(), bias.len());
    let k = w.len() / n;
    let dot = |row: usize, col: usize| {
        let pairs = x[row * k..][..k].iter().zip(&w[col * k..][..k]);
        pairs.map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>() + f64::from(bias[col])
    };
    (0..m * n).map(|i| dot(i / n, i % n)).collect()
}

#[test]
fn products_are_right_and_their_rows_independent() {
    for (m, n, k) in [
        (1, 1, 1),
        (3, 7, 15),
        (5, 50, 16),
        (13, 97, 17),
        (6, 16, 31),
        (10, 33, 33),
        (12, 48, 512),
        (70, 101, 530),
        (130, 5, 1100),
        (17, 31, 1023),
        (33, 129, 1024),
        (65, 32, 1025),
        (150, 17, 2080),
    ] {
        let (x, w, bias) = (random(m * k, 1), random(n * k, 2), random(n, 3));
        let weight = Tensor::from_values(&[n, k], &w);
        let expected = exact(&x, m, &weight, &bias);
        for isa in Isa::available() {
            let whole = product(isa, &x, m, &weight, &bias);
            assert_near(&whole, &expected, 2e-5, &format!("{isa:?} {m}x{n}x{k}"));
            // alone, and in companies of other sizes
            for rows in [1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 19, 20, 67] {
                for (part, expected) in x.chunks(rows * k).zip(whole.chunks(rows * n)) {
                    let got = product(isa, part, part.len() / k, &weight, &bias);
                    assert_eq!(bits(&got), bits(expected), "{isa:?}: {rows} rows of {m}x{n}x{k}");
                }
            }
        }
        let same: Vec<_> = fused().into_iter().map(|isa| bits(&product(isa, &x, m, &weight, &bias))).collect();
        assert!(same.windows(2).all(|pair| pair[0] == pair[1]), "instruction sets differ on {m}x{n}x{k}");
    }
}

#[test]
fn products_keep_all_bits_of_their_inputs() {
    // each output is one input, whole, at any place of any row
    for (m, k) in [(1, 40), (5, 64), (6, 33), (22, 70), (43, 32)] {
        let identity: Vec<f32> = (0..k * k).map(|i| f32::from(i / k == i % k)).collect();
        let weight = Tensor::from_values(&[k, k], &identity);
        for exponent in [-100, -60, -1, 0, 3, 90, 126] {
            // the smallest of these has its last bit at 2^-123, the largest is half of f32::MAX
            let numbers = random(m * k, 11).into_iter().zip(random(m * k, 12));
            let x: Vec<f32> =
                numbers.map(|(x, low)| (1.0 + x.abs() + low * 1e-5).copysign(x) * 2f32.powi(exponent)).collect();
            for isa in Isa::available() {
                let got = product(isa, &x, m, &weight, &vec![0.0; k]);
                assert_eq!(bits(&got), bits(&x), "{isa:?}, {m} rows of {k}, 2^{exponent}");
            }
        }
        // below that, nothing but what is below the range of normal numbers may be lost
        let tiny: Vec<f32> = random(m * k, 13).iter().map(|x| x * 2f32.powi(-118)).collect();
        for isa in Isa::available() {
            let got = product(isa, &tiny, m, &weight, &vec![0.0; k]);
            for (got, x) in got.iter().zip(&tiny) {
                assert!((got - x).abs() <= 2.0 * f32::MIN_POSITIVE, "{isa:?}: {x:e} became {got:e}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_so() {
    let (m, n, k) = (7, 20, 50);
    let weight = Tensor::from_values(&[n, k], &random(n * k, 14));
    let bias = vec![0.0; n];
    let low_nan = f32::from_bits(0x7F80_0001); // in whose upper half is an infinity
    for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, low_nan] {
        for isa in Isa::available() {
            for at in [0, 31, 49] {
                let mut x = random(m * k, 15);
                x[3 * k + at] = bad;
                let got = product(isa, &x, m, &weight, &bias);
                for (i, got) in got.iter().enumerate() {
                    assert_eq!(got.is_finite(), i / n != 3, "{isa:?}: output {i} of {bad} at {at} is {got}");
                }
            }
        }
    }
    // it leaves nothing behind for products of other sizes
    let nan = Tensor::from_values(&[n, 63], &vec![f32::NAN; n * 63]);
    let short = Tensor::from_values(&[n, 33], &random(n * 33, 18));
    for isa in Isa::available() {
        assert!(product(isa, &random(2 * 63, 19), 2, &nan, &bias).iter().all(|x| x.is_nan()), "{isa:?}");
        assert!(product(isa, &random(2 * 33, 20), 2, &short, &bias).iter().all(|x| x.is_finite()), "{isa:?}");
    }
    // and what is finite doesn't stop being so
    let x = vec![f32::MAX; k];
    let mut w = vec![0.0; n * k];
    (0..n).for_each(|i| w[i * k + i] = if i % 2 == 0 { 1.0 } else { -0.5 });
    let weight = Tensor::from_values(&[n, k], &w);
    for isa in Isa::available() {
        let got = product(isa, &x, 1, &weight, &bias);
        let is_right = |(i, got): (usize, &f32)| *got == f32::MAX * if i % 2 == 0 { 1.0 } else { -0.5 };
        assert!(got.iter().enumerate().all(is_right), "{isa:?}: {got:?}");
    }
}

/// Sums of many products are not much worse than those of few.
#[test]
fn long_products_round_well() {
    let (m, n) = (4, 32);
    for k in [3072, 9216] {
        let (x, w, bias) = (random(m * k, 16), random(n * k, 17), vec![0.0; n]);
        let weight = Tensor::from_values(&[n, k], &w);
        let expected = exact(&x, m, &weight, &bias);
        for isa in Isa::available() {
            let got = product(isa, &x, m, &weight, &bias);
            let square = |x: f64| x * x;
            let error: f64 = got.iter().zip(&expected).map(|(got, x)| square(f64::from(*got) - x)).sum();
            let error = (error / expected.iter().map(|x| square(*x)).sum::<f64>()).sqrt();
            println!("{isa:?}, k = {k}: {error:.2e} of the results' RMS");
            assert!(error < 5e-7, "{isa:?}, k = {k}: {error:.2e}");
        }
    }
}

/// Keys and values of all positions, `[n, n_kv_heads, head_dim]`, and queries, `[n, n_heads, head_dim]`.
struct Sequence {
    n: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    window: usize,
    q: Vec<f32>,
    k: Vec<f32>,
    v: Vec<f32>,
}

impl Sequence {
    fn new(n: usize, n_heads: usize, n_kv_heads: usize, head_dim: usize, window: usize) -> Self {
        let q = random(n * n_heads * head_dim, 4).iter().map(|x| 3.0 * x).collect();
        let kv = n * n_kv_heads * head_dim;
        Self { n, n_heads, n_kv_heads, head_dim, window, q, k: random(kv, 5), v: random(kv, 6) }
    }

    fn expected(&self) -> Vec<f64> {
        let (hd, group) = (self.head_dim, self.n_heads / self.n_kv_heads);
        let mut out = Vec::new();
        for i in 0..self.n * self.n_heads {
            let (position, kv_head) = (i / self.n_heads, i % self.n_heads / group);
            let keys = (position + 1).saturating_sub(self.window)..=position;
            let at = |j: usize, d: usize| (j * self.n_kv_heads + kv_head) * hd + d;
            let score = |j: usize| {
                let dot: f64 = (0..hd).map(|d| f64::from(self.q[i * hd + d]) * f64::from(self.k[at(j, d)])).sum();
                (dot / (hd as f64).sqrt()).exp()
            };
            let sum: f64 = keys.clone().map(score).sum();
            out.extend(
                (0..hd).map(|d| keys.clone().map(|j| score(j) * f64::from(self.v[at(j, d)])).sum::<f64>() / sum),
            );
        }
        out
    }

    /// In passes of at most `rows` positions; every third pass is done twice, after a rewind.
    fn run(&self, isa: Isa, rows: usize) -> Vec<f32> {
        let (q_width, kv_width) = (self.n_heads * self.head_dim, self.n_kv_heads * self.head_dim);
        let mut ring = KvRing::new(self.n_kv_heads, self.head_dim, self.window, rows).unwrap();
        let mut out = vec![f32::NAN; self.q.len()];
        for (pass, first) in (0..self.n).step_by(rows).enumerate() {
            let end = self.n.min(first + rows);
            if pass % 3 == 2 {
                let wrong = random(kv_width, 7);
                (first..first + rows).for_each(|position| ring.append(position as u64, &wrong, &wrong));
            }
            for position in first..end {
                let at = position * kv_width..(position + 1) * kv_width;
                ring.append(position as u64, &self.k[at.clone()], &self.v[at]);
            }
            let q = &self.q[first * q_width..end * q_width];
            let out = &mut out[first * q_width..end * q_width];
            attend(isa, self.n_heads, self.window, &mut [Rows { ring: &ring, position: first as u64, q, out }]);
        }
        out
    }
}

#[test]
fn attention_is_right_and_its_rows_independent() {
    for (n, n_heads, n_kv_heads, head_dim, window) in [
        (5, 1, 1, 2, 3),
        (70, 4, 4, 16, 20),
        (50, 6, 3, 20, 1),
        (90, 8, 2, 64, 33),
        (200, 5, 1, 34, 64),
        (40, 4, 2, 128, 500),
    ] {
        let sequence = Sequence::new(n, n_heads, n_kv_heads, head_dim, window);
        let expected = sequence.expected();
        for isa in Isa::available() {
            let alone = sequence.run(isa, 1);
            assert_near(&alone, &expected, 2e-5, &format!("{isa:?} {n} {n_heads} {n_kv_heads} {head_dim} {window}"));
            for rows in [2, 3, 7, 16, 64] {
                assert_eq!(bits(&sequence.run(isa, rows)), bits(&alone), "{isa:?}, {rows} rows, window {window}");
            }
        }
        let same: Vec<_> = fused().into_iter().map(|isa| bits(&sequence.run(isa, 5))).collect();
        assert!(same.windows(2).all(|pair| pair[0] == pair[1]), "instruction sets differ");
    }
}

#[test]
fn norms_and_activations_are_right() {
    for n in [1, 15, 16, 33, 1000] {
        let (x, w) = (random(n, 8), random(n, 9));
        let mean = x.iter().map(|x| f64::from(x * x)).sum::<f64>() / n as f64 + 1e-5;
        let norm: Vec<f64> = x.iter().zip(&w).map(|(x, w)| f64::from(*x) / mean.sqrt() * f64::from(*w)).collect();
        let gates: Vec<f32> = x.iter().enumerate().map(|(i, x)| x * [1.0, 10.0, 120.0][i % 3]).collect();
        let silu = |g: f64| g / (1.0 + (-g).exp());
        let activated: Vec<f64> = gates.iter().zip(&w).map(|(g, w)| silu(f64::from(*g)) * f64::from(*w)).collect();
        for isa in Isa::available() {
            let mut out = vec![0.0; n];
            rms_norm(isa, &x, &w, 1e-5, &mut out);
            assert_near(&out, &norm, 1e-6, &format!("{isa:?} norm of {n}"));
            let mut out = gates.clone();
            swiglu(isa, &mut out, &w);
            assert_near(&out, &activated, 1e-6, &format!("{isa:?} swiglu of {n}"));
        }
    }
}
