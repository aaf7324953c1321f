//! The boundary between engine and devices: stages of the network over spans of positions, for any number of streams.
//!
//! [`cpu`] is the readable specification of the layer mathematics. A backend knows no text, no audio container and no
//! policy. What it promises: the numbers of a position depend on the stream's inputs up to that position alone, bit for
//! bit. Not on how frames were split over calls, on how many positions or streams share a call, nor on threads.

pub mod cpu;
#[cfg(cuda_kernels)]
pub mod cuda;
#[cfg(test)]
pub(crate) mod fake;
pub mod handover;
mod state;

pub use state::{Export, Import, KvState, StreamState};

use std::ops::Range;
use std::time::Duration;

use crate::model::{Delay, Weights};
use crate::{Error, Result};

/// How a backend is to be set up.
#[derive(Debug, Clone, Default)]
pub struct BackendOptions {
    /// CPU threads; all cores when absent.
    pub threads: Option<usize>,
    pub cuda: CudaOptions,
}

/// How the CUDA backend is to be set up.
#[derive(Debug, Clone, PartialEq)]
pub struct CudaOptions {
    /// Which GPU.
    pub ordinal: usize,
    /// Record the launches of an encoder pass as a graph, and make one launch of a decoder pass; never changes a result.
    pub graphs: bool,
    /// What multiplies in the decoder.
    pub products: Products,
    /// Find the likeliest token where the logits are made, instead of writing them all and looking for it; never changes
    /// a result.
    pub logits_fused: bool,
    /// Multiply with the output matrix in 8 bits, a scale for each row; embeddings keep their 16.
    pub logits_int8: bool,
    /// Several positions of a stream in one pass; never changes a result.
    pub prefill: bool,
    /// Most bytes of decoder weights to keep on the GPU, the others staying on the host; as many as fit when absent.
    pub weight_cache_bytes: Option<u64>,
    /// Bytes of the mapped weights to page-lock, so that copies need no detour.
    pub host_register_bytes: u64,
    /// Take memory from the driver's pool, in the order of the work.
    pub mempool: bool,
}

impl Default for CudaOptions {
    fn default() -> Self {
        Self {
            ordinal: 0,
            graphs: true,
            products: Products::Own,
            logits_fused: true,
            logits_int8: false,
            prefill: true,
            weight_cache_bytes: None,
            host_register_bytes: 0,
            mempool: true,
        }
    }
}

/// What multiplies matrices.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Products {
    /// This project's kernels.
    Own,
    CublasLt(CublasLt),
}

/// How cuBLASLt is used.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CublasLt {
    /// Time the algorithms that it offers, instead of taking its first.
    pub autotune: bool,
    /// Most memory that an algorithm may ask for.
    pub max_workspace_bytes: usize,
    pub compute: LtCompute,
}

impl Default for CublasLt {
    fn default() -> Self {
        Self { autotune: true, max_workspace_bytes: 32 << 20, compute: LtCompute::default() }
    }
}

/// How cuBLASLt computes, with sums in F32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LtCompute {
    #[default]
    F32,
    FastBf16,
    FastTf32,
    FastF16,
}

impl LtCompute {
    pub const ALL: [Self; 4] = [Self::F32, Self::FastBf16, Self::FastTf32, Self::FastF16];

    /// As cuBLAS calls it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "32F",
            Self::FastBf16 => "32F_FAST_16BF",
            Self::FastTf32 => "32F_FAST_TF32",
            Self::FastF16 => "32F_FAST_16F",
        }
    }
}

/// New log-mel frames of one stream.
pub struct EncodeChunk<'a, S> {
    pub stream: &'a mut S,
    /// `[n_frames, n_mels]`, whole tokens: `n_frames` is a multiple of 8.
    pub log_mel: &'a [f32],
}

/// Consecutive decoder positions of one stream.
pub struct Span<'a, S> {
    pub stream: &'a mut S,
    /// Token ids fed, one a position; their audio embeddings are taken from the stream.
    pub inputs: &'a [u32],
    /// Predictions are made after the inputs from this index on (a prompt needs only the last).
    pub predict_from: usize,
    /// Inputs from this index on are guesses: predictions after the first one that is not what was predicted before it need no
    /// lists.
    pub drafts_from: usize,
    /// How many of the likeliest tokens each prediction lists; 1 is the fast path.
    pub n_top: usize,
    /// Out: one prediction for each of `inputs[predict_from..]`.
    pub predictions: Vec<Prediction>,
}

/// What the model says after a position.
#[derive(Debug, Clone, PartialEq)]
pub struct Prediction {
    /// The likeliest token; of equal ones the lowest.
    pub id: u32,
    /// The likeliest tokens with their probabilities, best first; empty where only one was asked for.
    pub top: Vec<(u32, f32)>,
}

/// Positions that a stream can be rewound by.
pub const MAX_REWIND: usize = 128;

