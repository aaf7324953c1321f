//! The CPU backend, and the readable specification of the network.
//!
//! Activations are f32, weights are read in place as BF16. Per stage: [`encode`](Backend::encode) runs the convolution
//! stem, the encoder stack and the adapter; [`decode`](Backend::decode) adds token and audio embeddings, runs the
//! decoder stack and the output matrix. Calls of any size are cut into passes of bounded size.

#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod amx;
pub(super) mod attention;
mod ceiling;
pub(super) mod elementwise;
pub(super) mod matmul;
pub mod simd;
mod stack;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use half::bf16;
use rayon::ThreadPool;
use rayon::prelude::*;

use self::attention::KvRing;
use self::ceiling::read_decoder;
use self::elementwise::{gelu, gelu_all};
use self::matmul::{Product, multiply};
use self::simd::Isa;
use self::stack::{Segment, Stack};
use super::{
    Backend, BackendOptions, EncodeChunk, Export, Import, KvState, MAX_REWIND, Span, StreamState, TraceSink, passes,
    predict,
};
use crate::model::params::{DOWNSAMPLE, FRAMES_PER_TOKEN};
use crate::model::{Delay, Weights};
use crate::{Error, Result};

/// Mel frames of one encoder pass, over all streams.
const PASS_FRAMES: usize = 512;
/// Decoder positions of one pass, over all streams.
const PASS_ROWS: usize = 64;
/// Mel frames and convolution rows that the next chunk's convolutions look back on.
const MEL_TAIL: usize = 2;
const CONV_TAIL: usize = 1;

/// The network on the CPU.
pub struct Cpu {
    weights: Weights,
    conv_bias: [Vec<f32>; 2],
    encoder: Stack,
    decoder: Stack,
    isa: Isa,
    pool: ThreadPool,
    trace: Option<TraceSink>,
}

/// State of one stream.
pub struct CpuStream {
    /// Last mel frames, `[MEL_TAIL, n_mels]`, and last row of the first convolution, `[CONV_TAIL, encoder dim]`.
    mel_tail: Vec<f32>,
    conv_tail: Vec<f32>,
    encoder: Vec<KvRing>,
    /// Encoder rows so far.
    n_encoded_rows: u64,
    decoder: Vec<KvRing>,
    /// Decoder positions so far.
    position: u64,
    /// Audio embeddings from `first_embedding` on; those of the last span are kept for a rewind.
    embeddings: VecDeque<Vec<f32>>,
    first_embedding: u64,
    /// `1 + ada`, `[n_layers][dim]`
    ffn_scale: Vec<Vec<f32>>,
}

