//! The encoder: convolution stem, layers, adapter, over any number of streams.
//!
//! What varies from pass to pass (frames, positions, where rings are) goes to the device in one block before it; the
//! launches depend on the shape alone, so those of small passes are recorded as graphs.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::Tracer;
use super::attention::{AttentionKind, EncoderAttention, FEW_TILE};
use super::device::{Buffer, Device, Graph, Pinned, TensorMap, bytes_of};
use super::encoder_layers::{LayersKernel, LayersPass, ring_map};
use super::gemm::{Epilogue, Gemm};
use super::launch::{ConvTails, KeepKeys, Kernels, MelFrames, RmsNorm, RopeAngles, Segment};
use super::stream::{CudaStream, encoder_slots};
use super::weights::{Layer, Loader, Matrix, padded};
use crate::Result;
use crate::backend::{EncodeChunk, passes};
use crate::model::Weights;
use crate::model::params::{DOWNSAMPLE, FRAMES_PER_TOKEN, Params};

/// Passes of up to so many rows are recorded as graphs: those of live audio, where launches would take longer than work.
const GRAPH_ROWS: usize = 128;
/// Shapes remembered.
const MAX_GRAPHS: usize = 32;
/// Tables for each segment of a pass.
const SEGMENT_BYTES: usize = size_of::<TensorMap>() + size_of::<Segment>();
/// Tables of positions and the like, for each frame of a pass.
const TABLE_BYTES_PER_FRAME: usize = 64;
/// Bytes of frames copied by one thread at a time.
const COPY_BYTES: usize = 1 << 18;

pub struct Encoder {
    params: Params,
    conv: [(Matrix, Buffer); 2],
    layers: Vec<Layer>,
    /// For passes of few rows, where there is one.
    layers_kernel: Option<LayersKernel>,
    norm: Buffer,
    adapter: [Matrix; 2],
    frequencies: Buffer,
    scratch: Option<Scratch>,
    graphs: HashMap<Vec<u32>, Graph>,
    max_frames: usize,
    use_graphs: bool,
}

/// Memory for passes of up to `n_frames`.
struct Scratch {
    n_frames: usize,
    n_segments: usize,
    /// Tables, then frames: on the host and on the device.
    host: Pinned<u8>,
    input: Buffer,
    mel: Buffer,
    conv: Buffer,
    x: Buffer,
    h: Buffer,
    qkv: Buffer,
    attended: Buffer,
    hidden: Buffer,
    angles: Buffer,
    joined: Buffer,
    embeddings: Buffer,
}

/// Part of one stream's frames in a pass.
struct Part<'a> {
    stream: &'a mut CudaStream,
    /// `[n_frames, n_mels]`
    log_mel: &'a [f32],
}

/// Which kernels do a pass's layers.
#[derive(Clone, Copy)]
struct How {
    attention: AttentionKind,
    /// All by [`LayersKernel`].
    in_one_kernel: bool,
}

/// Where the tables of the input block are.
struct Layout {
    rings: u64,
    segments: u64,
    tiles: u64,
    positions: u64,
    conv0_in: u64,
    conv0_out: u64,
    conv1_in: u64,
    frames: u64,
}