/// Receives named activations: stage, layer, rows `[n, width]`, width. For comparing backends and references.
pub type TraceSink = Box<dyn FnMut(&'static str, usize, &[f32], usize) + Send>;

/// A device that runs the network.
///
/// A call that fails before the device has begun with it (no memory, a refused launch) leaves the streams as they were, so
/// that they can go on elsewhere: see [`handover`].
pub trait Backend: Sized + Send {
    /// All device state of one stream: convolution tails, encoder and decoder KV rings, embeddings not yet decoded.
    type Stream: Send;

    /// Prepares the weights. The backend keeps what it needs of them.
    fn load(weights: &Weights, options: &BackendOptions) -> Result<Self>;

    /// A stream at position 0.
    fn open(&mut self, delay: Delay) -> Result<Self::Stream>;

    /// A stream in the same state, which goes its own way from there.
    ///
    /// # Errors
    /// When there is no memory for it, or the stream went with its device.
    fn fork(&mut self, stream: &Self::Stream) -> Result<Self::Stream>;

    /// Whether that could be, where there is memory: a stream on a device that failed is left behind.
    fn can_fork(&self, stream: &Self::Stream) -> bool {
        !self.is_lost(stream)
    }

    /// New mel frames of any number of streams → adapter embeddings, kept on the device.
    fn encode(&mut self, batch: &mut [EncodeChunk<'_, Self::Stream>]) -> Result<()>;

    /// One decoder pass over any number of streams. Each span feeds its inputs at the stream's next positions and gets
    /// the model's predictions after them. A prompt is a long span, a step a span of one, a speculative check a span of
    /// `1 + drafts`.
    fn decode(&mut self, batch: &mut [Span<'_, Self::Stream>]) -> Result<()>;

    /// Forgets the positions from `position` on: at most [`MAX_REWIND`], all of the stream's last span.
    fn rewind(&mut self, stream: &mut Self::Stream, position: u64);

    /// Whether the stream's state went with a device that failed. Calls succeed for such a stream without doing anything;
    /// its audio has to be fed to a new one.
    fn is_lost(&self, _: &Self::Stream) -> bool {
        false
    }

    /// Positions for which a decoder pass reads the weights once, at most.
    fn max_rows(&self) -> usize;

    /// Bytes of weights that one decoder pass reads.
    fn decoder_bytes(&self) -> u64;

    /// Bytes of the device's own memory that are in use, by whatever program; none where it has none of its own.
    fn memory_in_use(&self) -> Option<u64> {
        None
    }

    /// Streams of so many decoder positions that fit in the device's free memory; none where it has none of its own.
    fn room_for_streams(&self, _n_positions: usize) -> Option<usize> {
        None
    }

    /// Moves as many bytes as a decoder pass reads, in the plainest way, and takes the time: what a pass is to be held
    /// against. The CPU reads its weights; a GPU copies memory, half of which is reading. None where there is no such thing.
    ///
    /// # Errors
    /// When there is no memory to copy to.
    fn plain_pass(&mut self) -> Result<Option<Duration>> {
        Ok(None)
    }

    /// Sends named activations of all further calls to `sink`.
    fn trace(&mut self, sink: Option<TraceSink>);
}

/// Cuts items of these lengths into passes of at most `room` elements over all items: for each pass, every item's range,
/// which may be empty.
fn passes(lengths: impl Iterator<Item = usize>, room: usize) -> Vec<Vec<Range<usize>>> {
    let mut rest: Vec<_> = lengths.map(|length| 0..length).collect();
    let mut passes = Vec::new();
    while rest.iter().any(|range| !range.is_empty()) {
        let mut room = room;
        let take = |range: &mut Range<usize>| {
            let end = range.start + room.min(range.len());
            room -= end - range.start;
            std::mem::replace(&mut range.start, end)..end
        };
        passes.push(rest.iter_mut().map(take).collect());
    }
    passes
}

/// The likeliest tokens of one row of logits.
fn predict(logits: &[f32], n_top: usize) -> Result<Prediction> {
    let best = |best: usize, i: usize| if logits[i] > logits[best] { i } else { best };
    let id = (1..logits.len()).fold(0, best);
    if !logits[id].is_finite() {
        return Err(Error::Backend("the model's output is not finite: its weights are damaged".into()));
    }
    let mut top = Vec::new();
    if n_top > 1 {
        let max = logits[id];
        let sum: f64 = logits.iter().map(|&l| f64::from(l - max).exp()).sum();
        let order = |&a: &u32, &b: &u32| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b));
        let mut ids: Vec<u32> = Vec::with_capacity(n_top.min(logits.len()) + 1);
        for i in 0..logits.len() as u32 {
            if ids.len() < n_top || ids.last().is_some_and(|last| order(&i, last).is_lt()) {
                ids.insert(ids.partition_point(|other| order(other, &i).is_lt()), i);
                ids.truncate(n_top);
            }
        }
        top = ids.into_iter().map(|i| (i, (f64::from(logits[i as usize] - max).exp() / sum) as f32)).collect();
    }
    Ok(Prediction { id: id as u32, top })
}

#[cfg(test)]
mod tests {
    use super::{passes, predict};

    #[test]
    fn passes_take_everything_once_and_in_order() {
        assert_eq!(passes([3, 0, 4].into_iter(), 5), [[0..3, 0..0, 0..2], [3..3, 0..0, 2..4]]);
        assert_eq!(passes([0, 130].into_iter(), 64), [[0..0, 0..64], [0..0, 64..128], [0..0, 128..130]]);
        assert!(passes([0, 0].into_iter(), 64).is_empty());
    }

    #[test]
    fn the_likeliest_come_in_order_and_equals_by_id() {
        let top = |logits: &[f32], n_top: usize| -> Vec<u32> {
            let prediction = predict(logits, n_top).unwrap();
            assert!(prediction.top.first().is_none_or(|&(id, _)| id == prediction.id));
            prediction.top.into_iter().map(|(id, _)| id).collect()
        };
        let logits = [0.5, 2.0, -1.0, 2.0, 0.5, 3.0];
        assert!(top(&logits, 1).is_empty());
        assert_eq!(top(&logits, 2), [5, 1]);
        assert_eq!(top(&logits, 4), [5, 1, 3, 0]);
        assert_eq!(top(&logits, 100), [5, 1, 3, 0, 4, 2]);
        let sum: f32 = predict(&logits, 6).unwrap().top.iter().map(|&(_, p)| p).sum();
        assert!((sum - 1.0).abs() < 1e-6);
        assert!(predict(&[0.0, f32::INFINITY], 1).is_err());
    }
}
