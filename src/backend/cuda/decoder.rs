//! The decoder: spans of positions of any number of streams, in passes of up to [`MAX_ROWS`] rows, each of them one launch of
//! a kernel that goes through all layers (`kernels/decoder.cu`). Tokens, positions and addresses are read from a table on
//! the device.

#[cfg(all(test, feature = "gpu-tests"))]
mod tests;
pub(super) mod weights;

use std::ops::Range;
use std::sync::Arc;

use half::f16;
use rayon::prelude::*;
use weights::{DecoderWeights, Layer, Place};

use super::Tracer;
use super::cublaslt::Library;
use super::device::{Buffer, Device, Pinned, bytes_of, bytes_of_mut};
use super::launch::{Kernels, NO_ROW, Row};
use super::library_pass::{self, LibraryPasses, Widths};
use super::pass::{self, Group, HEAD_DIM, MAX_LAYERS, MAX_ROWS, Pass, PassKernels, PassLayer, Phases, SPLITS};
use super::stream::CudaStream;
use super::weights::{Loader, columns, padded};
use crate::backend::{CudaOptions, Prediction, Products, Span, passes, predict};
use crate::model::Weights;
use crate::model::params::TransformerParams;
use crate::{Error, Result};

pub struct Decoder {
    weights: DecoderWeights,
    options: CudaOptions,
    kernels: PassKernels,
    scratch: Scratch,
    /// Layers sent to the GPU in passes so far.
    n_sent: u64,
    /// What runs passes if their products are a library's; matrices are in its order then.
    library: Option<LibraryPasses>,
    /// `[MAX_ROWS, vocab]`, allocated when alternatives are asked for.
    logits: Option<Buffer>,
}

/// Memory for one pass.
struct Scratch {
    /// What changes from pass to pass: shape, groups, rows.
    host: Pinned<u8>,
    input: Buffer,
    best_host: Pinned<u64>,
    best: Buffer,
    residual: Buffer,
    squares: Buffer,
    rope: Buffer,
    normed: Buffer,
    query: Buffer,
    attended: Buffer,
    activated: Buffer,
    slices: Buffer,
    partial: Buffer,
    partial_stats: Buffer,
    counters: Buffer,
}

const GROUPS_AT: usize = 16;
const ROWS_AT: usize = GROUPS_AT + MAX_ROWS * size_of::<Group>();
const INPUT_BYTES: usize = ROWS_AT + MAX_ROWS * size_of::<Row>();

impl Scratch {
    /// `n_rows` are those of the largest kernel. Only sums of attention take so much memory that it matters; the rest has room
    /// for [`MAX_ROWS`], by which the kernels' layouts go.
    fn new(device: &Arc<Device>, d: &TransformerParams, n_rows: usize) -> Result<Self> {
        let f16 = |width: usize| device.alloc_zeros(MAX_ROWS * columns(width) * 2);
        let tiles = d.dim.div_ceil(16);
        let n_partials = n_rows * d.n_heads * pass::max_chunks(d);
        Ok(Self {
            host: Pinned::new(device, INPUT_BYTES)?,
            input: device.alloc_zeros(INPUT_BYTES)?,
            best_host: Pinned::new(device, MAX_ROWS)?,
            best: device.alloc_zeros(MAX_ROWS * 8)?,
            residual: device.alloc_zeros(MAX_ROWS * padded(d.dim) * 4)?,
            squares: device.alloc_zeros(2 * MAX_ROWS * tiles * 4)?,
            rope: device.alloc_zeros(MAX_ROWS * HEAD_DIM * 4)?,
            normed: f16(d.dim)?,
            query: f16(d.q_dim())?,
            attended: f16(d.q_dim())?,
            activated: f16(d.hidden_dim)?,
            slices: device.alloc_zeros(SPLITS * tiles * MAX_ROWS * 16 * 4)?,
            partial: device.alloc_zeros(n_partials * HEAD_DIM * 4)?,
            partial_stats: device.alloc_zeros(n_partials * 8)?,
            counters: device.alloc_zeros((4 + tiles) * 4)?,
        })
    }
}