impl Encoder {
    pub fn load<'a>(
        loader: &mut Loader<'a>,
        device: &Arc<Device>,
        weights: &'a Weights,
        max_rows: usize,
        use_graphs: bool,
    ) -> Result<Self> {
        let p = weights.params;
        let layers = loader.layers(&p.encoder, &weights.encoder)?;
        Ok(Self {
            params: p,
            conv: [loader.convolution(&weights.conv[0])?, loader.convolution(&weights.conv[1])?],
            layers_kernel: LayersKernel::new(device, &p.encoder, &layers)?,
            layers,
            norm: loader.vector(&weights.encoder_norm)?,
            adapter: [loader.joining(&weights.adapter[0])?, loader.merged(&[&weights.adapter[1]])?],
            frequencies: super::frequencies(device, &p.encoder)?,
            scratch: None,
            graphs: HashMap::new(),
            max_frames: 2 * max_rows,
            use_graphs,
        })
    }

    /// Bytes of all matrices.
    pub fn n_bytes(&self) -> usize {
        let others = self.conv.iter().map(|(m, _)| m).chain(&self.adapter).map(Matrix::n_bytes).sum::<usize>();
        others + self.layers.iter().map(Layer::n_bytes).sum::<usize>()
    }

    pub fn encode(
        &mut self,
        kernels: &Kernels,
        batch: &mut [EncodeChunk<'_, CudaStream>],
        trace: &mut Tracer,
    ) -> Result<()> {
        let n_mels = self.params.n_mels;
        assert!(batch.iter().all(|c| c.log_mel.len().is_multiple_of(FRAMES_PER_TOKEN * n_mels)), "whole tokens");
        for ranges in passes(batch.iter().map(|chunk| chunk.log_mel.len() / n_mels), self.max_frames) {
            let due = batch.iter_mut().zip(ranges).filter(|(_, range)| !range.is_empty());
            let parts = due.map(|(chunk, range)| Part {
                stream: chunk.stream,
                log_mel: &chunk.log_mel[range.start * n_mels..range.end * n_mels],
            });
            self.pass(kernels, &mut parts.collect::<Vec<_>>(), trace)?;
        }
        Ok(())
    }

    fn pass(&mut self, kernels: &Kernels, pass: &mut [Part<'_>], trace: &mut Tracer) -> Result<()> {
        let device = kernels.device();
        let n_mels = self.params.n_mels;
        let shape: Vec<u32> = pass.iter().map(|part| (part.log_mel.len() / n_mels) as u32).collect();
        let n_frames = shape.iter().sum::<u32>() as usize;
        // whatever may fail for lack of memory comes before anything that changes a stream
        self.reserve(device, n_frames, pass.len())?;
        let row_bytes = padded(self.params.decoder.dim) * 4;
        let n_tokens = |frames: u32| frames as usize / FRAMES_PER_TOKEN;
        let embeddings: Result<Vec<Buffer>> = shape.iter().map(|&n| device.alloc(n_tokens(n) * row_bytes)).collect();
        let embeddings = embeddings?;
        let how = self.how(kernels, &shape);
        let layout = self.fill(device, pass, how)?;

        let record = self.use_graphs && !trace.is_on() && n_frames / 2 <= GRAPH_ROWS;
        if record && !self.graphs.contains_key(&shape) {
            if self.graphs.len() >= MAX_GRAPHS {
                self.graphs.clear();
            }
            let graph = device.capture(|| self.launch(kernels, &shape, how, &layout, trace))?;
            self.graphs.insert(shape.clone(), graph);
        }
        pass.iter_mut().for_each(|part| part.stream.struck = true);
        if record {
            self.graphs.get_mut(&shape).expect("just inserted").launch()?;
        } else {
            self.launch(kernels, &shape, how, &layout, trace)?;
        }
        let mut source = self.scratch.as_ref().expect("reserved").embeddings.address();
        for (buffer, &n) in embeddings.iter().zip(&shape) {
            // SAFETY: the pass has written that many rows.
            unsafe { device.copy(buffer.address(), source, n_tokens(n) * row_bytes)? };
            source += (n_tokens(n) * row_bytes) as u64;
        }
        // the host block is written again for the next pass
        device.finish()?;
        for ((part, buffer), n) in pass.iter_mut().zip(embeddings).zip(shape) {
            part.stream.push_embeddings(buffer, n_tokens(n));
            part.stream.n_encoded_rows += u64::from(n) / 2;
            part.stream.struck = false;
        }
        Ok(())
    }

    fn how(&self, kernels: &Kernels, shape: &[u32]) -> How {
        let n_rows = shape.iter().map(|&n| n as usize / 2);
        How {
            attention: kernels.encoder_attention().kind(n_rows.clone(), self.params.encoder.n_heads),
            in_one_kernel: self.layers_kernel.as_ref().is_some_and(|kernel| kernel.takes(n_rows)),
        }
    }

    /// Makes the scratch memory large enough.
    fn reserve(&mut self, device: &Arc<Device>, n_frames: usize, n_segments: usize) -> Result<()> {
        if self.scratch.as_ref().is_some_and(|s| s.n_frames >= n_frames && s.n_segments >= n_segments) {
            return Ok(());
        }
        let before = self.scratch.as_ref().map_or((0, 0), |s| (s.n_frames, s.n_segments));
        let n_frames = n_frames.max(before.0).next_multiple_of(256);
        let n_segments = n_segments.max(before.1).next_power_of_two();
        self.graphs.clear();
        self.scratch = None;

        let (p, e) = (&self.params, &self.params.encoder);
        let rows = n_frames / 2;
        let tokens = rows / DOWNSAMPLE;
        let input = n_segments * SEGMENT_BYTES + n_frames * (TABLE_BYTES_PER_FRAME + p.n_mels * 4);
        let f16 = |rows: usize, width: usize| device.alloc_zeros(rows * padded(width) * 2);
        self.scratch = Some(Scratch {
            n_frames,
            n_segments,
            host: Pinned::new(device, input)?,
            input: device.alloc(input)?,
            mel: f16(n_frames + 2 * n_segments, p.n_mels)?,
            conv: f16(n_frames + 2 * n_segments, e.dim)?,
            x: device.alloc_zeros(rows * padded(e.dim) * 4)?,
            h: f16(rows, e.dim)?,
            qkv: f16(rows, e.q_dim() + 2 * e.kv_dim())?,
            attended: f16(rows, e.q_dim())?,
            hidden: f16(rows, e.hidden_dim)?,
            angles: device.alloc(rows * e.head_dim * 4)?,
            joined: f16(tokens, p.decoder.dim)?,
            embeddings: device.alloc(tokens * padded(p.decoder.dim) * 4)?,
        });
        Ok(())
    }

    /// Writes the pass's tables and frames, and sends them to the device. Where a table is depends on the scratch's size
    /// alone, so graphs find it.
    fn fill(&mut self, device: &Device, pass: &[Part<'_>], how: How) -> Result<Layout> {
        let n_mels = self.params.n_mels;
        let scratch = self.scratch.as_mut().expect("reserved");
        let base = scratch.input.address();
        let segments_at = scratch.n_segments * size_of::<TensorMap>();
        let tables_at = scratch.n_segments * SEGMENT_BYTES;
        let table = |i: usize| tables_at + i * scratch.n_frames * 8;
        let frames_at = tables_at + scratch.n_frames * TABLE_BYTES_PER_FRAME;
        let at = |offset: usize| base + offset as u64;
        let layout = Layout {
            rings: base,
            segments: at(segments_at),
            tiles: at(table(0)),
            positions: at(table(1)),
            conv0_in: at(table(2)),
            conv0_out: at(table(3)),
            conv1_in: at(table(4)),
            frames: at(frames_at),
        };

        let e = &self.params.encoder;
        let (mut rings, mut segments) = (Vec::new(), Vec::with_capacity(pass.len()));
        let mut tables: [Vec<i32>; 5] = Default::default();
        let (mut row, mut frame) = (0, 0);
        let host = scratch.host.as_mut_slice();
        let mut rest = &mut host[frames_at..];
        for (i, part) in pass.iter().enumerate() {
            let n_frames = part.log_mel.len() / n_mels;
            let n_rows = n_frames / 2;
            let stream = &*part.stream;
            let position = stream.n_encoded_rows as i32;
            // a segment's frames come after the two before it, and so do its rows of the first convolution, after one
            let first_frame = (frame + 2 * i) as i32;
            if how.in_one_kernel {
                rings.push(ring_map(device, stream.encoder_ring.address(), e)?);
            }
            segments.push(Segment {
                ring: stream.encoder_ring.address(),
                conv_tail: stream.conv_tail.address(),
                mel_tail: stream.mel_tail.address(),
                first_row: row as i32,
                n_rows: n_rows as i32,
                position,
                first_conv: first_frame,
            });
            let [tiles, positions, conv0_in, conv0_out, conv1_in] = &mut tables;
            tiles.extend((0..n_rows).step_by(how.attention.tile()).flat_map(|first| [i as i32, first as i32]));
            positions.extend((0..n_rows as i32).map(|r| position + r));
            conv0_in.extend((0..n_frames as i32).map(|f| first_frame + f));
            conv0_out.extend((0..n_frames as i32).map(|f| first_frame + 1 + f));
            conv1_in.extend((0..n_rows as i32).map(|r| first_frame + 2 * r));

            let bytes = bytes_of(part.log_mel);
            let (own, others) = std::mem::take(&mut rest).split_at_mut(bytes.len());
            own.par_chunks_mut(COPY_BYTES)
                .zip(bytes.par_chunks(COPY_BYTES))
                .for_each(|(to, from)| to.copy_from_slice(from));
            rest = others;
            row += n_rows;
            frame += n_frames;
        }
        let used = frames_at + frame * n_mels * 4;
        let mut put = |at: usize, bytes: &[u8]| host[at..][..bytes.len()].copy_from_slice(bytes);
        put(0, bytes_of(&rings));
        put(segments_at, bytes_of(&segments));
        for (i, values) in tables.iter().enumerate() {
            put(table(i), bytes_of(values));
        }
        // SAFETY: the device block is as large; the host block stays as it is until the pass is over.
        unsafe { device.upload(base, &scratch.host.as_slice()[..used])? };
        Ok(layout)
    }

    fn launch(
        &self,
        kernels: &Kernels,
        shape: &[u32],
        How { attention, in_one_kernel }: How,
        layout: &Layout,
        trace: &mut Tracer,
    ) -> Result<()> {
        let (p, e) = (&self.params, &self.params.encoder);
        let s = self.scratch.as_ref().expect("reserved");
        let n_frames: u32 = shape.iter().sum();
        let rows = n_frames as usize / 2;
        let tokens = rows / DOWNSAMPLE;
        let n_tiles: usize = shape.iter().map(|&n| (n as usize / 2).div_ceil(attention.tile())).sum();
        let n_slots = encoder_slots(e);
        let longest = shape.iter().max().map_or(0, |&n| n as usize);
        // segments of a tile find room in the rings beside all that the pass looks back on
        let keep = attention == AttentionKind::Few && longest / 2 <= FEW_TILE;
        let dim = padded(e.dim);
        let qkv_width = padded(e.q_dim() + 2 * e.kv_dim());
        let product = |matrix: &Matrix, x: &Buffer, m: usize, out: &Buffer, epilogue: Epilogue| Gemm {
            weights: matrix.address(),
            x: x.address(),
            x_rows: 0,
            bias: 0,
            out: out.address(),
            out_rows: 0,
            rope: 0,
            x_stride: matrix.k as i32,
            out_stride: matrix.n as i32,
            m: m as i32,
            n: matrix.n as i32,
            k: matrix.k as i32,
            epilogue,
            n_turned: (e.q_dim() + e.kv_dim()) as i32,
            head_dim: e.head_dim as i32,
        };
        let bias = |bias: &Option<Buffer>| bias.as_ref().map_or(0, Buffer::address);
        let norm = |weight: &Buffer| RmsNorm {
            x: s.x.address(),
            weight: weight.address(),
            h: s.h.address(),
            dim: e.dim as i32,
            stride: dim as i32,
            eps: e.norm_eps,
        };

        // SAFETY: the scratch memory holds `n_frames` frames and rows of every width used here, the tables were filled
        // for this shape, and matrices and rings have the sizes that the parameters say.
        unsafe {
            let [(conv0, bias0), (conv1, bias1)] = &self.conv;
            kernels.mel_frames(
                longest,
                shape.len(),
                &MelFrames {
                    segments: layout.segments,
                    frames: layout.frames,
                    out: s.mel.address(),
                    n_mels: p.n_mels as i32,
                    width: padded(p.n_mels) as i32,
                },
            )?;
            kernels.gemm(&Gemm {
                x_rows: layout.conv0_in,
                x_stride: padded(p.n_mels) as i32,
                bias: bias0.address(),
                out_rows: layout.conv0_out,
                ..product(conv0, &s.mel, n_frames as usize, &s.conv, Epilogue::GeluF16)
            })?;
            kernels.conv_tails(
                shape.len(),
                &ConvTails { segments: layout.segments, y: s.conv.address(), stride: dim as i32 },
            )?;
            kernels.gemm(&Gemm {
                x_rows: layout.conv1_in,
                x_stride: dim as i32,
                bias: bias1.address(),
                ..product(conv1, &s.conv, rows, &s.x, Epilogue::GeluF32)
            })?;
            trace.f32("conv", 0, &s.x, rows, dim, e.dim)?;
            kernels.rope_angles(
                rows,
                &RopeAngles {
                    positions: layout.positions,
                    frequencies: self.frequencies.address(),
                    angles: s.angles.address(),
                    half: e.head_dim as i32 / 2,
                },
            )?;

            if let Some(kernel) = self.layers_kernel.as_ref().filter(|_| in_one_kernel) {
                let pass = LayersPass {
                    rows,
                    n_segments: shape.len(),
                    segments: layout.segments,
                    rings: layout.rings,
                    rope: s.angles.address(),
                    residual: s.x.address(),
                };
                let at_once = if trace.is_on() { 1 } else { e.n_layers };
                for first in (0..e.n_layers).step_by(at_once) {
                    kernel.launch(kernels.device(), &pass, first..(first + at_once))?;
                    trace.f32("encoder_layer", first, &s.x, rows, dim, e.dim)?;
                }
            }
            let one_by_one = if in_one_kernel { &[][..] } else { &self.layers };
            for (i, layer) in one_by_one.iter().enumerate() {
                let qkv = Gemm {
                    bias: bias(&layer.qkv_bias),
                    rope: s.angles.address(),
                    ..product(&layer.qkv, &s.h, rows, &s.qkv, Epilogue::QkvF16)
                };
                kernels.rms_norm(rows, &norm(&layer.attention_norm))?;
                kernels.gemm(&qkv)?;
                kernels.encoder_attention().launch(
                    kernels.device(),
                    attention,
                    [rows, n_tiles],
                    e.n_heads,
                    &EncoderAttention {
                        segments: layout.segments,
                        tiles: layout.tiles,
                        qkv: s.qkv.address(),
                        out: s.attended.address(),
                        stride: qkv_width as i32,
                        out_stride: padded(e.q_dim()) as i32,
                        q_dim: e.q_dim() as i32,
                        kv_dim: e.kv_dim() as i32,
                        group: (e.n_heads / e.n_kv_heads) as i32,
                        layer: i as i32,
                        n_slots: n_slots as i32,
                        window: e.sliding_window as i32,
                        scale: super::softmax_scale(e),
                        keep: i32::from(keep),
                    },
                )?;
                if !keep {
                    kernels.keep_keys(
                        (longest / 2).min(n_slots),
                        shape.len(),
                        &KeepKeys {
                            segments: layout.segments,
                            qkv: s.qkv.address(),
                            stride: qkv_width as i32,
                            q_dim: e.q_dim() as i32,
                            kv_dim: e.kv_dim() as i32,
                            layer: i as i32,
                            n_slots: n_slots as i32,
                        },
                    )?;
                }
                let wo = product(&layer.wo, &s.attended, rows, &s.x, Epilogue::AddF32);
                kernels.gemm(&Gemm { bias: bias(&layer.wo_bias), ..wo })?;
                let w13 = Gemm {
                    out_stride: padded(e.hidden_dim) as i32,
                    ..product(&layer.w13, &s.h, rows, &s.hidden, Epilogue::SwigluF16)
                };
                kernels.rms_norm(rows, &norm(&layer.ffn_norm))?;
                kernels.gemm(&w13)?;
                let w2 = product(&layer.w2, &s.hidden, rows, &s.x, Epilogue::AddF32);
                kernels.gemm(&Gemm { bias: bias(&layer.w2_bias), ..w2 })?;
                trace.f32("encoder_layer", i, &s.x, rows, dim, e.dim)?;
            }

            // four neighbouring rows side by side are one row of the adapter's input
            kernels.rms_norm(rows, &norm(&self.norm))?;
            trace.f16("encoder_norm", 0, &s.h, rows, dim, e.dim)?;
            let [first, second] = &self.adapter;
            kernels.gemm(&product(first, &s.h, tokens, &s.joined, Epilogue::GeluF16))?;
            kernels.gemm(&product(second, &s.joined, tokens, &s.embeddings, Epilogue::StoreF32))?;
            trace.f32("adapter", 0, &s.embeddings, tokens, padded(p.decoder.dim), p.decoder.dim)
        }
    }
}
