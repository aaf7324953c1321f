//! Weights on the device: merged, padded and repacked into the matrix unit's order.
//!
//! [`Loader`] copies tensors from the mapped file into page-locked staging memory with all threads, several blocks ahead
//! of the transfer, which in turn runs beside the repacking of the block before. Every width on the device is padded with
//! zeros to a multiple of [`ALIGN`].

use cudarc::driver::CudaEvent;
use rayon::prelude::*;

use super::device::{Address, Buffer, Pinned, Registered};
use super::launch::{Kernels, Pack, PackRows, PackTiles, QuantiseRows, Widen};
use crate::Result;
use crate::model::params::{DOWNSAMPLE, TransformerParams};
use crate::model::weights::{ConvWeights, LayerWeights, Tensor};

/// Widths are multiples of this: no product has a rest.
pub const ALIGN: usize = 128;
/// A staging block.
const BLOCK_BYTES: usize = 32 << 20;
/// Blocks being filled, transferred and repacked.
const N_BLOCKS: usize = 4;
/// Rows of one repacking launch.
const MAX_ROWS: usize = 32_768;
/// Bytes copied by one thread at a time.
const PART_BYTES: usize = 1 << 20;

/// A width on the device.
pub fn padded(width: usize) -> usize {
    width.next_multiple_of(ALIGN)
}

/// A packed matrix, `[n, k]`.
pub struct Matrix {
    buffer: Buffer,
    pub n: usize,
    pub k: usize,
}

impl Matrix {
    pub fn address(&self) -> Address {
        self.buffer.address()
    }

    pub fn n_bytes(&self) -> usize {
        self.buffer.n_bytes()
    }
}

/// Shape of a matrix of the decoder in its kernel's order: tiles of 16 rows, and then the rows' scales. See
/// `kernels/e4m7.cuh` for numbers of 12 bits, and `quantise_rows` in `kernels/decoder_pack.cu` for those of 8.
#[derive(Clone, Copy)]
pub struct Tiles {
    n: usize,
    k: usize,
    bits: usize,
}

impl Tiles {
    pub fn e4m7(n: usize, k: usize) -> Self {
        Self { n: n.next_multiple_of(16), k: columns(k), bits: 12 }
    }

    pub fn int8(n: usize, k: usize) -> Self {
        Self { bits: 8, ..Self::e4m7(n, k) }
    }

    /// Numbers of 12 bits as F16.
    pub fn widened(self) -> Self {
        Self { bits: 16, ..self }
    }

    /// Pieces of 16 rows by 64 columns.
    pub fn n_pieces(self) -> usize {
        self.n * self.k / (16 * 64)
    }

    pub fn n_scale_bytes(self) -> usize {
        self.n * size_of::<f32>()
    }

    /// Where the scales begin.
    pub fn scales_at(self) -> usize {
        self.n * self.k * self.bits / 8
    }

    pub fn n_bytes(self) -> usize {
        self.scales_at() + self.n_scale_bytes()
    }
}

/// Columns of a matrix in tiles, and of the rows that it is multiplied with.
pub fn columns(k: usize) -> usize {
    k.next_multiple_of(64)
}

/// One layer's weights.
pub struct Layer {
    pub attention_norm: Buffer,
    pub qkv: Matrix,
    pub qkv_bias: Option<Buffer>,
    pub wo: Matrix,
    pub wo_bias: Option<Buffer>,
    pub ffn_norm: Buffer,
    /// Rows of `w1` and `w3` by turns.
    pub w13: Matrix,
    pub w2: Matrix,
    pub w2_bias: Option<Buffer>,
}

impl Layer {
    /// Bytes of the matrices.
    pub fn n_bytes(&self) -> usize {
        [&self.qkv, &self.wo, &self.w13, &self.w2].iter().map(|m| m.n_bytes()).sum()
    }
}

/// Where a tensor's numbers go in a packed matrix; see `kernels/pack.cu`.
#[derive(Clone, Copy)]
struct Place {
    row_offset: usize,
    block: usize,
    block_stride: usize,
    taps: usize,
    half: i32,
}

enum Job {
    Pack(Pack),
    PackTiles(PackTiles),
    PackRows(PackRows),
    QuantiseRows(QuantiseRows),
    Widen(Widen),
}