impl Decoder {
    pub fn load<'a>(
        loader: &mut Loader<'a>,
        device: &Arc<Device>,
        weights: &'a Weights,
        options: &CudaOptions,
    ) -> Result<Self> {
        let p = weights.params;
        let d = p.decoder;
        pass::check(&d)?;
        let library = match options.products {
            Products::Own => None,
            Products::CublasLt(options) => Library::open(device, options)
                .map_err(|error| tracing::warn!("{error}; products are this program's own"))
                .ok(),
        };
        let widths = library.as_ref().map(|_| Widths::new(&p));
        let weights = DecoderWeights::load(loader, device, weights, options, widths.as_ref())?;
        let mut decoder = Self::new(device, weights, options)?;
        if let (Some(library), Some(widths)) = (library, widths) {
            let weights = &decoder.weights;
            let addresses: Vec<_> = weights.layers.iter().map(|layer| weights.address(layer)).collect();
            let (head, residual) = (weights.head.address(), decoder.scratch.residual.address());
            let passes = LibraryPasses::new(device, library, widths, &addresses, head, residual, options.graphs)?;
            decoder.library = Some(passes);
        }
        Ok(decoder)
    }

    /// With this program's products.
    fn new(device: &Arc<Device>, weights: DecoderWeights, options: &CudaOptions) -> Result<Self> {
        let kernels = PassKernels::new(device, options.logits_int8, weights.widened.is_some())?;
        Ok(Self {
            options: options.clone(),
            scratch: Scratch::new(device, &weights.params.decoder, kernels.max_rows())?,
            kernels,
            n_sent: 0,
            library: None,
            logits: None,
            weights,
        })
    }

    /// Whether products are cuBLASLt's.
    pub fn uses_cublaslt(&self) -> bool {
        self.library.is_some()
    }

    /// Positions of one pass, at most.
    pub fn max_rows(&self) -> usize {
        if self.library.is_some() { library_pass::ROWS } else { self.kernels.max_rows() }
    }

    /// Bytes of weights that one pass reads.
    pub fn n_bytes(&self) -> usize {
        self.weights.n_bytes()
    }

    /// Layers sent to the GPU in passes so far.
    pub fn n_sent(&self) -> u64 {
        self.n_sent
    }

    /// Streams move on only when all is done: whatever fails before leaves them as they were.
    pub fn decode(&mut self, kernels: &Kernels, batch: &mut [Span<'_, CudaStream>], trace: &mut Tracer) -> Result<()> {
        for span in batch.iter_mut() {
            assert!(span.inputs.len() <= span.stream.n_waiting(), "inputs without audio embeddings");
            assert!(
                span.inputs.iter().all(|&id| (id as usize) < self.weights.params.vocab_size),
                "token id outside the vocabulary"
            );
            span.predictions.clear();
            let end = span.stream.position + span.inputs.len() as u64;
            span.stream.reserve(kernels.device(), &self.weights.params.decoder, end, MAX_ROWS)?;
        }
        if batch.iter().any(|span| span.n_top > 1) || trace.is_on() || !self.options.logits_fused {
            self.reserve_logits(kernels.device())?;
        }
        let max_rows = if self.options.prefill { self.max_rows() } else { 1 };
        for ranges in passes(batch.iter().map(|span| span.inputs.len()), max_rows) {
            let due = batch.iter_mut().zip(ranges).filter(|(_, range)| !range.is_empty());
            self.pass(kernels.device(), &mut due.collect::<Vec<_>>(), trace)?;
        }
        for span in batch {
            // what a rewind within the span needs stays
            span.stream.forget();
            span.stream.position += span.inputs.len() as u64;
        }
        Ok(())
    }

    fn reserve_logits(&mut self, device: &Arc<Device>) -> Result<()> {
        if self.logits.is_none() && (self.library.is_none() || self.weights.int8_head.is_some()) {
            self.logits = Some(device.alloc(MAX_ROWS * self.weights.params.vocab_size * 4)?);
        }
        Ok(())
    }

    fn pass(
        &mut self,
        device: &Arc<Device>,
        pass: &mut [(&mut Span<'_, CudaStream>, Range<usize>)],
        trace: &mut Tracer,
    ) -> Result<()> {
        let vocab = self.weights.params.vocab_size;
        let (n_rows, n_wanted) = self.fill(pass);
        let all_logits = pass.iter().any(|(span, _)| span.n_top > 1) || trace.is_on() || !self.options.logits_fused;
        // SAFETY: both blocks have that size, and the host's is not written to before the pass is over.
        unsafe { device.upload(self.scratch.input.address(), self.scratch.host.as_slice())? };
        self.launch(device, n_rows, n_wanted, all_logits, trace)?;
        let is_sent = |layer: &&Layer| matches!(layer.matrices, Place::Host(_));
        self.n_sent += self.weights.layers.iter().filter(is_sent).count() as u64;

        let best = &mut self.scratch.best_host.as_mut_slice()[..n_wanted];
        // SAFETY: the device's block is as large. This also waits for the pass.
        unsafe { device.download(bytes_of_mut(best), self.scratch.best.address())? };
        let best = &*best;

        let logits_fused = self.options.logits_fused;
        let n_tops = listed(pass, best);
        let read = |&n_top: &usize| n_top > 1 || !logits_fused || trace.is_on();
        let wanted: Vec<bool> = n_tops.iter().map(read).collect();
        let (from, width) = match (&self.library, &self.weights.int8_head) {
            (Some(library), None) => (library.logits.address(), library.widths.n_vocab()),
            _ => (self.logits.as_ref().map_or(0, Buffer::address), vocab),
        };
        let mut logits = vec![0f32; wanted.iter().filter(|&&wanted| wanted).count() * width];
        let (mut row, mut rest) = (0, logits.as_mut_slice());
        for run in wanted.chunk_by(|a, b| a == b) {
            if run[0] {
                let to = rest.split_off_mut(..run.len() * width).expect("counted");
                // SAFETY: the buffer holds MAX_ROWS rows of that width.
                unsafe { device.download(bytes_of_mut(to), from + (row * width * 4) as u64)? };
            }
            row += run.len();
        }
        if trace.is_on() && n_wanted > 0 {
            let rows: Vec<f32> = logits.chunks_exact(width).flat_map(|row| &row[..vocab]).copied().collect();
            trace.values("logits", 0, &rows, vocab);
        }
        let mut read = logits.chunks_exact(width);
        let rows = n_tops.iter().zip(wanted).zip(best);
        let rows = rows.map(|((&n_top, wanted), &best)| (n_top, if wanted { read.next() } else { None }, best));
        let rows: Vec<_> = rows.collect();
        // lists take a core half a millisecond a row
        let predictions: Result<Vec<Prediction>> = rows
            .into_par_iter()
            .with_min_len(if all_logits { 1 } else { MAX_ROWS })
            .map(|(n_top, logits, best)| match logits {
                Some(logits) if n_top > 1 || !logits_fused => predict(&logits[..vocab], n_top),
                _ => Ok(Prediction { id: top1(best)?, top: Vec::new() }),
            })
            .collect();
        let mut predictions = predictions?.into_iter();
        for (span, inputs) in pass {
            let from = span.predict_from.clamp(inputs.start, inputs.end);
            span.predictions.extend(predictions.by_ref().take(inputs.end - from));
        }
        Ok(())
    }

    /// Writes the pass's table into the host block; how many rows there are, and how many predictions are asked for.
    fn fill(&mut self, pass: &[(&mut Span<'_, CudaStream>, Range<usize>)]) -> (usize, usize) {
        let row_bytes = padded(self.weights.params.decoder.dim) * 4;
        let most = pass::group_rows(&self.weights.params.decoder);
        let (mut rows, mut groups) = (Vec::with_capacity(MAX_ROWS), Vec::with_capacity(MAX_ROWS));
        let mut n_wanted = 0;
        for (span, inputs) in pass {
            let stream = &*span.stream;
            for first in inputs.clone().step_by(most) {
                groups.push(Group {
                    first: (rows.len() + first - inputs.start) as i32,
                    n: most.min(inputs.end - first) as i32,
                });
            }
            for i in inputs.clone() {
                let position = stream.position + i as u64;
                let wanted = i >= span.predict_from;
                rows.push(Row {
                    audio: stream.embedding(position, row_bytes),
                    kv: stream.decoder_ring.address(),
                    ffn_scale: stream.ffn_scale.address(),
                    position: position as u32,
                    n_slots: stream.n_slots as u32,
                    token: span.inputs[i],
                    head_row: if wanted { n_wanted } else { NO_ROW },
                });
                n_wanted += u32::from(wanted);
            }
        }
        let host = self.scratch.host.as_mut_slice();
        let mut put = |at: usize, bytes: &[u8]| host[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, bytes_of(&[rows.len() as u32, groups.len() as u32, n_wanted]));
        put(GROUPS_AT, bytes_of(&groups));
        put(ROWS_AT, bytes_of(&rows));
        (rows.len(), n_wanted as usize)
    }

    fn parameters(&self, all_logits: bool) -> Pass {
        let (d, s) = (&self.weights.params.decoder, &self.scratch);
        let layout = &self.weights.layout;
        let input = s.input.address();
        let mut layers = [PassLayer::default(); MAX_LAYERS];
        for (to, layer) in layers.iter_mut().zip(&self.weights.layers) {
            let at = |offset: usize| self.weights.address(layer) + offset as u64;
            *to = PassLayer {
                wqkv: at(0),
                wo: at(layout.wo),
                w13: at(layout.w13),
                w2: at(layout.w2),
                attention_norm: layer.attention_norm.address(),
                ffn_norm: layer.ffn_norm.address(),
            };
        }
        Pass {
            dim: d.dim as i32,
            width: padded(d.dim) as i32,
            n_heads: d.n_heads as i32,
            n_kv_heads: d.n_kv_heads as i32,
            hidden: d.hidden_dim as i32,
            vocab: self.weights.params.vocab_size as i32,
            n_layers: d.n_layers as i32,
            window: d.sliding_window as i32,
            eps: d.norm_eps,
            scale: super::softmax_scale(d),
            max_chunks: pass::max_chunks(d) as i32,
            sum_bytes: 0,
            exchange_bytes: 0,
            stages: 0,
            x_stages: 0,
            phase_begin: 0,
            phase_end: 0,
            final_norm: self.weights.norm.address(),
            tokens: self.weights.head.address(),
            head: self.weights.head.address(),
            head_int8: self.weights.int8_head.as_ref().map_or(0, Buffer::address),
            frequencies: self.weights.frequencies.address(),
            shape: input,
            groups: input + GROUPS_AT as u64,
            rows: input + ROWS_AT as u64,
            residual: s.residual.address(),
            squares: s.squares.address(),
            rope: s.rope.address(),
            normed: s.normed.address(),
            query: s.query.address(),
            attended: s.attended.address(),
            activated: s.activated.address(),
            slices: s.slices.address(),
            partial: s.partial.address(),
            partial_stats: s.partial_stats.address(),
            counters: s.counters.address(),
            best: s.best.address(),
            logits: self.logits.as_ref().filter(|_| all_logits).map_or(0, Buffer::address),
            layers,
        }
    }

    /// The parameters with weights for the kernel of this index.
    fn with_weights(&self, pass: &Pass, index: usize) -> Pass {
        match &self.weights.widened {
            Some(widened) if self.kernels.is_wide(index) => widened.replace(pass),
            _ => *pass,
        }
    }

    fn launch(
        &mut self,
        device: &Device,
        n_rows: usize,
        n_wanted: usize,
        all_logits: bool,
        trace: &mut Tracer,
    ) -> Result<()> {
        let d = &self.weights.params.decoder;
        let pass = self.parameters(all_logits);
        let phases = Phases { n_layers: d.n_layers };
        let index = self.kernels.index(n_rows);
        let head_index = self.kernels.index(n_wanted);
        if let Some(library) = &mut self.library {
            // SAFETY: as below.
            return unsafe { library.launch(&self.kernels, &pass, [n_rows, n_wanted], &self.scratch.residual, trace) };
        }
        let run = |index: usize, phases: Range<usize>| {
            let n_each = if self.options.graphs { phases.len().max(1) } else { 1 };
            let pass = self.with_weights(&pass, index);
            phases.step_by(n_each).try_for_each(|first| {
                // SAFETY: the scratch memory holds as many rows as the largest kernel takes, the rows' addresses are those of
                // open streams whose rings hold their positions, and matrices have the sizes that the parameters say.
                unsafe { self.kernels.launch(index, &pass, first..first + n_each) }
            })
        };
        if self.weights.staging.is_none() && !trace.is_on() {
            // few rows of the head, after many of the layers, are for the smaller kernel
            let last = if n_wanted > 0 { phases.head().end } else { phases.head().start };
            let first = if head_index == index { last } else { phases.head().start };
            run(index, 0..first)?;
            return run(head_index, first..last);
        }
        run(index, phases.embed())?;
        for (i, layer) in self.weights.layers.iter().enumerate() {
            if let (Place::Host(matrices), Some(staging)) = (&layer.matrices, &self.weights.staging) {
                // SAFETY: both have a layer's size. The host's is never written to again, and the copy waits for the layer
                // before, as all work on the GPU's stream does.
                unsafe { device.upload(staging.address(), matrices.as_slice())? };
            }
            run(index, phases.layer(i))?;
            trace.f32("decoder_layer", i, &self.scratch.residual, n_rows, padded(d.dim), d.dim)?;
        }
        if n_wanted > 0 {
            if trace.is_on() {
                self.trace_norm(n_wanted, trace)?;
            }
            run(head_index, phases.head())?;
        }
        Ok(())
    }

    /// Traces the head's input. What the kernel keeps of it lacks a factor of each row.
    fn trace_norm(&self, n: usize, trace: &mut Tracer) -> Result<()> {
        let (d, device) = (&self.weights.params.decoder, trace.device.clone());
        let mut rows = vec![0u16; MAX_ROWS * columns(d.dim)];
        // SAFETY: that is the buffer's size.
        unsafe { device.download(bytes_of_mut(&mut rows), self.scratch.normed.address())? };
        let tiles = d.dim.div_ceil(16);
        let mut squares = vec![0f32; 2 * MAX_ROWS * tiles];
        // SAFETY: as above.
        unsafe { device.download(bytes_of_mut(&mut squares), self.scratch.squares.address())? };
        let (input, mut values) = (self.scratch.host.as_slice(), Vec::new());
        let inverse = |norm: usize, row: usize| {
            let sum: f32 = squares[(norm % 2 * MAX_ROWS + row) * tiles..][..tiles].iter().sum();
            1.0 / (sum / d.dim as f32 + d.norm_eps).sqrt()
        };
        let last = 2 * d.n_layers;
        let head_row = |row: usize| {
            let at = ROWS_AT + row * size_of::<Row>() + std::mem::offset_of!(Row, head_row);
            u32::from_le_bytes(input[at..at + 4].try_into().expect("four bytes"))
        };
        for i in 0..n {
            let origin = (0..MAX_ROWS).find(|&row| head_row(row) == i as u32).expect("a row of the head");
            let factor = f32::from_bits(inverse(last - 1, origin).to_bits() & 0x7F80_0000);
            let scale = inverse(last, i) / factor;
            values.extend(
                (0..d.dim).map(|k| f16::from_bits(rows[(k / 32 * MAX_ROWS + i) * 32 + k % 32]).to_f32() * scale),
            );
        }
        trace.values("decoder_norm", 0, &values, d.dim);
        Ok(())
    }
}

impl Drop for Decoder {
    fn drop(&mut self) {
        if self.n_sent > 0 {
            tracing::info!("{} decoder layers were sent to the GPU in passes", self.n_sent);
        }
    }
}

/// How many of the likeliest tokens are listed after each row of the head; `best` are the rows' largest keys.
fn listed(pass: &[(&mut Span<'_, CudaStream>, Range<usize>)], best: &[u64]) -> Vec<usize> {
    let mut n_tops = Vec::with_capacity(best.len());
    for (span, inputs) in pass {
        let mut right = true;
        for i in span.predict_from.clamp(inputs.start, inputs.end)..inputs.end {
            let (next, best) = (i + 1, best[n_tops.len()]);
            n_tops.push(if right { span.n_top } else { 1 });
            if next >= span.drafts_from && next < inputs.end {
                right &= top1(best).is_ok_and(|id| id == span.inputs[next]);
            }
        }
    }
    n_tops
}

/// The id in a row's largest key; see `ranking_key` in `kernels/decoder.cuh`.
fn top1(best: u64) -> Result<u32> {
    let bits = (best >> 32) as u32;
    let value = f32::from_bits(if bits >> 31 == 1 { bits & 0x7FFF_FFFF } else { !bits });
    if value.is_finite() {
        Ok(!(best as u32))
    } else {
        Err(Error::Backend("the model's output is not finite: its weights are damaged".into()))
    }
}
