//! State of one stream on the device.

use std::collections::VecDeque;
use std::sync::Arc;

use half::f16;

use super::attention::{FEW_TILE, KEYS};
use super::device::{Address, Buffer, Device, bytes_of_mut};
use super::pass::{CHUNK, HEAD_DIM};
use crate::model::params::TransformerParams;
use crate::{Error, Result};

/// Positions that a fresh decoder ring has room for; it doubles until it holds the window.
const FIRST_SLOTS: usize = 512;

/// Embeddings of consecutive positions, `[n, dim]` in F32.
struct Embeddings {
    first: u64,
    n: usize,
    buffer: Buffer,
}

/// State of one stream.
pub struct CudaStream {
    /// Last mel frames in F16, `[2, n_mels]`.
    pub(super) mel_tail: Buffer,
    /// Last row of the first convolution in F16, `[padded dim]`.
    pub(super) conv_tail: Buffer,
    /// Keys after rotation and values in F16, `[n_layers, 2, encoder_slots, kv_dim]`; position `p` in slot
    /// `p % encoder_slots`.
    pub(super) encoder_ring: Buffer,
    /// Encoder rows so far.
    pub(super) n_encoded_rows: u64,
    /// Whether an encoder pass over the stream began and did not end: the state above is then of no use.
    pub(super) struck: bool,
    /// `[n_layers, 2]` planes; `kernels/decoder_attention.cuh` has their layout.
    pub(super) decoder_ring: Buffer,
    /// A multiple of [`CHUNK`].
    pub(super) n_slots: usize,
    /// Decoder positions so far.
    pub(super) position: u64,
    embeddings: VecDeque<Embeddings>,
    n_embeddings: u64,
    /// `1 + ada`, `[n_layers, dim]`
    pub(super) ffn_scale: Arc<Buffer>,
}

/// Slots of an encoder ring: the rows before a pass that its first query sees, and room for those of a pass of few.
pub fn encoder_slots(p: &TransformerParams) -> usize {
    (p.sliding_window - 1 + FEW_TILE).next_multiple_of(KEYS)
}

fn ring_bytes(p: &TransformerParams, n_slots: usize) -> usize {
    p.n_layers * 2 * n_slots * p.kv_dim() * 2
}

impl CudaStream {
    pub fn new(
        device: &Arc<Device>,
        encoder: &TransformerParams,
        decoder: &TransformerParams,
        widths: [usize; 2],
        ffn_scale: Arc<Buffer>,
    ) -> Result<Self> {
        let [n_mels, dim] = widths;
        let n_slots = FIRST_SLOTS;
        Ok(Self {
            mel_tail: device.alloc_zeros(2 * n_mels * 2)?,
            conv_tail: device.alloc_zeros(dim * 2)?,
            encoder_ring: device.alloc(ring_bytes(encoder, encoder_slots(encoder)))?,
            n_encoded_rows: 0,
            struck: false,
            decoder_ring: device.alloc_zeros(ring_bytes(decoder, n_slots))?,
            n_slots,
            position: 0,
            embeddings: VecDeque::new(),
            n_embeddings: 0,
            ffn_scale,
        })
    }