struct Block {
    host: Pinned<u8>,
    device: Buffer,
    /// When its last transfer and the repacking from it were over.
    done: Option<CudaEvent>,
}

/// Moves tensors to the device.
pub struct Loader<'a> {
    kernels: &'a Kernels,
    blocks: Vec<Block>,
    current: usize,
    /// Bytes of the current block in use, and what is to be done with them.
    filled: usize,
    copies: Vec<(&'a [u8], usize)>,
    jobs: Vec<Job>,
    /// Part of the file that needs no staging.
    registered: Option<Registered<'a>>,
    pub n_bytes: usize,
}

impl<'a> Loader<'a> {
    pub fn new(kernels: &'a Kernels) -> Result<Self> {
        let device = kernels.device();
        let block =
            |_| Ok(Block { host: Pinned::new(device, BLOCK_BYTES)?, device: device.alloc(BLOCK_BYTES)?, done: None });
        let blocks = (0..N_BLOCKS).map(block).collect::<Result<_>>()?;
        Ok(Self {
            kernels,
            blocks,
            current: 0,
            filled: 0,
            copies: Vec::new(),
            jobs: Vec::new(),
            registered: None,
            n_bytes: 0,
        })
    }

    pub fn kernels(&self) -> &'a Kernels {
        self.kernels
    }

    /// Page-locks the first `n_bytes` of the mapped file, so that they need no staging; where that is refused they have it.
    pub fn register(&mut self, mapped: &'a [u8], n_bytes: u64) {
        let n_bytes = usize::try_from(n_bytes).unwrap_or(usize::MAX).min(mapped.len());
        if n_bytes > 0 {
            let registered = Registered::new(self.kernels.device(), &mapped[..n_bytes]);
            self.registered = registered.map_err(|error| tracing::warn!("{error}; loading goes on without")).ok();
        }
    }

    /// All layers of a stack.
    pub fn layers(&mut self, p: &TransformerParams, layers: &'a [LayerWeights]) -> Result<Vec<Layer>> {
        layers.iter().map(|layer| self.layer(p, layer)).collect()
    }

    fn layer(&mut self, p: &TransformerParams, w: &'a LayerWeights) -> Result<Layer> {
        let (q, kv) = (p.q_dim(), p.kv_dim());
        let (a, f) = (&w.attention, &w.feed_forward);
        let qkv = self.merged(&[&a.wq, &a.wk, &a.wv])?;
        let qkv_bias = match (&a.wq_bias, &a.wv_bias) {
            (Some(bias_q), Some(bias_v)) => {
                let bias = self.kernels.device().alloc_zeros(padded(q + 2 * kv) * 4)?;
                self.widen(bias_q, bias.address())?;
                self.widen(bias_v, bias.address() + (q + kv) as u64 * 4)?;
                Some(bias)
            }
            _ => None,
        };
        let hidden = padded(p.hidden_dim);
        let w13 = self.matrix(2 * hidden, padded(p.dim))?;
        for (half, tensor) in [(0, &f.w1), (1, &f.w3)] {
            self.pack(tensor, &w13, Place { half, ..Place::plain(tensor) })?;
        }
        Ok(Layer {
            attention_norm: self.vector(&w.attention_norm)?,
            qkv,
            qkv_bias,
            wo: self.merged(&[&a.wo])?,
            wo_bias: self.optional(a.wo_bias.as_ref())?,
            ffn_norm: self.vector(&w.ffn_norm)?,
            w13,
            w2: self.merged(&[&f.w2])?,
            w2_bias: self.optional(f.w2_bias.as_ref())?,
        })
    }

    /// A vector as padded F32.
    pub fn vector(&mut self, tensor: &'a Tensor) -> Result<Buffer> {
        let buffer = self.kernels.device().alloc_zeros(padded(tensor.shape()[0]) * 4)?;
        self.widen(tensor, buffer.address())?;
        Ok(buffer)
    }

    fn optional(&mut self, tensor: Option<&'a Tensor>) -> Result<Option<Buffer>> {
        tensor.map(|tensor| self.vector(tensor)).transpose()
    }

    /// Matrices of the same width, one below the other.
    pub fn merged(&mut self, tensors: &[&'a Tensor]) -> Result<Matrix> {
        let rows = tensors.iter().map(|t| t.shape()[0]).sum();
        let matrix = self.matrix(rows, padded(tensors[0].shape()[1]))?;
        let mut row_offset = 0;
        for tensor in tensors {
            self.pack(tensor, &matrix, Place { row_offset, ..Place::plain(tensor) })?;
            row_offset += tensor.shape()[0];
        }
        Ok(matrix)
    }

    /// The adapter's first matrix, whose input is `DOWNSAMPLE` padded rows side by side.
    pub fn joining(&mut self, tensor: &'a Tensor) -> Result<Matrix> {
        let block = tensor.shape()[1] / DOWNSAMPLE;
        let matrix = self.matrix(tensor.shape()[0], DOWNSAMPLE * padded(block))?;
        self.pack(tensor, &matrix, Place { block, block_stride: padded(block), ..Place::plain(tensor) })?;
        Ok(matrix)
    }

    /// A convolution as a matrix over `[taps, channels]`, and its bias.
    pub fn convolution(&mut self, conv: &'a ConvWeights) -> Result<(Matrix, Buffer)> {
        let &[dim, channels, taps] = conv.weight.shape() else { unreachable!("a checked shape") };
        let matrix = self.matrix(dim, taps * padded(channels))?;
        let place = Place { block_stride: padded(channels), taps, ..Place::plain(&conv.weight) };
        self.pack(&conv.weight, &matrix, place)?;
        Ok((matrix, self.vector(&conv.bias)?))
    }

    fn matrix(&self, rows: usize, k: usize) -> Result<Matrix> {
        let n = padded(rows);
        Ok(Matrix { buffer: self.kernels.device().alloc_zeros(n * k * 2)?, n, k })
    }

    fn pack(&mut self, tensor: &'a Tensor, matrix: &Matrix, place: Place) -> Result<()> {
        let rows = tensor.shape()[0];
        let bytes = tensor.data().as_flattened();
        let columns = tensor.data().len() / rows;
        let per_block = (BLOCK_BYTES / (2 * columns)).clamp(1, MAX_ROWS);
        for (i, bytes) in bytes.chunks(per_block * columns * 2).enumerate() {
            let source = self.stage(bytes)?;
            self.jobs.push(Job::Pack(Pack {
                source,
                destination: matrix.address(),
                rows: (bytes.len() / (2 * columns)) as i32,
                columns: columns as i32,
                first_row: (i * per_block) as i32,
                row_offset: place.row_offset as i32,
                k: matrix.k as i32,
                block: place.block as i32,
                block_stride: place.block_stride as i32,
                taps: place.taps as i32,
                half: place.half,
            }));
        }
        Ok(())
    }

    /// Puts a matrix into the decoder's order, in 12 bits. `destination` is a matrix of shape `to` that holds zeros, in which
    /// `tensor` begins at `row_offset`, or is one half of what SwiGLU needs.
    pub fn pack_tiles(
        &mut self,
        tensor: &'a Tensor,
        to: Tiles,
        destination: Address,
        row_offset: usize,
        half: i32,
    ) -> Result<()> {
        let columns = tensor.shape()[1];
        let per_block = (BLOCK_BYTES / (2 * columns)).clamp(1, MAX_ROWS);
        for (i, bytes) in tensor.data().as_flattened().chunks(per_block * columns * 2).enumerate() {
            let source = self.stage(bytes)?;
            self.jobs.push(Job::PackTiles(PackTiles {
                source,
                destination,
                scales: destination + to.scales_at() as u64,
                rows: (bytes.len() / (2 * columns)) as i32,
                columns: columns as i32,
                first_row: (i * per_block) as i32,
                row_offset: row_offset as i32,
                k: to.k as i32,
                half,
            }));
        }
        Ok(())
    }

    /// Puts a matrix from row `first_row` on into one of `k` columns that holds zeros.
    pub fn pack_rows(&mut self, tensor: &'a Tensor, destination: Address, k: usize, first_row: usize) -> Result<()> {
        let columns = tensor.shape()[1];
        let per_block = (BLOCK_BYTES / (2 * columns)).clamp(1, MAX_ROWS);
        for (i, bytes) in tensor.data().as_flattened().chunks(per_block * columns * 2).enumerate() {
            let source = self.stage(bytes)?;
            self.jobs.push(Job::PackRows(PackRows {
                source,
                destination,
                rows: (bytes.len() / (2 * columns)) as i32,
                columns: columns as i32,
                first_row: (first_row + i * per_block) as i32,
                k: k as i32,
            }));
        }
        Ok(())
    }

    /// Puts a matrix into the decoder's order, in 8 bits.
    pub fn quantise_rows(&mut self, tensor: &'a Tensor, to: Tiles, destination: Address) -> Result<()> {
        let columns = tensor.shape()[1];
        let per_block = (BLOCK_BYTES / (2 * columns)).clamp(1, MAX_ROWS);
        for (i, bytes) in tensor.data().as_flattened().chunks(per_block * columns * 2).enumerate() {
            let source = self.stage(bytes)?;
            self.jobs.push(Job::QuantiseRows(QuantiseRows {
                source,
                destination,
                scales: destination + to.scales_at() as u64,
                rows: (bytes.len() / (2 * columns)) as i32,
                columns: columns as i32,
                first_row: (i * per_block) as i32,
                k: to.k as i32,
            }));
        }
        Ok(())
    }

    fn widen(&mut self, tensor: &'a Tensor, destination: Address) -> Result<()> {
        let source = self.stage(tensor.data().as_flattened())?;
        self.jobs.push(Job::Widen(Widen { source, destination, n: tensor.data().len() as i32 }));
        Ok(())
    }

    /// Plans the copy of these bytes to the device; where they will be.
    fn stage(&mut self, bytes: &'a [u8]) -> Result<Address> {
        if self.filled + bytes.len() > BLOCK_BYTES {
            self.flush()?;
        }
        let at = self.filled;
        for (i, part) in bytes.chunks(PART_BYTES).enumerate() {
            self.copies.push((part, at + i * PART_BYTES));
        }
        self.filled = (at + bytes.len()).next_multiple_of(256);
        self.n_bytes += bytes.len();
        Ok(self.blocks[self.current].device.address() + at as u64)
    }

    /// Sends the current block on its way.
    pub fn flush(&mut self) -> Result<()> {
        let device = self.kernels.device();
        let filled = self.filled.min(BLOCK_BYTES);
        let block = &mut self.blocks[self.current];
        if let Some(done) = block.done.take() {
            done.synchronize().map_err(super::device::failed("loading weights"))?;
        }
        let is_registered =
            |&(source, _): &(&[u8], usize)| self.registered.as_ref().is_some_and(|r| r.contains(source));
        let direct = self.copies.iter().all(is_registered);
        if direct {
            for &(source, to) in &self.copies {
                // SAFETY: the block is as large on the device; the source is mapped as long as the loader lives.
                unsafe { device.upload(block.device.address() + to as u64, source)? };
            }
            self.copies.clear();
        }
        // the copies are in order and don't overlap: each gets the part of the block up to the next
        let mut rest = &mut block.host.as_mut_slice()[..filled];
        let mut at = 0;
        let mut parts = Vec::with_capacity(self.copies.len());
        for &(source, to) in &self.copies {
            let (part, after) = std::mem::take(&mut rest)[to - at..].split_at_mut(source.len());
            parts.push((source, part));
            (rest, at) = (after, to + source.len());
        }
        parts.into_par_iter().for_each(|(source, part)| part.copy_from_slice(source));
        // SAFETY: the block is as large on the device, and isn't written to before `done`. The jobs were planned for
        // matrices and vectors of their shapes.
        unsafe {
            if !direct {
                device.upload(block.device.address(), &block.host.as_slice()[..filled])?;
            }
            for job in &self.jobs {
                match job {
                    Job::Pack(pack) => self.kernels.pack(pack)?,
                    Job::PackTiles(pack) => self.kernels.pack_tiles(pack)?,
                    Job::PackRows(pack) => self.kernels.pack_rows(pack)?,
                    Job::QuantiseRows(quantise) => self.kernels.quantise_rows(quantise)?,
                    Job::Widen(widen) => self.kernels.widen(widen)?,
                }
            }
        }
        block.done = Some(device.mark()?);
        self.current = (self.current + 1) % N_BLOCKS;
        self.filled = 0;
        self.copies.clear();
        self.jobs.clear();
        Ok(())
    }
}

impl Place {
    fn plain(tensor: &Tensor) -> Self {
        let columns = tensor.shape()[1..].iter().product();
        Self { row_offset: 0, block: columns, block_stride: columns, taps: 1, half: -1 }
    }
}
