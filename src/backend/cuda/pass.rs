//! The decoder's kernel as seen from the host: its parameters, as the structures in `kernels/decoder.cuh`, and how it is
//! launched. One launch does any range of a pass's phases.

use std::ops::Range;
use std::sync::Arc;

use super::device::{Address, Device, Kernel};
use super::launch::{DECODER, unsupported};
use crate::Result;
use crate::model::params::TransformerParams;

/// Width of a head.
pub const HEAD_DIM: usize = 128;
/// Cache positions of an attention unit.
pub const CHUNK: usize = 256;
/// Rows of a pass, at most.
pub const MAX_ROWS: usize = 64;
/// Slices of k in which two products are summed.
pub const SPLITS: usize = 2;
/// Phases of a layer.
const LAYER_PHASES: usize = 5;
pub const MAX_LAYERS: usize = 64;
/// (row, head) pairs of an attention unit.
const UNIT_ROWS: usize = 16;
/// Chunks of the cache that a position may see.
const MAX_CHUNKS: usize = 64;
const THREADS: u32 = 384;
const STAGE_BYTES: u32 = 16 << 10;
const MAX_STAGES: u32 = 12;
const SHARED_BYTES: u32 = 3072;
/// Bytes of sums that wait to be added with many rows, where that leaves room for [`ROOMY_STAGES`]: fewer rounds.
const ROOMY_SUM_BYTES: u32 = 64 << 10;
const ROOMY_STAGES: u32 = 8;
/// Kernels, with an output matrix of 16 bits and of 8, by the rows that they take, with the bytes of sums that wait to be added at
/// least.
const KERNELS: [([&str; 2], usize, u32); 5] = [
    (["decoder_pass_1", "decoder_pass_int8_1"], 8, 24 << 10),
    (["decoder_pass_2", "decoder_pass_int8_2"], 16, 24 << 10),
    (["decoder_pass_4", "decoder_pass_int8_4"], 32, 32 << 10),
    (["decoder_pass_5", "decoder_pass_int8_5"], 40, 32 << 10),
    (["decoder_pass_8", "decoder_pass_int8_8"], 64, 32 << 10),
];

#[repr(C)]
#[derive(Clone, Copy, Default)]
pub struct PassLayer {
    pub wqkv: Address,
    pub wo: Address,
    pub w13: Address,
    pub w2: Address,
    pub attention_norm: Address,
    pub ffn_norm: Address,
}

/// Consecutive positions of one stream that share a unit of attention.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Group {
    pub first: i32,
    pub n: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
pub struct Pass {
    pub dim: i32,
    pub width: i32,
    pub n_heads: i32,
    pub n_kv_heads: i32,
    pub hidden: i32,
    pub vocab: i32,
    pub n_layers: i32,
    pub window: i32,
    pub eps: f32,
    pub scale: f32,
    pub max_chunks: i32,
    pub sum_bytes: i32,
    pub stages: i32,
    pub phase_begin: i32,
    pub phase_end: i32,
    pub final_norm: Address,
    pub head: Address,
    pub head_int8: Address,
    pub head_scales: Address,
    pub frequencies: Address,
    pub shape: Address,
    pub groups: Address,
    pub rows: Address,
    pub residual: Address,
    pub squares: Address,
    pub rope: Address,
    pub normed: Address,
    pub query: Address,
    pub attended: Address,
    pub activated: Address,
    pub slices: Address,
    pub partial: Address,
    pub partial_stats: Address,
    pub counters: Address,
    pub best: Address,
    pub logits: Address,
    pub layers: [PassLayer; MAX_LAYERS],
}

/// The phases of a pass through `n_layers` layers.
#[derive(Clone, Copy)]
pub struct Phases {
    pub n_layers: usize,
}

impl Phases {
    pub fn embed(self) -> Range<usize> {
        0..1
    }

    pub fn layer(self, layer: usize) -> Range<usize> {
        let first = 1 + LAYER_PHASES * layer;
        first..first + LAYER_PHASES
    }

    pub fn attention(self, layer: usize) -> Range<usize> {
        let first = 2 + LAYER_PHASES * layer;
        first..first + 1
    }

    pub fn head(self) -> Range<usize> {
        let first = 1 + LAYER_PHASES * self.n_layers;
        first..first + 1
    }
}