    /// A copy, made in the order of the device's work.
    pub fn fork(&self, device: &Arc<Device>, encoder: &TransformerParams, decoder: &TransformerParams) -> Result<Self> {
        if self.struck {
            return Err(Error::Backend("CUDA: a stream that was struck in the middle of an encoder pass".into()));
        }
        let copy = |from: &Buffer| {
            let to = device.alloc(from.n_bytes())?;
            // SAFETY: both have that size.
            unsafe { device.copy(to.address(), from.address(), from.n_bytes())? };
            Ok(to)
        };
        // of the first `n` of so many slots, whole rings where all may be in use
        let copy_slots = |to: &Buffer, from: &Buffer, n_rings: usize, slot_bytes: usize, n: u64| {
            let stride = from.n_bytes() / n_rings;
            let n_bytes = usize::try_from(n).unwrap_or(usize::MAX).saturating_mul(slot_bytes).min(stride);
            // SAFETY: both have so many rings of that stride.
            unsafe { device.copy_rows([to.address(), from.address()], [stride; 2], n_rings, n_bytes) }
        };
        let encoder_ring = device.alloc(self.encoder_ring.n_bytes())?;
        let (n_rings, slot_bytes) = (2 * encoder.n_layers, encoder.kv_dim() * 2);
        copy_slots(&encoder_ring, &self.encoder_ring, n_rings, slot_bytes, self.n_encoded_rows)?;
        // values lie in blocks of 32 slots
        let decoder_ring = device.alloc_zeros(self.decoder_ring.n_bytes())?;
        let n_rings = 2 * decoder.n_layers * decoder.n_kv_heads;
        let used = self.position.next_multiple_of(32);
        copy_slots(&decoder_ring, &self.decoder_ring, n_rings, HEAD_DIM * 2, used)?;
        let embeddings =
            self.embeddings.iter().map(|e| Ok(Embeddings { first: e.first, n: e.n, buffer: copy(&e.buffer)? }));
        Ok(Self {
            mel_tail: copy(&self.mel_tail)?,
            conv_tail: copy(&self.conv_tail)?,
            encoder_ring,
            n_encoded_rows: self.n_encoded_rows,
            struck: false,
            decoder_ring,
            n_slots: self.n_slots,
            position: self.position,
            embeddings: embeddings.collect::<Result<_>>()?,
            n_embeddings: self.n_embeddings,
            ffn_scale: self.ffn_scale.clone(),
        })
    }

    /// Bytes of a stream of so many positions, whose rings take nearly all of it.
    pub fn n_bytes(encoder: &TransformerParams, decoder: &TransformerParams, n_positions: usize) -> usize {
        let n_slots = n_positions.min(decoder.sliding_window).next_power_of_two().max(FIRST_SLOTS);
        ring_bytes(encoder, encoder_slots(encoder)) + ring_bytes(decoder, n_slots)
    }

    /// Decoder positions so far.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Makes room in the decoder ring for positions up to `end`, at most `max_rows` of them new in one pass.
    pub fn reserve(&mut self, device: &Arc<Device>, p: &TransformerParams, end: u64, max_rows: usize) -> Result<()> {
        let full = (p.sliding_window + max_rows).next_multiple_of(CHUNK);
        let wanted = usize::try_from(end).unwrap_or(usize::MAX).min(full);
        if wanted <= self.n_slots {
            return Ok(());
        }
        let n_slots = wanted.next_power_of_two().min(full).max(FIRST_SLOTS);
        let ring = device.alloc_zeros(ring_bytes(p, n_slots))?;
        // nothing has wrapped around yet: slots are positions, and each head's come one after the other
        let head = |n: usize| n * p.head_dim * 2;
        let n_heads = p.n_layers * 2 * p.n_kv_heads;
        let (to, from) = (ring.address(), self.decoder_ring.address());
        // SAFETY: both rings have so many heads of their size, of which the old one is the smaller.
        unsafe { device.copy_rows([to, from], [head(n_slots), head(self.n_slots)], n_heads, head(self.n_slots))? };
        self.decoder_ring = ring;
        self.n_slots = n_slots;
        Ok(())
    }

    /// Keys and values of the decoder positions from `first` on, for each layer: `[n_positions, kv_dim]`. `first` must be
    /// in the ring still.
    pub fn decoder_kv(&self, device: &Device, p: &TransformerParams, first: u64) -> Result<Vec<[Vec<f32>; 2]>> {
        assert!(self.position - first <= self.n_slots as u64, "positions that are gone");
        let mut ring = vec![0u16; p.n_layers * 2 * self.n_slots * p.kv_dim()];
        // SAFETY: that is the ring's size.
        unsafe { device.download(bytes_of_mut(&mut ring), self.decoder_ring.address())? };
        let plane = |i: usize| {
            let plane = &ring[i * self.n_slots * p.kv_dim()..][..self.n_slots * p.kv_dim()];
            let is_value = i % 2 == 1;
            let mut rows = Vec::with_capacity((self.position - first) as usize * p.kv_dim());
            for position in first..self.position {
                let slot = (position % self.n_slots as u64) as usize;
                for head in plane.chunks_exact(self.n_slots * HEAD_DIM) {
                    rows.extend((0..HEAD_DIM).map(|d| {
                        let at =
                            if is_value { (slot / 32 * HEAD_DIM + d) * 32 + slot % 32 } else { slot * HEAD_DIM + d };
                        f16::from_bits(head[at]).to_f32()
                    }));
                }
            }
            rows
        };
        Ok((0..p.n_layers).map(|layer| [plane(2 * layer), plane(2 * layer + 1)]).collect())
    }