impl Cpu {
    /// Like [`Backend::load`], with a given instruction set, which the machine must have.
    pub fn with_isa(weights: &Weights, options: &BackendOptions, isa: Isa) -> Result<Self> {
        if !Isa::available().contains(&isa) {
            return Err(Error::Backend(format!("this machine has no {isa:?}")));
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(options.threads.unwrap_or(cores))
            .thread_name(|i| format!("cpu-{i}"))
            .build()
            .map_err(|e| Error::Backend(format!("cannot start threads: {e}")))?;
        let p = &weights.params;
        Ok(Self {
            conv_bias: [weights.conv[0].bias.to_f32(), weights.conv[1].bias.to_f32()],
            encoder: Stack::new(p.encoder, &weights.encoder, &weights.encoder_norm, isa, "encoder_layer"),
            decoder: Stack::new(p.decoder, &weights.decoder, &weights.norm, isa, "decoder_layer"),
            weights: weights.clone(),
            isa,
            pool,
            trace: None,
        })
    }

    /// Runs `f` on the pool's threads.
    fn in_pool<T: Send>(&mut self, f: impl FnOnce(&Inner<'_>, &mut Option<TraceSink>) -> T + Send) -> T {
        let inner = Inner {
            weights: &self.weights,
            conv_bias: &self.conv_bias,
            encoder: &self.encoder,
            decoder: &self.decoder,
            isa: self.isa,
        };
        let trace = &mut self.trace;
        self.pool.install(|| f(&inner, trace))
    }
}

impl Backend for Cpu {
    type Stream = CpuStream;

    fn load(weights: &Weights, options: &BackendOptions) -> Result<Self> {
        Self::with_isa(weights, options, Isa::available()[0])
    }

    fn open(&mut self, delay: Delay) -> Result<CpuStream> {
        let p = self.weights.params;
        Ok(CpuStream {
            mel_tail: vec![0.0; MEL_TAIL * p.n_mels],
            conv_tail: vec![0.0; CONV_TAIL * p.encoder.dim],
            encoder: self.encoder.rings(PASS_FRAMES / 2)?,
            n_encoded_rows: 0,
            decoder: self.decoder.rings(MAX_REWIND)?,
            position: 0,
            embeddings: VecDeque::new(),
            first_embedding: 0,
            ffn_scale: self.in_pool(|inner, trace| inner.ffn_scale(delay, trace)),
        })
    }

    fn fork(&mut self, stream: &CpuStream) -> Result<CpuStream> {
        let forked = |rings: &[KvRing], n| rings.iter().map(|ring| ring.fork(n)).collect::<Result<_>>();
        Ok(CpuStream {
            mel_tail: stream.mel_tail.clone(),
            conv_tail: stream.conv_tail.clone(),
            encoder: forked(&stream.encoder, stream.n_encoded_rows)?,
            n_encoded_rows: stream.n_encoded_rows,
            decoder: forked(&stream.decoder, stream.position)?,
            position: stream.position,
            embeddings: stream.embeddings.clone(),
            first_embedding: stream.first_embedding,
            ffn_scale: stream.ffn_scale.clone(),
        })
    }

    fn encode(&mut self, batch: &mut [EncodeChunk<'_, CpuStream>]) -> Result<()> {
        self.in_pool(|inner, trace| inner.encode(batch, trace));
        Ok(())
    }

    fn decode(&mut self, batch: &mut [Span<'_, CpuStream>]) -> Result<()> {
        self.in_pool(|inner, trace| inner.decode(batch, trace))
    }

    fn rewind(&mut self, stream: &mut CpuStream, position: u64) {
        let kept = stream.first_embedding.max(stream.position.saturating_sub(MAX_REWIND as u64));
        assert!((kept..=stream.position).contains(&position), "rewind beyond the last span");
        stream.position = position;
    }

    fn max_rows(&self) -> usize {
        PASS_ROWS
    }

    fn decoder_bytes(&self) -> u64 {
        (self.decoder.n_bytes() + self.weights.tok_embeddings.n_bytes()) as u64
    }

    fn plain_pass(&mut self) -> Result<Option<Duration>> {
        let start = Instant::now();
        self.pool.install(|| read_decoder(&self.weights));
        Ok(Some(start.elapsed()))
    }

    fn trace(&mut self, sink: Option<TraceSink>) {
        self.trace = sink;
    }
}

impl Export for Cpu {
    fn export(&mut self, stream: &CpuStream) -> Result<StreamState> {
        let read = |rings: &[KvRing], end: u64, window: usize| {
            let first = KvState::first_kept(end, window);
            let layer = |ring: &KvRing| {
                let (mut keys, mut values) = (Vec::new(), Vec::new());
                (first..end).for_each(|position| ring.read(position, &mut keys, &mut values));
                [keys, values]
            };
            KvState { first, layers: rings.iter().map(layer).collect() }
        };
        let p = &self.weights.params;
        Ok(StreamState {
            mel_tail: stream.mel_tail.clone(),
            conv_tail: stream.conv_tail.clone(),
            n_encoded_rows: stream.n_encoded_rows,
            encoder: read(&stream.encoder, stream.n_encoded_rows, p.encoder.sliding_window),
            position: stream.position,
            decoder: read(&stream.decoder, stream.position, p.decoder.sliding_window),
            embeddings: stream.embeddings.iter().flatten().copied().collect(),
            first_embedding: stream.first_embedding,
        })
    }
}

impl Import for Cpu {
    fn import(&mut self, delay: Delay, state: &StreamState) -> Result<CpuStream> {
        let mut stream = self.open(delay)?;
        let write = |rings: &mut [KvRing], kv: &KvState, kv_dim: usize| {
            assert_eq!(rings.len(), kv.layers.len(), "layers");
            for (ring, [keys, values]) in rings.iter_mut().zip(&kv.layers) {
                let rows = keys.chunks_exact(kv_dim).zip(values.chunks_exact(kv_dim));
                (kv.first..).zip(rows).for_each(|(position, (key, value))| ring.append(position, key, value));
            }
        };
        let p = &self.weights.params;
        write(&mut stream.encoder, &state.encoder, p.encoder.kv_dim());
        write(&mut stream.decoder, &state.decoder, p.decoder.kv_dim());
        stream.mel_tail.copy_from_slice(&state.mel_tail);
        stream.conv_tail.copy_from_slice(&state.conv_tail);
        stream.n_encoded_rows = state.n_encoded_rows;
        stream.position = state.position;
        stream.embeddings = state.embeddings.chunks_exact(p.decoder.dim).map(<[f32]>::to_vec).collect();
        stream.first_embedding = state.first_embedding;
        Ok(stream)
    }
}

/// What the pool's threads work with.
struct Inner<'a> {
    weights: &'a Weights,
    conv_bias: &'a [Vec<f32>; 2],
    encoder: &'a Stack,
    decoder: &'a Stack,
    isa: Isa,
}

/// Part of one stream's frames in an encoder pass.
struct Frames<'a> {
    stream: &'a mut CpuStream,
    /// `[n_frames, n_mels]`
    log_mel: &'a [f32],
}

impl Inner<'_> {
    /// `1 + ada` of every layer: `ada = ada2 · gelu(ada0 · t_cond)`, where `t_cond` is the sinusoidal embedding of the
    /// delay in tokens, cosines first.
    fn ffn_scale(&self, delay: Delay, trace: &mut Option<TraceSink>) -> Vec<Vec<f32>> {
        let dim = self.weights.params.decoder.dim;
        let half = dim / 2;
        let frequency = |j: usize| (-(10_000f64.ln()) * j as f64 / half as f64).exp() as f32;
        let angles: Vec<f32> = (0..half).map(|j| delay.tokens() as f32 * frequency(j)).collect();
        let t_cond: Vec<f32> = angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin())).collect();
        if let Some(sink) = trace {
            sink("t_cond", 0, &t_cond, dim);
        }
        let mut scales = Vec::with_capacity(self.weights.decoder.len());
        for (i, layer) in self.weights.decoder.iter().enumerate() {
            let [down, up] = layer.ada.as_ref().expect("decoder layers have it");
            let (mut inner, mut ada) = (vec![0.0; down.shape()[0]], vec![0.0; dim]);
            multiply(self.isa, &t_cond, 1, &mut [Product { weight: down, bias: None, out: &mut inner }]);
            inner.iter_mut().for_each(|x| *x = gelu(*x));
            multiply(self.isa, &inner, 1, &mut [Product { weight: up, bias: None, out: &mut ada }]);
            if let Some(sink) = trace {
                sink("ada", i, &ada, dim);
            }
            scales.push(ada.into_iter().map(|x| 1.0 + x).collect());
        }
        scales
    }

    fn encode(&self, batch: &mut [EncodeChunk<'_, CpuStream>], trace: &mut Option<TraceSink>) {
        let n_mels = self.weights.params.n_mels;
        assert!(batch.iter().all(|c| c.log_mel.len().is_multiple_of(FRAMES_PER_TOKEN * n_mels)), "whole tokens");
        for ranges in passes(batch.iter().map(|chunk| chunk.log_mel.len() / n_mels), PASS_FRAMES) {
            let due = batch.iter_mut().zip(ranges).filter(|(_, range)| !range.is_empty());
            let frames = due.map(|(chunk, range)| Frames {
                stream: chunk.stream,
                log_mel: &chunk.log_mel[range.start * n_mels..range.end * n_mels],
            });
            self.encode_pass(&mut frames.collect::<Vec<_>>(), trace);
        }
    }

    /// One pass over at most [`PASS_FRAMES`] frames.
    fn encode_pass(&self, pass: &mut [Frames<'_>], trace: &mut Option<TraceSink>) {
        let p = &self.weights.params;
        let dim = p.encoder.dim;

        let conv0 = self.convolve(0, 1, pass.iter_mut().map(|f| (&mut f.stream.mel_tail, f.log_mel)));
        let mut rest = conv0.as_slice();
        let inputs = pass.iter_mut().map(|f| {
            let (own, after) = rest.split_at(f.log_mel.len() / p.n_mels * dim);
            rest = after;
            (&mut f.stream.conv_tail, own)
        });
        let mut x = self.convolve(1, 2, inputs); // [rows, dim]
        if let Some(sink) = trace {
            sink("conv", 0, &x, dim);
        }

        let mut segments: Vec<_> = pass
            .iter_mut()
            .map(|f| {
                let n_rows = f.log_mel.len() / p.n_mels / 2;
                let position = f.stream.n_encoded_rows;
                f.stream.n_encoded_rows += n_rows as u64;
                Segment { position, n_rows, rings: &mut f.stream.encoder, ffn_scale: None }
            })
            .collect();
        self.encoder.forward(&mut x, &mut segments, trace);
        let x = self.encoder.final_norm(&x);

        // four neighbouring rows side by side are one row of the adapter's input
        let n_tokens = x.len() / (DOWNSAMPLE * dim);
        let [first, second] = &self.weights.adapter;
        let (mut h, mut out) = (vec![0.0; n_tokens * p.decoder.dim], vec![0.0; n_tokens * p.decoder.dim]);
        multiply(self.isa, &x, n_tokens, &mut [Product { weight: first, bias: None, out: &mut h }]);
        gelu_all(&mut h);
        multiply(self.isa, &h, n_tokens, &mut [Product { weight: second, bias: None, out: &mut out }]);
        if let Some(sink) = trace {
            sink("encoder_norm", 0, &x, dim);
            sink("adapter", 0, &out, p.decoder.dim);
        }
        let mut rows = out.chunks_exact(p.decoder.dim).map(<[f32]>::to_vec);
        for f in pass {
            let n = f.log_mel.len() / p.n_mels / FRAMES_PER_TOKEN;
            f.stream.embeddings.extend(rows.by_ref().take(n));
        }
    }

    /// Causal convolution of width 3 and exact GELU over new rows of several streams, each after its tail, which is
    /// brought up to date. Returns `[rows / stride, dim]`.
    fn convolve<'s>(
        &self,
        index: usize,
        stride: usize,
        inputs: impl Iterator<Item = (&'s mut Vec<f32>, &'s [f32])>,
    ) -> Vec<f32> {
        let conv = &self.weights.conv[index];
        let &[dim, channels, width] = conv.weight.shape() else { unreachable!("a checked shape") };
        let mut columns = Vec::new(); // [rows, channels, width], the order of the weight's last two axes
        for (tail, new) in inputs {
            let tail_len = tail.len();
            tail.extend_from_slice(new);
            let rows = new.len() / channels / stride;
            let first = columns.len();
            columns.resize(first + rows * channels * width, 0.0);
            let out = &mut columns[first..];
            for (i, out) in out.chunks_exact_mut(channels * width).enumerate() {
                let window = &tail[i * stride * channels..][..width * channels];
                for (c, out) in out.chunks_exact_mut(width).enumerate() {
                    out.iter_mut().enumerate().for_each(|(t, out)| *out = window[t * channels + c]);
                }
            }
            tail.drain(..tail.len() - tail_len);
        }
        let rows = columns.len() / (channels * width);
        let mut out = vec![0.0; rows * dim];
        let bias = Some(self.conv_bias[index].as_slice());
        multiply(self.isa, &columns, rows, &mut [Product { weight: &conv.weight, bias, out: &mut out }]);
        gelu_all(&mut out);
        out
    }

    fn decode(&self, batch: &mut [Span<'_, CpuStream>], trace: &mut Option<TraceSink>) -> Result<()> {
        for span in batch.iter_mut() {
            let stream = &mut span.stream;
            while stream.first_embedding < stream.position {
                stream.embeddings.pop_front();
                stream.first_embedding += 1;
            }
            assert!(span.inputs.len() <= stream.embeddings.len(), "inputs without audio embeddings");
            span.predictions.clear();
        }
        for ranges in passes(batch.iter().map(|span| span.inputs.len()), PASS_ROWS) {
            let due = batch.iter_mut().zip(ranges).filter(|(_, range)| !range.is_empty());
            self.decode_pass(&mut due.collect::<Vec<_>>(), trace)?;
        }
        Ok(())
    }

    /// One pass over at most [`PASS_ROWS`] positions.
    fn decode_pass(
        &self,
        pass: &mut [(&mut Span<'_, CpuStream>, std::ops::Range<usize>)],
        trace: &mut Option<TraceSink>,
    ) -> Result<()> {
        let p = &self.weights.params;
        let dim = p.decoder.dim;
        let mut x = Vec::new(); // [rows, dim]
        for (span, inputs) in pass.iter() {
            let stream = &span.stream;
            for (i, &id) in span.inputs[inputs.clone()].iter().enumerate() {
                assert!((id as usize) < p.vocab_size, "token id outside the vocabulary");
                let audio = &stream.embeddings[(stream.position - stream.first_embedding) as usize + i];
                let token = &self.weights.tok_embeddings.data()[id as usize * dim..][..dim];
                x.extend(audio.iter().zip(token).map(|(&a, &t)| a + bf16::from_le_bytes(t).to_f32()));
            }
        }
        let mut segments: Vec<_> = pass
            .iter_mut()
            .map(|(span, inputs)| {
                let stream = &mut *span.stream;
                let position = stream.position;
                stream.position += inputs.len() as u64;
                let ffn_scale = Some(stream.ffn_scale.as_slice());
                Segment { position, n_rows: inputs.len(), rings: &mut stream.decoder, ffn_scale }
            })
            .collect();
        self.decoder.forward(&mut x, &mut segments, trace);

        let mut wanted = Vec::new(); // rows of x whose predictions are asked for
        let mut first = 0;
        for (span, inputs) in pass.iter() {
            let from = span.predict_from.clamp(inputs.start, inputs.end) - inputs.start;
            wanted.extend_from_slice(&x[(first + from) * dim..(first + inputs.len()) * dim]);
            first += inputs.len();
        }
        if wanted.is_empty() {
            return Ok(());
        }
        let rows = wanted.len() / dim;
        let h = self.decoder.final_norm(&wanted);
        let mut logits = vec![0.0; rows * p.vocab_size];
        let weight = &self.weights.tok_embeddings;
        multiply(self.isa, &h, rows, &mut [Product { weight, bias: None, out: &mut logits }]);
        if let Some(sink) = trace {
            sink("decoder_norm", 0, &h, dim);
            sink("logits", 0, &logits, p.vocab_size);
        }
        let n_top = pass.iter().flat_map(|(span, inputs)| {
            let from = span.predict_from.clamp(inputs.start, inputs.end);
            (from..inputs.end).map(|_| span.n_top)
        });
        let rows: Vec<_> = logits.chunks_exact(p.vocab_size).zip(n_top).collect();
        let predictions: Result<Vec<_>> = rows.into_par_iter().map(|(logits, n_top)| predict(logits, n_top)).collect();
        let mut predictions = predictions?.into_iter();
        for (span, inputs) in pass {
            let from = span.predict_from.clamp(inputs.start, inputs.end);
            span.predictions.extend(predictions.by_ref().take(inputs.end - from));
        }
        Ok(())
    }
}
