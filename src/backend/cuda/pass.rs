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
pub const CHUNK: usize = 128;
/// Rows of a pass, at most.
pub const MAX_ROWS: usize = 128;
/// Slices of k in which two products are summed.
pub const SPLITS: usize = 2;
/// Phases of a layer.
const LAYER_PHASES: usize = 5;
pub const MAX_LAYERS: usize = 64;
/// (row, head) pairs of an attention unit.
const UNIT_ROWS: usize = 16;
/// Chunks of the cache that a position may see, as in `kernels/decoder.cuh`.
const MAX_CHUNKS: usize = 96;
const THREADS: u32 = 384;
/// k of a piece of weights.
const PIECE_WIDTH: usize = 64;
/// A piece of a tile of weights, and of a row.
const PIECE_BYTES: u32 = 1536;
const ROW_PIECE_BYTES: u32 = 128;
/// A piece for each warp.
const STAGE_BYTES: u32 = 8 * PIECE_BYTES;
/// A piece as the wide kernel wants it, in F16.
const WIDENED_PIECE_BYTES: u32 = 2048;
/// Bytes of the barriers of the wide kernel.
const WIDE_BARRIER_BYTES: u32 = 512;
const MAX_STAGES: u32 = 17;
/// Stages that are asked for at once, at most, the larger in `kernels/decoder_ring.cuh`; a ring has as many, or the kernel would lose count
/// of those that have landed. GPUs of compute capability 12.0 have no room for more in kernels for 17 rows and more.
const IN_FLIGHT: u32 = 4;
/// Of the sums' place, for the units of a block's two teams: four warps' probabilities of 32 positions, maxima and sums
/// (`kernels/decoder_attention.cuh`).
const UNIT_BYTES: u32 = 2 * 4 * UNIT_ROWS as u32 * (32 * 2 + 2 * 4);
const SHARED_BYTES: u32 = 5120;
/// Bytes of sums that wait to be added with many rows, where that leaves room for [`ROOMY_STAGES`]: fewer rounds.
const ROOMY_SUM_BYTES: u32 = 48 << 10;
const ROOMY_STAGES: u32 = 8;
/// Tiles of a stage of weights in the wide kernel, at most.
const WIDE_TILES: u32 = 10;

/// A pass's kernel in `kernels/decoder.cu`.
struct Variant {
    /// With an output matrix of 16 bits and of 8.
    names: [&'static str; 2],
    max_rows: usize,
    /// For sums that wait to be added, at least.
    sum_bytes: u32,
    /// Pieces of x under way in the wide kernel (`kernels/decoder_wide.cuh`); 0 in the others.
    x_stages: u32,
    /// Whether only Hopper has it.
    hopper: bool,
}

const VARIANTS: [Variant; 6] = [
    Variant { hopper: true, ..Variant::narrow(["decoder_pass_1", "decoder_pass_int8_1"], 8, 12 << 10) },
    Variant::narrow(["decoder_pass_2", "decoder_pass_int8_2"], 16, 24 << 10),
    Variant::narrow(["decoder_pass_4", "decoder_pass_int8_4"], 32, 32 << 10),
    Variant::narrow(["decoder_pass_6", "decoder_pass_int8_6"], 48, 32 << 10),
    Variant::narrow(["decoder_pass_8", "decoder_pass_int8_8"], 64, 32 << 10),
    Variant {
        names: ["decoder_pass_wide", "decoder_pass_int8_wide"],
        max_rows: 128,
        sum_bytes: 16 << 10,
        x_stages: 7,
        hopper: true,
    },
];

const _: () = {
    let mut i = 0;
    while i < VARIANTS.len() {
        assert!(VARIANTS[i].sum_bytes >= UNIT_BYTES);
        i += 1;
    }
};

impl Variant {
    const fn narrow(names: [&'static str; 2], max_rows: usize, sum_bytes: u32) -> Self {
        Self { names, max_rows, sum_bytes, x_stages: 0, hopper: false }
    }

    fn is_wide(&self) -> bool {
        self.x_stages > 0
    }
}

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
    pub exchange_bytes: i32,
    pub stages: i32,
    pub x_stages: i32,
    pub phase_begin: i32,
    pub phase_end: i32,
    pub final_norm: Address,
    pub tokens: Address,
    pub head: Address,
    pub head_int8: Address,
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
    wide: bool,
    max_rows: usize,
    grid: u32,
    shared_bytes: u32,
    sum_bytes: u32,
    exchange_bytes: u32,
    stages: u32,
    x_stages: u32,
}

impl PassKernel {
    fn new(device: &Arc<Device>, variant: &Variant, int8_head: bool) -> Result<Self> {
        let kernel = device.kernel(DECODER, variant.names[usize::from(int8_head)], 0)?;
        let clusters = kernel.cluster_width()? > 1;
        let x_stages = variant.x_stages;
        // the wide kernel counts places for single tiles
        let (stage_bytes, least, most) = match variant.is_wide() {
            true => (WIDENED_PIECE_BYTES, 2 * WIDE_TILES, u32::MAX),
            false => (STAGE_BYTES, IN_FLIGHT, MAX_STAGES),
        };
        let x_bytes = match variant.is_wide() {
            true => WIDE_BARRIER_BYTES + x_stages * variant.max_rows as u32 * ROW_PIECE_BYTES,
            false => 0,
        };
        // two exchanges of every other tile's sums, of which narrow kernels have eight parts
        let tile_bytes = variant.max_rows as u32 * 64;
        let exchange_bytes = |sum_bytes: u32| match (clusters, variant.is_wide()) {
            (false, _) => 0,
            (true, false) => sum_bytes / 4,
            (true, true) => (sum_bytes / tile_bytes).div_ceil(2) * 2 * tile_bytes,
        };
        let fixed = |sum_bytes: u32| SHARED_BYTES + sum_bytes + exchange_bytes(sum_bytes) + x_bytes;
        let stages = |sum_bytes| (device.shared_bytes.saturating_sub(fixed(sum_bytes)) / stage_bytes).min(most);
        let roomy = !variant.is_wide() && variant.max_rows > 16 && stages(ROOMY_SUM_BYTES) >= ROOMY_STAGES;
        let sum_bytes = if roomy { ROOMY_SUM_BYTES } else { variant.sum_bytes };
        let stages = stages(sum_bytes);
        if stages < least {
            return unsupported(format!("{} has too little shared memory", device.name));
        }
        let shared_bytes = fixed(sum_bytes) + stages * stage_bytes;
        kernel.allow_shared(shared_bytes)?;
        let grid = device.resident_blocks(&kernel, THREADS, shared_bytes)?;
        if grid < SPLITS as u32 {
            return unsupported(format!("{} has too few multiprocessors", device.name));
        }
        let exchange_bytes = exchange_bytes(sum_bytes);
        Ok(Self {
            kernel,
            wide: variant.is_wide(),
            max_rows: variant.max_rows,
            grid,
            shared_bytes,
            sum_bytes,
            exchange_bytes,
            stages,
            x_stages,
        })
    }
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
    // each slice of w2 has a piece, or a warp would wait for what never comes
    let least = (SPLITS - 1) * PIECE_WIDTH + 1;
    if p.hidden_dim < least {
        return unsupported(format!("hidden_dim is {}, supported is {least} or more", p.hidden_dim));
    }
    if max_chunks(p) > MAX_CHUNKS {
        let most = (MAX_CHUNKS - 1) * CHUNK - MAX_ROWS;
        return unsupported(format!("the decoder's window is {}, supported is up to {most}", p.sliding_window));
    }
    Ok(())
}

impl PassKernels {
    /// With `int8_head` the output matrix is the one in 8 bits. Wide kernels need widened weights.
    pub fn new(device: &Arc<Device>, int8_head: bool, widened: bool) -> Result<Self> {
        let has =
            |variant: &&Variant| (!variant.hopper || device.has_hopper_kernels()) && (!variant.is_wide() || widened);
        let kernels = VARIANTS.iter().filter(has).map(|variant| PassKernel::new(device, variant, int8_head));
        Ok(Self { device: device.clone(), kernels: kernels.collect::<Result<_>>()? })
    }