    /// Last two mel frames, `[2, n_mels]`, and last row of the first convolution, `[dim]`.
    pub fn encoder_tails(&self, device: &Device, dim: usize) -> Result<[Vec<f32>; 2]> {
        let mel = self.mel_tail.download(device, 0, self.mel_tail.n_bytes() / 2)?;
        Ok([mel, self.conv_tail.download(device, 0, dim)?])
    }

    /// Keys and values of the encoder rows from `first` on, for each layer: `[n_rows, kv_dim]`. `first` must be in the
    /// ring still, whose slots `encoder_slots` says.
    pub fn encoder_kv(&self, device: &Device, p: &TransformerParams, first: u64) -> Result<Vec<[Vec<f32>; 2]>> {
        let (n_slots, kv_dim) = (encoder_slots(p), p.kv_dim());
        assert!(self.n_encoded_rows - first <= n_slots as u64, "rows that are gone");
        // slots come into use one after the other
        let n_used = self.n_encoded_rows.min(n_slots as u64) as usize;
        let plane = |i: usize| {
            let plane = self.encoder_ring.download(device, i * n_slots * kv_dim, n_used * kv_dim)?;
            let slots = (first..self.n_encoded_rows).map(|position| (position % n_slots as u64) as usize);
            Ok(slots.flat_map(|slot| &plane[slot * kv_dim..][..kv_dim]).copied().collect())
        };
        (0..p.n_layers).map(|layer| Ok([plane(2 * layer)?, plane(2 * layer + 1)?])).collect()
    }

    /// The position of the first embedding that is kept, and all of them, `[n, dim]`.
    pub fn kept_embeddings(&self, device: &Device, dim: usize) -> Result<(u64, Vec<f32>)> {
        let mut kept = Vec::new();
        for embeddings in &self.embeddings {
            let width = embeddings.buffer.n_bytes() / 4 / embeddings.n;
            let mut rows = vec![0f32; embeddings.n * width];
            // SAFETY: that is the buffer's size.
            unsafe { device.download(bytes_of_mut(&mut rows), embeddings.buffer.address())? };
            kept.extend(rows.chunks_exact(width).flat_map(|row| &row[..dim]));
        }
        Ok((self.first_embedding(), kept))
    }

    /// Adds embeddings, `[n, dim]`.
    pub fn push_embeddings(&mut self, buffer: Buffer, n: usize) {
        self.embeddings.push_back(Embeddings { first: self.n_embeddings, n, buffer });
        self.n_embeddings += n as u64;
    }

    /// Embeddings from the stream's position on.
    pub fn n_waiting(&self) -> usize {
        (self.n_embeddings - self.position) as usize
    }

    /// Where a position's embedding is; `row_bytes` is its size.
    pub fn embedding(&self, position: u64, row_bytes: usize) -> Address {
        let chunk = self.embeddings.iter().find(|e| position < e.first + e.n as u64);
        let chunk = chunk.expect("checked by the caller");
        chunk.buffer.address() + (position - chunk.first) * row_bytes as u64
    }

    /// Frees embeddings before the stream's position.
    pub fn forget(&mut self) {
        while self.embeddings.front().is_some_and(|e| e.first + e.n as u64 <= self.position) {
            self.embeddings.pop_front();
        }
    }

    /// The first position that the stream can be rewound to.
    pub fn first_embedding(&self) -> u64 {
        self.embeddings.front().map_or(self.n_embeddings, |e| e.first)
    }
}
