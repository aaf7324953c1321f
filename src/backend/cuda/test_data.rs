//! What the kernels' tests share: a GPU, and random numbers on it.

use std::sync::Arc;

use half::{bf16, f16};

use super::device::{Buffer, Device, bytes_of};
use super::launch::Kernels;
use crate::backend::CudaOptions;
use crate::model::params::TransformerParams;

/// The first GPU; these tests fail without one.
pub fn device() -> Kernels {
    let stack = TransformerParams {
        dim: 128,
        n_layers: 1,
        head_dim: 64,
        hidden_dim: 128,
        n_heads: 2,
        n_kv_heads: 2,
        rope_theta: 1e6,
        norm_eps: 1e-5,
        sliding_window: 64,
    };
    let kernels = Kernels::open(&CudaOptions::default(), &stack).expect("these tests need a GPU");
    kernels.device().enter().unwrap();
    kernels
}

/// A copy on the device.
pub fn put<T: Copy>(device: &Arc<Device>, values: &[T]) -> Buffer {
    let buffer = device.alloc(size_of_val(values)).unwrap();
    // SAFETY: the buffer has that size, and `values` outlive the wait.
    unsafe { device.upload(buffer.address(), bytes_of(values)).unwrap() };
    device.finish().unwrap();
    buffer
}

pub fn f16_of(values: &[f32]) -> Vec<u16> {
    values.iter().map(|&x| f16::from_f32(x).to_bits()).collect()
}

pub fn bf16_of(values: &[f32]) -> Vec<u16> {
    values.iter().map(|&x| bf16::from_f32(x).to_bits()).collect()
}

/// A row of weights as 12 bits hold it (`kernels/e4m7.cuh`): quotients by the power of two below the largest have eight
/// significant bits, or those down to 2^-21.
pub fn e4m7_of(row: &[f32]) -> Vec<f32> {
    let scale = e4m7_scale(row);
    let rounded = |w: f32| {
        let x = f64::from(w) / f64::from(scale);
        let quantum = (x.abs().log2().floor().max(-14.0) - 7.0).exp2();
        ((x / quantum).round_ties_even() * quantum) as f32 * scale
    };
    row.iter().map(|&w| if w == 0.0 { 0.0 } else { rounded(w) }).collect()
}

/// The largest power of two up to a row's largest magnitude.
pub fn e4m7_scale(row: &[f32]) -> f32 {
    let largest = row.iter().fold(0f32, |most, w| most.max(w.abs()));
    if largest > 0.0 { largest.log2().floor().exp2() } else { 1.0 }
}

/// Fails where a row of `width` numbers is off by more than `tolerance` of its norm, or is not a number.
pub fn assert_rows(what: &str, got: &[f32], expected: &[f32], width: usize, tolerance: f64) {
    assert_eq!(got.len(), expected.len(), "{what}: numbers");
    for (i, (got, expected)) in got.chunks(width).zip(expected.chunks(width)).enumerate() {
        let norm: f64 = expected.iter().map(|&x| f64::from(x) * f64::from(x)).sum();
        let off: f64 = got.iter().zip(expected).map(|(&x, &y)| (f64::from(x) - f64::from(y)).powi(2)).sum();
        let off = (off / norm.max(1e-30)).sqrt();
        assert!(off <= tolerance, "{what}: row {i} of {} is off by {off:.1e}", expected.len());
    }
}

pub struct Random(u32);

impl Random {
    pub fn new(seed: u32) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9) | 1)
    }

    /// From -1 to 1.
    fn next(&mut self) -> f32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 17;
        self.0 ^= self.0 << 5;
        (self.0 >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Numbers of either sign whose magnitudes are spread evenly over these powers of two.
    pub fn spread(&mut self, n: usize, (low, high): (f32, f32)) -> Vec<f32> {
        (0..n).map(|_| self.next() * (low + (self.next() * 0.5 + 0.5) * (high - low)).exp2()).collect()
    }
}
