//! All encoder layers of a pass of few rows in one kernel; the same bits as layer by layer.

use std::ops::Range;
use std::sync::Arc;

use super::attention::KEYS;
use super::device::{Address, Buffer, Device, Kernel, TensorMap};
use super::launch::ENCODER_LAYERS;
use super::stream::encoder_slots;
use super::weights::{Layer, padded};
use crate::Result;
use crate::model::params::{DOWNSAMPLE, TransformerParams};

/// As in `kernels/encoder_layers.cuh`.
const HEAD_DIM: usize = 64;
const MAX_ROWS: usize = 8;
const MAX_LAYERS: usize = 48;
/// Widths of rows: of what is normed, and of all others.
const MAX_NORMED: usize = 1280;
const MAX_WIDTH: usize = 5120;
const MAX_UNITS: usize = 32;
const QKV_TILES: usize = 3;
const W13_PAIRS: usize = 3;
const N_COUNTERS: usize = 256;
const WORD_BYTES: usize = 16;
/// Words of what a warp finds of a block of keys.
const FOUND: usize = MAX_ROWS * (HEAD_DIM / 2 + 4);
const SHARED_BYTES: u32 = 226 << 10;
const THREADS: u32 = 384;
/// Segments of a pass: one for each token.
const MAX_SEGMENTS: usize = MAX_ROWS / DOWNSAMPLE;

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct PassLayer {
    qkv: Address,
    wo: Address,
    w13: Address,
    w2: Address,
    attention_norm: Address,
    ffn_norm: Address,
    qkv_bias: Address,
    wo_bias: Address,
    w2_bias: Address,
}

/// As `EncoderLayers` in `kernels/encoder_layers.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Arguments {
    segments: Address,
    rings: Address,
    rope: Address,
    residual: Address,
    sums: [Address; 2],
    qkv: Address,
    attended: Address,
    hidden: Address,
    found: Address,
    counters: Address,
    rows: i32,
    n_segments: i32,
    first_layer: i32,
    end_layer: i32,
    dim: i32,
    width: i32,
    q_dim: i32,
    kv_dim: i32,
    q_width: i32,
    qkv_width: i32,
    hidden_width: i32,
    n_heads: i32,
    group: i32,
    n_slots: i32,
    window: i32,
    max_blocks: i32,
    eps: f32,
    scale: f32,
    layers: [PassLayer; MAX_LAYERS],
}

/// Rows of a pass and where they are.
pub struct LayersPass {
    pub rows: usize,
    pub n_segments: usize,
    /// The segments, and the map of each segment's ring: see [`ring_map`].
    pub segments: Address,
    pub rings: Address,
    /// Cosines and sines, `[rows, head_dim / 2, 2]` in F32.
    pub rope: Address,
    /// `[rows, padded dim]` in F32.
    pub residual: Address,
}

/// The kernel, for an encoder that it is made for.
pub struct LayersKernel {
    kernel: Kernel,
    grid: u32,
    params: TransformerParams,
    layers: [PassLayer; MAX_LAYERS],
    /// Words by which the kernel's blocks tell each other what they have: the residual stream after `wo` and after `w2`,
    /// queries, keys and values, what attention gives, SwiGLU, and what warps find of blocks of keys.
    sums: [Buffer; 2],
    qkv: Buffer,
    attended: Buffer,
    hidden: Buffer,
    found: Buffer,
    counters: Buffer,
}

/// Blocks of keys that a segment's queries see.
fn max_blocks(p: &TransformerParams) -> usize {
    (p.sliding_window + MAX_ROWS).div_ceil(KEYS) + 1
}

/// How the kernel's copy engine sees a stream's encoder ring.
pub fn ring_map(device: &Device, ring: Address, p: &TransformerParams) -> Result<TensorMap> {
    device.tensor_map(ring, [p.n_layers * 2 * encoder_slots(p), p.kv_dim()], p.kv_dim(), KEYS as u32)
}

/// Whether the kernel is made for an encoder of this shape, on a GPU that holds so many of its blocks.
fn fits(p: &TransformerParams, grid: u32) -> bool {
    let tiles = |width: usize| padded(width).div_ceil(16).div_ceil(grid as usize);
    grid > 0
        && p.head_dim == HEAD_DIM
        && p.n_layers <= MAX_LAYERS
        && padded(p.dim) <= MAX_NORMED
        && padded(p.q_dim()).max(padded(p.hidden_dim)) <= MAX_WIDTH
        && tiles(p.q_dim() + 2 * p.kv_dim()) <= QKV_TILES
        && tiles(p.hidden_dim) <= W13_PAIRS
        && tiles(p.dim) <= 1
        && (MAX_SEGMENTS * p.n_heads * max_blocks(p)).div_ceil(grid as usize) <= MAX_UNITS
}

