//! The CUDA backend: the network on one NVIDIA GPU, compute capability 8.0 or newer.
//!
//! Products are F16 with F32 sums (`kernels/common.cuh` says why that is safe for BF16 weights), the residual stream,
//! norms, softmax and rotations are F32, keys and values F16. Every sum runs in an order that depends on nothing but the
//! row it belongs to, so a row's bits do not change with the number of rows, their company, or whether launches come from
//! a graph.

mod attention;
mod cublaslt;
mod decoder;
mod device;
mod encoder;
mod encoder_layers;
mod export;
mod gemm;
mod launch;
mod library_pass;
mod pass;
mod stream;
#[cfg(all(test, feature = "gpu-tests"))]
mod test_data;
mod weights;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use half::{bf16, f16};

use self::decoder::Decoder;
use self::device::{Buffer, Device, bytes_of, bytes_of_mut};
use self::encoder::Encoder;
use self::launch::Kernels;
use self::weights::{Loader, padded};
use super::{Backend, BackendOptions, EncodeChunk, MAX_REWIND, Span, TraceSink};
use crate::Result;
use crate::backend::cpu::elementwise::{frequencies as rope_frequencies, gelu};
use crate::model::params::TransformerParams;
use crate::model::weights::Tensor;
use crate::model::{Delay, Weights};

pub use self::device::{count, probe};
pub use self::stream::CudaStream;

/// Encoder rows of one pass: 184 s of audio where memory is plentiful.
const MAX_ROWS: usize = 9216;
/// Free bytes after loading that each row may claim a share of.
const BYTES_PER_ROW: usize = 1 << 20;
const MIN_ROWS: usize = 1024;
/// Memory that is copied at a time to see how fast that goes: more than caches hold.
const COPY_BYTES: usize = 512 << 20;

/// The network on a GPU.
pub struct Cuda {
    kernels: Kernels,
    weights: Weights,
    encoder: Encoder,
    decoder: Decoder,
    /// `1 + ada` by delay.
    ffn_scales: HashMap<usize, Arc<Buffer>>,
    trace: Tracer,
}

impl Cuda {
    /// Name of the GPU.
    pub fn device_name(&self) -> &str {
        &self.kernels.device().name
    }

    /// Decoder layers that were sent to the GPU in passes so far, because they did not fit there.
    pub fn sent_layers(&self) -> u64 {
        self.decoder.n_sent()
    }

    /// Bytes of the encoder's weights.
    pub fn encoder_bytes(&self) -> u64 {
        self.encoder.n_bytes() as u64
    }

    /// Whether the decoder's products are cuBLASLt's.
    pub fn uses_cublaslt(&self) -> bool {
        self.decoder.uses_cublaslt()
    }

    /// `1 + ada` of every layer, `[n_layers, dim]`; see the CPU backend.
    fn ffn_scale(&mut self, delay: Delay) -> Result<Arc<Buffer>> {
        if let Some(scale) = self.ffn_scales.get(&delay.tokens()) {
            return Ok(scale.clone());
        }
        let dim = self.weights.params.decoder.dim;
        let half = dim / 2;
        let frequency = |j: usize| (-(10_000f64.ln()) * j as f64 / half as f64).exp() as f32;
        let angles: Vec<f32> = (0..half).map(|j| delay.tokens() as f32 * frequency(j)).collect();
        let t_cond: Vec<f32> = angles.iter().map(|a| a.cos()).chain(angles.iter().map(|a| a.sin())).collect();
        self.trace.values("t_cond", 0, &t_cond, dim);
        let multiply = |weight: &Tensor, x: &[f32]| -> Vec<f32> {
            let dot = |row: &[[u8; 2]]| row.iter().zip(x).map(|(&w, x)| bf16::from_le_bytes(w).to_f32() * x).sum();
            weight.data().chunks_exact(x.len()).map(dot).collect()
        };
        let mut scales = vec![0f32; self.weights.decoder.len() * padded(dim)];
        for (i, (layer, scale)) in self.weights.decoder.iter().zip(scales.chunks_exact_mut(padded(dim))).enumerate() {
            let [down, up] = layer.ada.as_ref().expect("decoder layers have it");
            let inner: Vec<f32> = multiply(down, &t_cond).into_iter().map(gelu).collect();
            let ada = multiply(up, &inner);
            self.trace.values("ada", i, &ada, dim);
            scale.iter_mut().zip(&ada).for_each(|(scale, ada)| *scale = 1.0 + ada);
        }
        let scale = Arc::new(upload(self.kernels.device(), &scales)?);
        self.ffn_scales.insert(delay.tokens(), scale.clone());
        Ok(scale)
    }
}