struct PassKernel {
    kernel: Kernel,
    max_rows: usize,
    grid: u32,
    shared_bytes: u32,
    sum_bytes: u32,
    stages: u32,
}

/// One kernel for each range of row counts; results are the same in all that hold the rows.
pub struct PassKernels {
    device: Arc<Device>,
    kernels: Vec<PassKernel>,
}

/// Chunks that a group of positions may see.
pub fn max_chunks(p: &TransformerParams) -> usize {
    (p.sliding_window + MAX_ROWS).div_ceil(CHUNK) + 1
}

/// Rows of a group.
pub fn group_rows(p: &TransformerParams) -> usize {
    UNIT_ROWS / (p.n_heads / p.n_kv_heads)
}

/// Whether the kernel takes a decoder of this shape.
pub fn check(p: &TransformerParams) -> Result<()> {
    let heads = p.n_heads / p.n_kv_heads;
    if p.head_dim != HEAD_DIM {
        return unsupported(format!("head_dim is {}, supported is {HEAD_DIM}", p.head_dim));
    }
    if heads > UNIT_ROWS {
        return unsupported(format!("{heads} query heads share a key head, supported are up to {UNIT_ROWS}"));
    }
    if p.n_layers > MAX_LAYERS {
        return unsupported(format!("the decoder has {} layers, supported are up to {MAX_LAYERS}", p.n_layers));
    }
    if max_chunks(p) > MAX_CHUNKS {
        let most = (MAX_CHUNKS - 1) * CHUNK - MAX_ROWS;
        return unsupported(format!("the decoder's window is {}, supported is up to {most}", p.sliding_window));
    }
    Ok(())
}

impl PassKernels {
    /// With `int8_head` the output matrix is the one in 8 bits.
    pub fn new(device: &Arc<Device>, int8_head: bool) -> Result<Self> {
        let kernel = |&(names, max_rows, sum_bytes): &([&'static str; 2], usize, u32)| {
            let name = names[usize::from(int8_head)];
            let kernel = device.kernel(DECODER, name, 0)?;
            let clusters = kernel.cluster_width()? > 1;
            let fixed = |sum_bytes: u32| SHARED_BYTES + sum_bytes + if clusters { sum_bytes / 4 } else { 0 };
            let stages =
                |sum_bytes| (device.shared_bytes.saturating_sub(fixed(sum_bytes)) / STAGE_BYTES).min(MAX_STAGES);
            let roomy = max_rows > 16 && stages(ROOMY_SUM_BYTES) >= ROOMY_STAGES;
            let sum_bytes = if roomy { ROOMY_SUM_BYTES } else { sum_bytes };
            let (fixed, stages) = (fixed(sum_bytes), stages(sum_bytes));
            if stages < 2 {
                return unsupported(format!("{} has too little shared memory", device.name));
            }
            let shared_bytes = fixed + stages * STAGE_BYTES;
            kernel.allow_shared(shared_bytes)?;
            let grid = device.resident_blocks(&kernel, THREADS, shared_bytes)?;
            if grid < SPLITS as u32 {
                return unsupported(format!("{} has too few multiprocessors", device.name));
            }
            Ok(PassKernel { kernel, max_rows, grid, shared_bytes, sum_bytes, stages })
        };
        Ok(Self { device: device.clone(), kernels: KERNELS.iter().map(kernel).collect::<Result<_>>()? })
    }

    /// Which kernel takes so many rows.
    pub fn index(&self, n_rows: usize) -> usize {
        self.kernels.iter().position(|k| n_rows <= k.max_rows).expect("at most MAX_ROWS")
    }

    /// Runs phases of a pass with the kernel of this index.
    ///
    /// # Safety
    /// All addresses in `pass` that the phases use must be those of allocations large enough for the shapes given, and stay
    /// allocated until the kernel has run.
    pub unsafe fn launch(&self, index: usize, pass: &Pass, phases: Range<usize>) -> Result<()> {
        let PassKernel { kernel, grid, shared_bytes, sum_bytes, stages, .. } = &self.kernels[index];
        let pass = Pass {
            sum_bytes: *sum_bytes as i32,
            stages: *stages as i32,
            phase_begin: phases.start as i32,
            phase_end: phases.end as i32,
            ..*pass
        };
        // SAFETY: as promised by the caller; the structure is the kernel's parameter.
        unsafe { self.device.launch_cooperative(kernel, *grid, THREADS, *shared_bytes, &pass) }
    }
}