impl LayersKernel {
    /// `None` where the GPU has no such kernel, or the encoder a shape that it isn't made for.
    pub fn new(device: &Arc<Device>, p: &TransformerParams, layers: &[Layer]) -> Result<Option<Self>> {
        let Some(kernel) = device.optional_kernel(ENCODER_LAYERS, "encoder_layers", SHARED_BYTES)? else {
            return Ok(None);
        };
        let grid = device.resident_blocks(&kernel, THREADS, SHARED_BYTES)?;
        if !fits(p, grid) {
            return Ok(None);
        }
        let bias = |bias: &Option<Buffer>| bias.as_ref().map_or(0, Buffer::address);
        let mut addresses = [PassLayer::default(); MAX_LAYERS];
        for (to, layer) in addresses.iter_mut().zip(layers) {
            *to = PassLayer {
                qkv: layer.qkv.address(),
                wo: layer.wo.address(),
                w13: layer.w13.address(),
                w2: layer.w2.address(),
                attention_norm: layer.attention_norm.address(),
                ffn_norm: layer.ffn_norm.address(),
                qkv_bias: bias(&layer.qkv_bias),
                wo_bias: bias(&layer.wo_bias),
                w2_bias: bias(&layer.w2_bias),
            };
        }
        let words = |n: usize| device.alloc_zeros(n * WORD_BYTES);
        let width = padded(p.dim);
        Ok(Some(Self {
            kernel,
            grid,
            params: *p,
            layers: addresses,
            sums: [words(MAX_ROWS * width / 2)?, words(MAX_ROWS * width / 2)?],
            qkv: words(MAX_ROWS * padded(p.q_dim() + 2 * p.kv_dim()) / 4)?,
            attended: words(MAX_ROWS * padded(p.q_dim()) / 4)?,
            hidden: words(MAX_ROWS * padded(p.hidden_dim) / 4)?,
            found: words(MAX_SEGMENTS * p.n_heads * max_blocks(p) * FOUND)?,
            counters: device.alloc_zeros(N_COUNTERS * 4)?,
        }))
    }

    /// Whether it takes a pass of segments of these numbers of rows.
    pub fn takes(&self, n_rows: impl Iterator<Item = usize> + Clone) -> bool {
        n_rows.clone().sum::<usize>() <= MAX_ROWS && n_rows.count() <= MAX_SEGMENTS
    }

    /// Runs these layers: reads and writes the residual stream, and keeps keys and values in the rings.
    ///
    /// # Safety
    /// All addresses must be those of allocations as large as [`LayersPass`] says, and the weights those of `new` still there.
    pub unsafe fn launch(&self, device: &Device, pass: &LayersPass, layers: Range<usize>) -> Result<()> {
        let p = &self.params;
        let arguments = Arguments {
            segments: pass.segments,
            rings: pass.rings,
            rope: pass.rope,
            residual: pass.residual,
            sums: [self.sums[0].address(), self.sums[1].address()],
            qkv: self.qkv.address(),
            attended: self.attended.address(),
            hidden: self.hidden.address(),
            found: self.found.address(),
            counters: self.counters.address(),
            rows: pass.rows as i32,
            n_segments: pass.n_segments as i32,
            first_layer: layers.start as i32,
            end_layer: layers.end as i32,
            dim: p.dim as i32,
            width: padded(p.dim) as i32,
            q_dim: p.q_dim() as i32,
            kv_dim: p.kv_dim() as i32,
            q_width: padded(p.q_dim()) as i32,
            qkv_width: padded(p.q_dim() + 2 * p.kv_dim()) as i32,
            hidden_width: padded(p.hidden_dim) as i32,
            n_heads: p.n_heads as i32,
            group: (p.n_heads / p.n_kv_heads) as i32,
            n_slots: encoder_slots(p) as i32,
            window: p.sliding_window as i32,
            max_blocks: max_blocks(p) as i32,
            eps: p.norm_eps,
            scale: super::softmax_scale(p),
            layers: self.layers,
        };
        // SAFETY: as promised by the caller; the structure is the kernel's parameter.
        unsafe { device.launch_cooperative(&self.kernel, self.grid, THREADS, SHARED_BYTES, &arguments) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The real model's encoder.
    const REAL: TransformerParams = TransformerParams {
        dim: 1280,
        n_layers: 32,
        head_dim: 64,
        hidden_dim: 5120,
        n_heads: 32,
        n_kv_heads: 32,
        sliding_window: 750,
        rope_theta: 1e6,
        norm_eps: 1e-5,
    };

    #[test]
    fn it_is_made_for_the_real_encoder_and_for_none_that_does_not_fit() {
        // an H100 or H200
        assert!(fits(&REAL, 132));
        for grid in [0, 1, 79, 106] {
            assert!(!fits(&REAL, grid), "{grid} blocks");
        }
        let others = [
            TransformerParams { head_dim: 128, n_heads: 16, n_kv_heads: 16, ..REAL },
            TransformerParams { n_layers: MAX_LAYERS + 1, ..REAL },
            TransformerParams { dim: 1281, ..REAL },
            TransformerParams { hidden_dim: 5121, ..REAL },
            TransformerParams { n_heads: 81, n_kv_heads: 1, ..REAL },
            TransformerParams { sliding_window: 5000, ..REAL },
        ];
        for other in others {
            assert!(!fits(&other, 132), "{other:?}");
        }
    }

    /// Else the tests of live passes would be those of the other kernels.
    #[test]
    #[cfg(feature = "gpu-tests")]
    fn it_is_there_where_it_must_be() {
        let kernels = super::super::test_data::device();
        let device = kernels.device();
        let kernel = device.optional_kernel(ENCODER_LAYERS, "encoder_layers", SHARED_BYTES).unwrap();
        assert_eq!(kernel.is_some(), device.has_hopper_kernels());
        if let Some(kernel) = kernel {
            assert!(fits(&REAL, device.resident_blocks(&kernel, THREADS, SHARED_BYTES).unwrap()));
        }
    }
}
