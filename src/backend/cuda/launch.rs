//! The kernels' parameters, as the structures in `kernels/`, and how each is launched.

use std::sync::Arc;

use super::device::{Address, Device, Kernel};
use crate::Result;
use crate::backend::CudaOptions;
use crate::{Error, model::params::TransformerParams};

/// Keys of a block and queries of a tile in encoder attention.
pub const TILE: usize = 64;
/// Head widths that encoder attention is compiled for.
const HEAD_DIMS: [usize; 3] = [16, 64, 128];

/// One decoder position, as the kernels see it.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Row {
    pub audio: Address,
    pub kv: Address,
    pub ffn_scale: Address,
    pub position: u32,
    pub n_slots: u32,
    pub token: u32,
    /// Where it is among the rows whose predictions are asked for, or [`NO_ROW`].
    pub head_row: u32,
}

pub const NO_ROW: u32 = 255;

/// Consecutive rows of one stream in an encoder pass.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct Segment {
    pub ring: Address,
    pub conv_tail: Address,
    pub first_row: i32,
    pub n_rows: i32,
    pub position: i32,
    pub first_conv: i32,
}

/// What a product does with its sums.
#[repr(i32)]
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    StoreF32 = 0,
    AddF32 = 1,
    GeluF32 = 2,
    GeluF16 = 3,
    SwigluF16 = 4,
    QkvF16 = 5,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Gemm {
    pub weights: Address,
    pub x: Address,
    pub x_rows: Address,
    pub bias: Address,
    pub out: Address,
    pub out_rows: Address,
    pub rope: Address,
    pub rows: Address,
    pub best: Address,
    pub x_stride: i32,
    pub out_stride: i32,
    pub m: i32,
    pub n: i32,
    pub k: i32,
    pub epilogue: Epilogue,
    pub q_dim: i32,
    pub kv_dim: i32,
    pub head_dim: i32,
    pub layer: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RmsNorm {
    pub x: Address,
    pub weight: Address,
    pub h: Address,
    pub rows: Address,
    pub index: Address,
    pub layer: i32,
    pub dim: i32,
    pub stride: i32,
    pub eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RopeAngles {
    pub positions: Address,
    pub rows: Address,
    pub frequencies: Address,
    pub angles: Address,
    pub half: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct ConvTails {
    pub segments: Address,
    pub y: Address,
    pub stride: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct KeepKeys {
    pub segments: Address,
    pub qkv: Address,
    pub stride: i32,
    pub q_dim: i32,
    pub kv_dim: i32,
    pub layer: i32,
    pub n_slots: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct EncoderAttention {
    pub segments: Address,
    pub tiles: Address,
    pub qkv: Address,
    pub out: Address,
    pub stride: i32,
    pub out_stride: i32,
    pub q_dim: i32,
    pub kv_dim: i32,
    pub group: i32,
    pub layer: i32,
    pub n_slots: i32,
    pub window: i32,
    pub scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pack {
    pub source: Address,
    pub destination: Address,
    pub rows: i32,
    pub columns: i32,
    pub first_row: i32,
    pub row_offset: i32,
    pub k: i32,
    pub block: i32,
    pub block_stride: i32,
    pub taps: i32,
    pub half: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PackRows {
    pub source: Address,
    pub destination: Address,
    pub rows: i32,
    pub columns: i32,
    pub first_row: i32,
    pub k: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct PackTiles {
    pub source: Address,
    pub destination: Address,
    pub rows: i32,
    pub columns: i32,
    pub first_row: i32,
    pub row_offset: i32,
    pub k: i32,
    pub half: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Widen {
    pub source: Address,
    pub destination: Address,
    pub n: i32,
}

/// A tile shape of the product kernel.
struct GemmShape {
    kernel: Kernel,
    bn: u32,
    bm: u32,
    threads: u32,
    shared_bytes: u32,
}

/// All kernels of the backend.
pub struct Kernels {
    device: Arc<Device>,
    /// Product kernels, from few rows to many.
    whole: Vec<GemmShape>,
    rms_norm: Kernel,
    rope_angles: Kernel,
    conv_tails: Kernel,
    keep_keys: Kernel,
    /// In the order of [`HEAD_DIMS`].
    encoder_attention: Vec<Kernel>,
    pack: Kernel,
    pack_tiles: Kernel,
    pack_rows: Kernel,
    widen: Kernel,
}

/// The compiled `kernels/*.cu`, with the index of each.
const FATBINS: [&[u8]; 7] = [
    include_bytes!(concat!(env!("OUT_DIR"), "/gemm.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/rows.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/pack.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/encoder_attention.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/decoder.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/decoder_pack.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/decoder_steps.fatbin")),
];
const GEMM: usize = 0;
const ROWS: usize = 1;
const PACK: usize = 2;
const ENCODER_ATTENTION: usize = 3;
pub const DECODER: usize = 4;
const DECODER_PACK: usize = 5;
pub const DECODER_STEPS: usize = 6;

/// The error for a model of a shape that the kernels are not made for.
pub fn unsupported<T>(what: String) -> Result<T> {
    Err(Error::Backend(format!("CUDA: {what} (--device cpu takes any)")))
}

fn encoder_attention_bytes(head_dim: usize) -> u32 {
    (3 * 2 * TILE * head_dim * 2) as u32
}

impl Kernels {
    /// Opens a GPU and prepares all kernels but the decoder's for heads of this stack.
    pub fn open(options: &CudaOptions, encoder: &TransformerParams) -> Result<Self> {
        if !HEAD_DIMS.contains(&encoder.head_dim) {
            return unsupported(format!("encoder head_dim is {}, supported are {HEAD_DIMS:?}", encoder.head_dim));
        }
        let device = Device::open(options, &FATBINS)?;
        let gemm = |name, bn: u32, bm: u32, threads, bk: u32, stages: u32| {
            let shared_bytes = stages * (bn + bm) * bk * 2;
            Ok(GemmShape { kernel: device.kernel(GEMM, name, shared_bytes)?, bn, bm, threads, shared_bytes })
        };
        let whole: Result<_> = [
            gemm("gemm_16x8", 16, 8, 128, 128, 8),
            gemm("gemm_16x16", 16, 16, 128, 128, 6),
            gemm("gemm_16x32", 16, 32, 128, 128, 5),
            gemm("gemm_32x64", 32, 64, 256, 128, 3),
            gemm("gemm_64x64", 64, 64, 128, 64, 4),
            gemm("gemm_128x128", 128, 128, 256, 64, 3),
        ]
        .into_iter()
        .collect();
        let attention = [("encoder_attention_16", 16), ("encoder_attention_64", 64), ("encoder_attention_128", 128)]
            .map(|(name, head_dim)| device.kernel(ENCODER_ATTENTION, name, encoder_attention_bytes(head_dim)));
        Ok(Self {
            whole: whole?,
            rms_norm: device.kernel(ROWS, "rms_norm", 0)?,
            rope_angles: device.kernel(ROWS, "rope_angles", 0)?,
            conv_tails: device.kernel(ROWS, "conv_tails", 0)?,
            keep_keys: device.kernel(ROWS, "keep_keys", 0)?,
            encoder_attention: attention.into_iter().collect::<Result<_>>()?,
            pack_tiles: device.kernel(DECODER_PACK, "pack_tiles", 0)?,
            pack_rows: device.kernel(DECODER_STEPS, "pack_rows", 0)?,
            pack: device.kernel(PACK, "pack", 0)?,
            widen: device.kernel(PACK, "widen", 0)?,
            device,
        })
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    /// The encoder's product: any number of rows.
    ///
    /// # Safety
    /// All addresses must be those of allocations large enough for the shapes given, as for every launch below.
    pub unsafe fn gemm(&self, a: &Gemm) -> Result<()> {
        unsafe { self.multiply(&self.whole, a) }
    }

    /// With the largest tiles that are not mostly padding and still give every multiprocessor one. Sums are the same in
    /// all shapes of a family.
    unsafe fn multiply(&self, family: &[GemmShape], a: &Gemm) -> Result<()> {
        let (m, n) = (a.m as u32, (a.n as u32).next_multiple_of(128));
        let grid = |shape: &GemmShape| [n / shape.bn, m.div_ceil(shape.bm), 1];
        let fitting = |shape: &&GemmShape| shape.bm <= m.next_power_of_two().max(8);
        let full = |shape: &&GemmShape| grid(shape).iter().product::<u32>() >= self.device.n_multiprocessors;
        // where none fills the GPU: the least waste among those of few weights
        let narrow = || family.iter().filter(fitting).rfind(|shape| shape.bn == family[0].bn).unwrap_or(&family[0]);
        let shape = family.iter().filter(fitting).rfind(full).unwrap_or_else(narrow);
        let grid = grid(shape);
        unsafe { self.device.launch(&shape.kernel, grid, shape.threads, shape.shared_bytes, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn rms_norm(&self, n_rows: usize, a: &RmsNorm) -> Result<()> {
        unsafe { self.device.launch(&self.rms_norm, [n_rows as u32, 1, 1], 256, 0, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn rope_angles(&self, n_rows: usize, a: &RopeAngles) -> Result<()> {
        unsafe { self.device.launch(&self.rope_angles, [n_rows as u32, 1, 1], 64, 0, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn conv_tails(&self, n_segments: usize, a: &ConvTails) -> Result<()> {
        unsafe { self.device.launch(&self.conv_tails, [n_segments as u32, 1, 1], 256, 0, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn keep_keys(&self, n_rows: usize, n_segments: usize, a: &KeepKeys) -> Result<()> {
        unsafe { self.device.launch(&self.keep_keys, [n_rows as u32, n_segments as u32, 1], 256, 0, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn encoder_attention(
        &self,
        n_tiles: usize,
        n_heads: usize,
        head_dim: usize,
        a: &EncoderAttention,
    ) -> Result<()> {
        let which = HEAD_DIMS.iter().position(|&n| n == head_dim).expect("checked on loading");
        let grid = [n_tiles as u32, n_heads as u32, 1];
        let shared_bytes = encoder_attention_bytes(head_dim);
        unsafe { self.device.launch(&self.encoder_attention[which], grid, 128, shared_bytes, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn pack(&self, a: &Pack) -> Result<()> {
        let grid = [(a.columns as u32).div_ceil(2 * 256 * 4).max(1), a.rows as u32, 1];
        unsafe { self.device.launch(&self.pack, grid, 256, 0, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn pack_tiles(&self, a: &PackTiles) -> Result<()> {
        let grid = [(a.columns as u32).div_ceil(2 * 256 * 4).max(1), a.rows as u32, 1];
        unsafe { self.device.launch(&self.pack_tiles, grid, 256, 0, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn pack_rows(&self, a: &PackRows) -> Result<()> {
        let grid = [(a.columns as u32).div_ceil(256 * 4).max(1), a.rows as u32, 1];
        unsafe { self.device.launch(&self.pack_rows, grid, 256, 0, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn widen(&self, a: &Widen) -> Result<()> {
        unsafe { self.device.launch(&self.widen, [(a.n as u32).div_ceil(256), 1, 1], 256, 0, a) }
    }
}