impl Backend for Cuda {
    type Stream = CudaStream;

    fn load(weights: &Weights, options: &BackendOptions) -> Result<Self> {
        let p = &weights.params;
        let kernels = Kernels::open(&options.cuda, &p.encoder)?;
        let device = kernels.device();
        let start = Instant::now();
        let mut loader = Loader::new(&kernels)?;
        loader.register(weights.mapped(), options.cuda.host_register_bytes);
        let decoder = Decoder::load(&mut loader, device, weights, &options.cuda)?;
        let (free, _) = device.memory()?;
        let rows = (free / BYTES_PER_ROW).clamp(MIN_ROWS, MAX_ROWS) / 256 * 256;
        let encoder = Encoder::load(&mut loader, device, weights, rows, options.cuda.graphs)?;
        loader.flush()?;
        device.finish()?;
        let gigabytes = loader.n_bytes as f64 / 1e9;
        let seconds = start.elapsed().as_secs_f64();
        tracing::info!(
            device = device.name,
            "{gigabytes:.2} GB of weights in {seconds:.2} s, {:.1} GB/s",
            gigabytes / seconds
        );
        drop(loader);
        Ok(Self {
            weights: weights.clone(),
            encoder,
            decoder,
            ffn_scales: HashMap::new(),
            trace: Tracer { sink: None, device: device.clone() },
            kernels,
        })
    }

    fn open(&mut self, delay: Delay) -> Result<CudaStream> {
        self.kernels.device().enter()?;
        let ffn_scale = self.ffn_scale(delay)?;
        let p = &self.weights.params;
        CudaStream::new(self.kernels.device(), &p.encoder, &p.decoder, [p.n_mels, padded(p.encoder.dim)], ffn_scale)
    }

    fn fork(&mut self, stream: &CudaStream) -> Result<CudaStream> {
        let device = self.kernels.device();
        device.enter()?;
        stream.fork(device, &self.weights.params.encoder, &self.weights.params.decoder)
    }

