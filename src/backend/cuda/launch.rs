//! The kernels' parameters, as the structures in `kernels/`, and how each is launched.

#[cfg(all(test, feature = "gpu-tests"))]
mod tests;

use std::sync::Arc;

use super::attention::Attention;
use super::device::{Address, Device, Kernel};
use super::gemm::{Gemm, Products};
use crate::Result;
use crate::backend::CudaOptions;
use crate::{Error, model::params::TransformerParams};

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
    pub mel_tail: Address,
    pub first_row: i32,
    pub n_rows: i32,
    pub position: i32,
    pub first_conv: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RmsNorm {
    pub x: Address,
    pub weight: Address,
    pub h: Address,
    pub dim: i32,
    pub stride: i32,
    pub eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct RopeAngles {
    pub positions: Address,
    pub frequencies: Address,
    pub angles: Address,
    pub half: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct MelFrames {
    pub segments: Address,
    pub frames: Address,
    pub out: Address,
    pub n_mels: i32,
    pub width: i32,
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
    pub scales: Address,
    pub rows: i32,
    pub columns: i32,
    pub first_row: i32,
    pub row_offset: i32,
    pub k: i32,
    pub half: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct WidenTiles {
    pub source: Address,
    pub destination: Address,
    pub n_pieces: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct QuantiseRows {
    pub source: Address,
    pub destination: Address,
    pub scales: Address,
    pub rows: i32,
    pub columns: i32,
    pub first_row: i32,
    pub k: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Widen {
    pub source: Address,
    pub destination: Address,
    pub n: i32,
}

/// All kernels of the backend.
pub struct Kernels {
    device: Arc<Device>,
    products: Products,
    encoder_attention: Attention,
    rms_norm: Kernel,
    rope_angles: Kernel,
    mel_frames: Kernel,
    conv_tails: Kernel,
    keep_keys: Kernel,
    pack: Kernel,
    pack_tiles: Kernel,
    widen_tiles: Kernel,
    pack_rows: Kernel,
    quantise_rows: Kernel,
    widen: Kernel,
}

/// The compiled `kernels/*.cu`, with the index of each.
const FATBINS: [&[u8]; 11] = [
    include_bytes!(concat!(env!("OUT_DIR"), "/gemm.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/rows.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/pack.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/encoder_attention.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/decoder.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/decoder_pack.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/decoder_steps.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/gemm_wide.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/encoder_attention_wide.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/gemm_few.fatbin")),
    include_bytes!(concat!(env!("OUT_DIR"), "/encoder_layers.fatbin")),
];
pub const GEMM: usize = 0;
const ROWS: usize = 1;
const PACK: usize = 2;
pub const ENCODER_ATTENTION: usize = 3;
pub const DECODER: usize = 4;
const DECODER_PACK: usize = 5;
pub const DECODER_STEPS: usize = 6;
pub const GEMM_WIDE: usize = 7;
pub const ENCODER_ATTENTION_WIDE: usize = 8;
pub const GEMM_FEW: usize = 9;
pub const ENCODER_LAYERS: usize = 10;

/// The error for a model of a shape that the kernels are not made for.
pub fn unsupported<T>(what: String) -> Result<T> {
    Err(Error::Backend(format!("CUDA: {what} (--device cpu takes any)")))
}

impl Kernels {
    /// Opens a GPU and prepares all kernels but the decoder's for heads of this stack.
    pub fn open(options: &CudaOptions, encoder: &TransformerParams) -> Result<Self> {
        let device = Device::open(options, &FATBINS)?;
        Ok(Self {
            products: Products::new(&device)?,
            encoder_attention: Attention::new(&device, encoder.head_dim)?,
            mel_frames: device.kernel(ROWS, "mel_frames", 0)?,
            rms_norm: device.kernel(ROWS, "rms_norm", 0)?,
            rope_angles: device.kernel(ROWS, "rope_angles", 0)?,
            conv_tails: device.kernel(ROWS, "conv_tails", 0)?,
            keep_keys: device.kernel(ROWS, "keep_keys", 0)?,
            pack_tiles: device.kernel(DECODER_PACK, "pack_tiles", 0)?,
            widen_tiles: device.kernel(DECODER_PACK, "widen_tiles", 0)?,
            pack_rows: device.kernel(DECODER_STEPS, "pack_rows", 0)?,
            quantise_rows: device.kernel(DECODER_PACK, "quantise_rows", 0)?,
            pack: device.kernel(PACK, "pack", 0)?,
            widen: device.kernel(PACK, "widen", 0)?,
            device,
        })
    }

    pub fn device(&self) -> &Arc<Device> {
        &self.device
    }

    #[cfg(all(test, feature = "gpu-tests"))]
    pub fn products(&self) -> &Products {
        &self.products
    }

    /// The encoder's product: any number of rows.
    ///
    /// # Safety
    /// All addresses must be those of allocations large enough for the shapes given, as for every launch below.
    pub unsafe fn gemm(&self, a: &Gemm) -> Result<()> {
        unsafe { self.products.launch(&self.device, a) }
    }

    pub fn encoder_attention(&self) -> &Attention {
        &self.encoder_attention
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn rms_norm(&self, n_rows: usize, a: &RmsNorm) -> Result<()> {
        unsafe { self.device.launch(&self.rms_norm, [n_rows as u32, 1, 1], 32, 0, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn rope_angles(&self, n_rows: usize, a: &RopeAngles) -> Result<()> {
        unsafe { self.device.launch(&self.rope_angles, [n_rows as u32, 1, 1], 64, 0, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn mel_frames(&self, n_frames: usize, n_segments: usize, a: &MelFrames) -> Result<()> {
        unsafe { self.device.launch(&self.mel_frames, [n_frames as u32 + 2, n_segments as u32, 1], 128, 0, a) }
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
    pub unsafe fn pack(&self, a: &Pack) -> Result<()> {
        let grid = [(a.columns as u32).div_ceil(2 * 256 * 4).max(1), a.rows as u32, 1];
        unsafe { self.device.launch(&self.pack, grid, 256, 0, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn pack_tiles(&self, a: &PackTiles) -> Result<()> {
        unsafe { self.device.launch(&self.pack_tiles, [(a.rows as u32).div_ceil(8), 1, 1], 256, 0, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn widen_tiles(&self, a: &WidenTiles) -> Result<()> {
        unsafe { self.device.launch(&self.widen_tiles, [(a.n_pieces as u32).div_ceil(8), 1, 1], 256, 0, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn pack_rows(&self, a: &PackRows) -> Result<()> {
        let grid = [(a.columns as u32).div_ceil(256 * 4).max(1), a.rows as u32, 1];
        unsafe { self.device.launch(&self.pack_rows, grid, 256, 0, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn quantise_rows(&self, a: &QuantiseRows) -> Result<()> {
        unsafe { self.device.launch(&self.quantise_rows, [(a.rows as u32).div_ceil(8), 1, 1], 256, 0, a) }
    }

    /// # Safety
    /// As for [`gemm`](Self::gemm).
    pub unsafe fn widen(&self, a: &Widen) -> Result<()> {
        unsafe { self.device.launch(&self.widen, [(a.n as u32).div_ceil(256), 1, 1], 256, 0, a) }
    }
}
