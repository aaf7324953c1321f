//! The decoder: spans of positions of any number of streams, in passes of up to [`PASS_ROWS`] rows.
//!
//! Launches depend on how many rows there are and how far back the longest looks, both rounded up, and are recorded as one
//! graph for each such shape; tokens, positions and addresses are read from a table on the device.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use super::Tracer;
use super::device::{Buffer, Device, Graph, Pinned, bytes_of, bytes_of_mut};
use super::launch::{CHUNK, DecoderAttention, Embed, Epilogue, Gemm, Kernels, RmsNorm, RopeAngles, Row};
use super::stream::CudaStream;
use super::weights::{Layer, Loader, Matrix, padded};
use crate::backend::{MAX_REWIND, Prediction, Span, passes, predict};
use crate::model::Weights;
use crate::model::params::Params;
use crate::{Error, Result};

/// Positions of one pass.
pub const PASS_ROWS: usize = MAX_REWIND;
/// Row counts that passes are rounded up to.
const ROW_STEPS: [usize; 14] = [1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 32, 48, 64];
/// Shapes remembered.
const MAX_GRAPHS: usize = 64;

pub struct Decoder {
    params: Params,
    /// Token embeddings and output matrix.
    tok_embeddings: Matrix,
    layers: Vec<Layer>,
    norm: Buffer,
    frequencies: Buffer,
    scratch: Scratch,
    graphs: HashMap<Shape, Graph>,
    use_graphs: bool,
    /// `[PASS_ROWS, vocab]`, allocated when alternatives are asked for.
    logits: Option<Buffer>,
}

/// What launches depend on.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Shape {
    n_rows: usize,
    /// Rows whose predictions are asked for.
    n_wanted: usize,
    /// Chunks of keys that the farthest-looking row sees.
    n_chunks: usize,
}

/// Memory for one pass.
struct Scratch {
    /// Rows, then indices of those whose predictions are asked for.
    host: Pinned<u8>,
    input: Buffer,
    best_host: Pinned<u64>,
    best: Buffer,
    x: Buffer,
    h: Buffer,
    qkv: Buffer,
    attended: Buffer,
    hidden: Buffer,
    angles: Buffer,
    partials: Buffer,
}

const INDEX_AT: usize = PASS_ROWS * size_of::<Row>();
const INPUT_BYTES: usize = INDEX_AT + PASS_ROWS * 4;