    fn encode(&mut self, batch: &mut [EncodeChunk<'_, CudaStream>]) -> Result<()> {
        self.kernels.device().enter()?;
        self.encoder.encode(&self.kernels, batch, &mut self.trace)
    }

    fn decode(&mut self, batch: &mut [Span<'_, CudaStream>]) -> Result<()> {
        self.kernels.device().enter()?;
        self.decoder.decode(&self.kernels, batch, &mut self.trace)
    }

    fn rewind(&mut self, stream: &mut CudaStream, position: u64) {
        let kept = stream.first_embedding().max(stream.position.saturating_sub(MAX_REWIND as u64));
        assert!((kept..=stream.position).contains(&position), "rewind beyond the last span");
        stream.position = position;
    }

    fn memory_in_use(&self) -> Option<u64> {
        let (free, total) = self.kernels.device().memory().ok()?;
        Some((total - free) as u64)
    }

    fn room_for_streams(&self, n_positions: usize) -> Option<usize> {
        let (free, _) = self.kernels.device().memory().ok()?;
        let p = &self.weights.params;
        // the encoder's working memory comes out of the same
        Some(free / 10 * 9 / CudaStream::n_bytes(&p.encoder, &p.decoder, n_positions))
    }

    fn max_rows(&self) -> usize {
        self.decoder.max_rows()
    }

    fn decoder_bytes(&self) -> u64 {
        self.decoder.n_bytes() as u64
    }

    fn plain_pass(&mut self) -> Result<Option<Duration>> {
        let device = self.kernels.device();
        device.enter()?;
        let n_bytes = self.decoder.n_bytes() / 2;
        let part = n_bytes.clamp(1, COPY_BYTES);
        let (from, to) = (device.alloc_zeros(part)?, device.alloc_zeros(part)?);
        device.finish()?;
        let start = Instant::now();
        for first in (0..n_bytes).step_by(part) {
            // SAFETY: both buffers have a part's size.
            unsafe { device.copy(to.address(), from.address(), part.min(n_bytes - first))? };
        }
        device.finish()?;
        Ok(Some(start.elapsed()))
    }

    fn trace(&mut self, sink: Option<TraceSink>) {
        self.trace.sink = sink;
    }
}

/// Sends activations to whoever traces. While one is set nothing is recorded as graphs.
struct Tracer {
    sink: Option<TraceSink>,
    device: Arc<Device>,
}

impl Tracer {
    fn is_on(&self) -> bool {
        self.sink.is_some()
    }

    /// Values that are on the host.
    fn values(&mut self, name: &'static str, layer: usize, values: &[f32], width: usize) {
        if let Some(sink) = &mut self.sink {
            sink(name, layer, values, width);
        }
    }

    /// Rows of `stride` numbers on the device, of which `width` count.
    fn f32(
        &mut self,
        name: &'static str,
        layer: usize,
        x: &Buffer,
        n: usize,
        stride: usize,
        width: usize,
    ) -> Result<()> {
        if !self.is_on() {
            return Ok(());
        }
        let mut values = vec![0f32; n * stride];
        // SAFETY: callers pass the shape of the buffer's contents.
        unsafe { self.device.download(bytes_of_mut(&mut values), x.address())? };
        let values: Vec<f32> = values.chunks_exact(stride).flat_map(|row| &row[..width]).copied().collect();
        self.values(name, layer, &values, width);
        Ok(())
    }

    /// As [`f32`](Self::f32).
    fn f16(
        &mut self,
        name: &'static str,
        layer: usize,
        x: &Buffer,
        n: usize,
        stride: usize,
        width: usize,
    ) -> Result<()> {
        if !self.is_on() {
            return Ok(());
        }
        let mut values = vec![0u16; n * stride];
        // SAFETY: callers pass the shape of the buffer's contents.
        unsafe { self.device.download(bytes_of_mut(&mut values), x.address())? };
        let rows = values.chunks_exact(stride).flat_map(|row| &row[..width]);
        let values: Vec<f32> = rows.map(|&bits| f16::from_bits(bits).to_f32()).collect();
        self.values(name, layer, &values, width);
        Ok(())
    }
}

/// A copy on the device; waits for it.
fn upload(device: &Arc<Device>, values: &[f32]) -> Result<Buffer> {
    let buffer = device.alloc(size_of_val(values))?;
    // SAFETY: the buffer has that size, and `values` outlive the wait.
    unsafe { device.upload(buffer.address(), bytes_of(values))? };
    device.finish()?;
    Ok(buffer)
}

/// Rotary frequencies of a stack, `[head_dim / 2]`.
fn frequencies(device: &Arc<Device>, p: &TransformerParams) -> Result<Buffer> {
    upload(device, &rope_frequencies(p.head_dim, p.rope_theta))
}

/// Scores are kept as powers of two: `log2(e) / √head_dim`.
fn softmax_scale(p: &TransformerParams) -> f32 {
    (std::f64::consts::LOG2_E / (p.head_dim as f64).sqrt()) as f32
}