    /// Rows of a pass, at most.
    pub fn max_rows(&self) -> usize {
        self.kernels.iter().map(|k| k.max_rows).max().unwrap_or(0)
    }

    /// Which kernel takes so many rows.
    pub fn index(&self, n_rows: usize) -> usize {
        self.kernels.iter().position(|k| n_rows <= k.max_rows).expect("at most MAX_ROWS")
    }

    /// Whether the kernel of this index reads widened weights.
    pub fn is_wide(&self, index: usize) -> bool {
        self.kernels[index].wide
    }

    /// Runs phases of a pass with the kernel of this index.
    ///
    /// # Safety
    /// All addresses in `pass` that the phases use must be those of allocations large enough for the shapes given, and stay
    /// allocated until the kernel has run.
    pub unsafe fn launch(&self, index: usize, pass: &Pass, phases: Range<usize>) -> Result<()> {
        let PassKernel { kernel, grid, shared_bytes, sum_bytes, exchange_bytes, stages, x_stages, .. } =
            &self.kernels[index];
        let pass = Pass {
            sum_bytes: *sum_bytes as i32,
            exchange_bytes: *exchange_bytes as i32,
            stages: *stages as i32,
            x_stages: *x_stages as i32,
            phase_begin: phases.start as i32,
            phase_end: phases.end as i32,
            ..*pass
        };
        // SAFETY: as promised by the caller; the structure is the kernel's parameter.
        unsafe { self.device.launch_cooperative(kernel, *grid, THREADS, *shared_bytes, &pass) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_that_the_kernel_would_hang_or_overflow_on_are_refused() {
        let good = TransformerParams {
            dim: 64,
            n_layers: 1,
            head_dim: HEAD_DIM,
            hidden_dim: 65,
            n_heads: 2,
            n_kv_heads: 1,
            rope_theta: 1e6,
            norm_eps: 1e-5,
            sliding_window: 8192,
        };
        check(&good).unwrap();
        check(&TransformerParams { sliding_window: 12_032, ..good }).unwrap();
        for bad in [
            TransformerParams { hidden_dim: 64, ..good },
            TransformerParams { sliding_window: 12_033, ..good },
            TransformerParams { n_heads: 17, ..good },
            TransformerParams { n_layers: MAX_LAYERS + 1, ..good },
            TransformerParams { head_dim: 64, ..good },
        ] {
            assert!(check(&bad).is_err(), "{bad:?}");
        }
    }
}