impl Decoder {
    pub fn load<'a>(
        loader: &mut Loader<'a>,
        device: &Arc<Device>,
        weights: &'a Weights,
        use_graphs: bool,
    ) -> Result<Self> {
        let p = weights.params;
        let d = p.decoder;
        let f16 = |width: usize| device.alloc_zeros(PASS_ROWS * padded(width) * 2);
        let max_chunks = d.sliding_window.div_ceil(CHUNK) + 1;
        let scratch = Scratch {
            host: Pinned::new(device, INPUT_BYTES)?,
            input: device.alloc_zeros(INPUT_BYTES)?,
            best_host: Pinned::new(device, PASS_ROWS)?,
            best: device.alloc_zeros(PASS_ROWS * 8)?,
            x: device.alloc_zeros(PASS_ROWS * padded(d.dim) * 4)?,
            h: f16(d.dim)?,
            qkv: f16(d.q_dim())?,
            attended: f16(d.q_dim())?,
            hidden: f16(d.hidden_dim)?,
            angles: device.alloc_zeros(PASS_ROWS * d.head_dim * 4)?,
            partials: device.alloc_zeros(PASS_ROWS * d.n_heads * max_chunks * (d.head_dim + 2) * 4)?,
        };
        Ok(Self {
            params: p,
            layers: loader.layers(&d, &weights.decoder)?,
            tok_embeddings: loader.merged(&[&weights.tok_embeddings])?,
            norm: loader.vector(&weights.norm)?,
            frequencies: super::frequencies(device, &d)?,
            scratch,
            graphs: HashMap::new(),
            use_graphs,
            logits: None,
        })
    }

    /// Bytes of weights that one pass reads.
    pub fn n_bytes(&self) -> usize {
        self.tok_embeddings.n_bytes() + self.layers.iter().map(Layer::n_bytes).sum::<usize>()
    }

    pub fn decode(&mut self, kernels: &Kernels, batch: &mut [Span<'_, CudaStream>], trace: &mut Tracer) -> Result<()> {
        for span in batch.iter_mut() {
            span.stream.forget();
            assert!(span.inputs.len() <= span.stream.n_waiting(), "inputs without audio embeddings");
            span.predictions.clear();
        }
        for ranges in passes(batch.iter().map(|span| span.inputs.len()), PASS_ROWS) {
            let due = batch.iter_mut().zip(ranges).filter(|(_, range)| !range.is_empty());
            self.pass(kernels, &mut due.collect::<Vec<_>>(), trace)?;
        }
        Ok(())
    }

    fn pass(
        &mut self,
        kernels: &Kernels,
        pass: &mut [(&mut Span<'_, CudaStream>, Range<usize>)],
        trace: &mut Tracer,
    ) -> Result<()> {
        let device = kernels.device();
        let (rows, wanted) = self.rows(device, pass)?;
        let step = |n: usize| ROW_STEPS.into_iter().find(|&step| step >= n).unwrap_or(PASS_ROWS);
        let chunks = |row: &Row| {
            let oldest = (row.position as usize + 1).saturating_sub(self.params.decoder.sliding_window);
            row.position as usize / CHUNK - oldest / CHUNK + 1
        };
        let n_chunks = rows.iter().map(chunks).max().unwrap_or(1).next_power_of_two();
        let n_chunks = n_chunks.min(self.params.decoder.sliding_window.div_ceil(CHUNK) + 1);
        let n_wanted = if wanted.is_empty() { 0 } else { step(wanted.len()) };
        let shape = Shape { n_rows: step(rows.len()), n_wanted, n_chunks };

        let host = self.scratch.host.as_mut_slice();
        host.fill(0);
        host[..size_of_val(rows.as_slice())].copy_from_slice(bytes_of(&rows));
        host[INDEX_AT..][..wanted.len() * 4].copy_from_slice(bytes_of(&wanted));
        // SAFETY: both blocks have that size, and the host's is not written to before the pass is over.
        unsafe { device.upload(self.scratch.input.address(), self.scratch.host.as_slice())? };

        if self.use_graphs && !trace.is_on() {
            if !self.graphs.contains_key(&shape) {
                if self.graphs.len() >= MAX_GRAPHS {
                    self.graphs.clear();
                }
                let graph = device.capture(|| self.launch(kernels, shape, trace))?;
                self.graphs.insert(shape, graph);
            }
            self.graphs.get_mut(&shape).expect("just inserted").launch()?;
        } else {
            self.launch(kernels, shape, trace)?;
        }

        let n_top = pass.iter().map(|(span, _)| span.n_top).max().unwrap_or(1);
        let mut logits = Vec::new();
        if !wanted.is_empty() && (n_top > 1 || trace.is_on()) {
            logits = self.all_logits(kernels, wanted.len())?;
            trace.values("logits", 0, &logits, self.params.vocab_size);
        }
        let best = &mut self.scratch.best_host.as_mut_slice()[..wanted.len()];
        // SAFETY: the device's block is as large. This also waits for the pass.
        unsafe { device.download(bytes_of_mut(best), self.scratch.best.address())? };

        let mut best = best.iter();
        let mut logits = logits.chunks_exact(self.params.vocab_size);
        for (span, inputs) in pass {
            let from = span.predict_from.clamp(inputs.start, inputs.end);
            for &best in best.by_ref().take(inputs.end - from) {
                let logits = logits.next();
                let prediction = match logits {
                    Some(logits) if span.n_top > 1 => predict(logits, span.n_top)?,
                    _ => Prediction { id: top1(best)?, top: Vec::new() },
                };
                span.predictions.push(prediction);
            }
        }
        Ok(())
    }

    /// The pass's rows, and the indices of those whose predictions are asked for. Moves the streams on.
    fn rows(
        &self,
        device: &Arc<Device>,
        pass: &mut [(&mut Span<'_, CudaStream>, Range<usize>)],
    ) -> Result<(Vec<Row>, Vec<i32>)> {
        let p = &self.params;
        let row_bytes = padded(p.decoder.dim) * 4;
        let (mut rows, mut wanted) = (Vec::with_capacity(PASS_ROWS), Vec::with_capacity(PASS_ROWS));
        for (span, inputs) in pass.iter_mut() {
            let stream = &mut *span.stream;
            stream.reserve(device, &p.decoder, stream.position + inputs.len() as u64, PASS_ROWS)?;
            for i in inputs.clone() {
                let token = span.inputs[i];
                assert!((token as usize) < p.vocab_size, "token id outside the vocabulary");
                if i >= span.predict_from {
                    wanted.push(rows.len() as i32);
                }
                rows.push(Row {
                    audio: stream.embedding(stream.position, row_bytes),
                    kv: stream.decoder_ring.address(),
                    ffn_scale: stream.ffn_scale.address(),
                    position: stream.position as u32,
                    n_slots: stream.n_slots as u32,
                    token,
                    unused: 0,
                });
                stream.position += 1;
            }
        }
        Ok((rows, wanted))
    }

    fn product(&self, matrix: &Matrix, x: &Buffer, m: usize, out: &Buffer, epilogue: Epilogue) -> Gemm {
        let d = &self.params.decoder;
        Gemm {
            weights: matrix.address(),
            x: x.address(),
            x_rows: 0,
            bias: 0,
            out: out.address(),
            out_rows: 0,
            rope: self.scratch.angles.address(),
            rows: self.scratch.input.address(),
            best: self.scratch.best.address(),
            x_stride: matrix.k as i32,
            out_stride: matrix.n as i32,
            m: m as i32,
            n: matrix.n as i32,
            k: matrix.k as i32,
            epilogue,
            q_dim: d.q_dim() as i32,
            kv_dim: d.kv_dim() as i32,
            head_dim: d.head_dim as i32,
            layer: 0,
        }
    }

    fn launch(&self, kernels: &Kernels, shape: Shape, trace: &mut Tracer) -> Result<()> {
        let (p, d, s) = (&self.params, &self.params.decoder, &self.scratch);
        let dim = padded(d.dim);
        let m = shape.n_rows;
        let rows = s.input.address();
        let norm = |weight: &Buffer| RmsNorm {
            x: s.x.address(),
            weight: weight.address(),
            h: s.h.address(),
            rows: 0,
            index: 0,
            layer: 0,
            dim: d.dim as i32,
            stride: dim as i32,
            eps: d.norm_eps,
        };
        // SAFETY: the scratch memory holds PASS_ROWS rows of every width used here, the rows' addresses are those of
        // open streams whose rings hold their positions, and matrices have the sizes that the parameters say.
        unsafe {
            kernels.embed(
                m,
                &Embed {
                    rows,
                    tok_embeddings: self.tok_embeddings.address(),
                    x: s.x.address(),
                    best: s.best.address(),
                    dim: d.dim as i32,
                    stride: dim as i32,
                },
            )?;
            kernels.rope_angles(
                m,
                &RopeAngles {
                    positions: 0,
                    rows,
                    frequencies: self.frequencies.address(),
                    angles: s.angles.address(),
                    half: d.head_dim as i32 / 2,
                },
            )?;
            for (i, layer) in self.layers.iter().enumerate() {
                kernels.rms_norm(m, &norm(&layer.attention_norm))?;
                kernels.split_gemm(&Gemm {
                    layer: i as i32,
                    out_stride: padded(d.q_dim()) as i32,
                    ..self.product(&layer.qkv, &s.h, m, &s.qkv, Epilogue::QkvF16)
                })?;
                kernels.decoder_attention(
                    m,
                    &DecoderAttention {
                        rows,
                        q: s.qkv.address(),
                        partials: s.partials.address(),
                        out: s.attended.address(),
                        q_stride: padded(d.q_dim()) as i32,
                        n_heads: d.n_heads as i32,
                        n_kv_heads: d.n_kv_heads as i32,
                        head_dim: d.head_dim as i32,
                        layer: i as i32,
                        window: d.sliding_window as i32,
                        n_chunks: shape.n_chunks as i32,
                        scale: super::softmax_scale(d),
                    },
                )?;
                kernels.split_gemm(&self.product(&layer.wo, &s.attended, m, &s.x, Epilogue::AddF32))?;
                kernels.rms_norm(m, &RmsNorm { rows, layer: i as i32, ..norm(&layer.ffn_norm) })?;
                kernels.split_gemm(&Gemm {
                    out_stride: padded(d.hidden_dim) as i32,
                    ..self.product(&layer.w13, &s.h, m, &s.hidden, Epilogue::SwigluF16)
                })?;
                kernels.split_gemm(&self.product(&layer.w2, &s.hidden, m, &s.x, Epilogue::AddF32))?;
                trace.f32("decoder_layer", i, &s.x, m, dim, d.dim)?;
            }
            if shape.n_wanted > 0 {
                let index = rows + INDEX_AT as u64;
                kernels.rms_norm(shape.n_wanted, &RmsNorm { index, ..norm(&self.norm) })?;
                trace.f16("decoder_norm", 0, &s.h, shape.n_wanted, dim, d.dim)?;
                kernels.split_gemm(&Gemm {
                    n: p.vocab_size as i32,
                    ..self.product(&self.tok_embeddings, &s.h, shape.n_wanted, &s.x, Epilogue::Top1)
                })?;
            }
        }
        Ok(())
    }

    /// All logits of the last pass's wanted rows, `[n, vocab]`.
    fn all_logits(&mut self, kernels: &Kernels, n: usize) -> Result<Vec<f32>> {
        let device = kernels.device();
        let (vocab, width) = (self.params.vocab_size, self.tok_embeddings.n);
        if self.logits.is_none() {
            self.logits = Some(device.alloc(PASS_ROWS * width * 4)?);
        }
        let out = self.logits.as_ref().expect("just allocated");
        let mut logits = vec![0f32; n * width];
        // SAFETY: `h` holds the normed rows of the last pass, and `out` PASS_ROWS rows of logits.
        unsafe {
            kernels.split_gemm(&self.product(&self.tok_embeddings, &self.scratch.h, n, out, Epilogue::StoreF32))?;
            device.download(bytes_of_mut(&mut logits), out.address())?;
        }
        Ok(logits.chunks_exact(width).flat_map(|row| &row[..vocab]).copied().collect())
    }
}

/// The id in a row's sortable maximum; see `sortable` in `kernels/gemm.cu`.
fn top1(best: u64) -> Result<u32> {
    let bits = (best >> 32) as u32;
    let value = f32::from_bits(if bits >> 31 == 1 { bits & 0x7FFF_FFFF } else { !bits });
    if value.is_finite() {
        Ok(!(best as u32))
    } else {
        Err(Error::Backend("the model's output is not finite: its weights are damaged".into()))
    }
}
