//! The decoder's weights on the GPU: packed for passes, in part on the host where there is too little room, and a second time
//! as F16 where there is much.

use std::sync::Arc;

use super::super::device::{Address, Buffer, Device, Pinned};
use super::super::launch::{Kernels, WidenTiles};
use super::super::library_pass::Widths;
use super::super::pass::{Pass, PassLayer};
use super::super::weights::{Loader, Tiles, padded};
use crate::Result;
use crate::backend::CudaOptions;
use crate::model::Weights;
use crate::model::params::{Params, TransformerParams};
use crate::model::weights::LayerWeights;

/// GPU memory that is left for activations and streams when it is decided how many layers fit.
const WORKING_BYTES: usize = 2 << 30;
/// GPU memory that is left for streams where weights are kept widened as well.
const ROOMY_BYTES: usize = 24 << 30;

/// What passes only read.
pub struct DecoderWeights {
    pub params: Params,
    pub layers: Vec<Layer>,
    /// Where the matrices of layers that stay on the host go for a pass.
    pub staging: Option<Buffer>,
    /// Token embeddings and output matrix.
    pub head: Buffer,
    /// The output matrix in 8 bits, if that is what is multiplied with.
    pub int8_head: Option<Buffer>,
    pub norm: Buffer,
    pub frequencies: Buffer,
    pub layout: LayerLayout,
    pub widened: Option<Widened>,
}

/// Weights as F16, for passes of many rows. The numbers are those of 12 bits.
pub struct Widened {
    layers: Vec<Buffer>,
    head: Buffer,
    layout: LayerLayout,
}

/// Where the matrices of a layer lie in one block of memory.
#[derive(Clone, Copy)]
pub struct LayerLayout {
    pub wo: usize,
    pub w13: usize,
    pub w2: usize,
    pub n_bytes: usize,
}

pub struct Layer {
    pub attention_norm: Buffer,
    pub ffn_norm: Buffer,
    pub matrices: Place,
}

/// Where a layer's matrices stay.
pub enum Place {
    Device(Buffer),
    Host(Pinned<u8>),
}

/// Shapes of a layer's matrices: `wqkv`, `wo`, `w13` and `w2`.
pub fn layer_tiles(p: &TransformerParams) -> [Tiles; 4] {
    [
        Tiles::e4m7(p.q_dim() + 2 * p.kv_dim(), p.dim),
        Tiles::e4m7(p.dim, p.q_dim()),
        Tiles::e4m7(2 * p.hidden_dim.next_multiple_of(8), p.dim),
        Tiles::e4m7(p.dim, p.hidden_dim),
    ]
}

impl LayerLayout {
    pub fn new(tiles: [Tiles; 4]) -> Self {
        let [wqkv, wo, w13, w2] = tiles.map(Tiles::n_bytes);
        Self { wo: wqkv, w13: wqkv + wo, w2: wqkv + wo + w13, n_bytes: wqkv + wo + w13 + w2 }
    }

    /// Where the four matrices begin.
    fn offsets(&self) -> [usize; 4] {
        [0, self.wo, self.w13, self.w2]
    }

    /// Packs a layer's matrices into zeros at `to`.
    pub fn pack<'a>(
        &self,
        loader: &mut Loader<'a>,
        p: &TransformerParams,
        w: &'a LayerWeights,
        to: Address,
    ) -> Result<()> {
        let (a, f) = (&w.attention, &w.feed_forward);
        let (q, kv) = (p.q_dim(), p.kv_dim());
        let [wqkv, wo, w13, w2] = layer_tiles(p);
        let at = |offset: usize| to + offset as u64;
        loader.pack_tiles(&a.wq, wqkv, to, 0, -1)?;
        loader.pack_tiles(&a.wk, wqkv, to, q, -1)?;
        loader.pack_tiles(&a.wv, wqkv, to, q + kv, -1)?;
        loader.pack_tiles(&a.wo, wo, at(self.wo), 0, -1)?;
        loader.pack_tiles(&f.w1, w13, at(self.w13), 0, 0)?;
        loader.pack_tiles(&f.w3, w13, at(self.w13), 0, 1)?;
        loader.pack_tiles(&f.w2, w2, at(self.w2), 0, -1)
    }
}

impl DecoderWeights {
    /// With `widths`, matrices are in the order of a library that multiplies with them.
    pub fn load<'a>(
        loader: &mut Loader<'a>,
        device: &Arc<Device>,
        weights: &'a Weights,
        options: &CudaOptions,
        widths: Option<&Widths>,
    ) -> Result<Self> {
        let p = weights.params;
        let d = p.decoder;
        let head = match widths {
            Some(widths) => widths.pack_head(loader, device, &weights.tok_embeddings)?,
            None => {
                let tiles = Tiles::e4m7(p.vocab_size, d.dim);
                let head = device.alloc_zeros(tiles.n_bytes())?;
                loader.pack_tiles(&weights.tok_embeddings, tiles, head.address(), 0, -1)?;
                head
            }
        };
        let int8_head = match options.logits_int8 {
            true => {
                let tiles = Tiles::int8(p.vocab_size, d.dim);
                let head = device.alloc_zeros(tiles.n_bytes())?;
                loader.quantise_rows(&weights.tok_embeddings, tiles, head.address())?;
                Some(head)
            }
            false => None,
        };
        let head_bytes = head.n_bytes() + int8_head.as_ref().map_or(0, Buffer::n_bytes);
        let layout = widths.map_or_else(|| LayerLayout::new(layer_tiles(&d)), Widths::layer);
        let n_resident = match widths {
            Some(_) => d.n_layers,
            None => n_resident(device, &p, head_bytes, layout.n_bytes, options.weight_cache_bytes)?,
        };
        let staging = (n_resident < d.n_layers).then(|| device.alloc_zeros(layout.n_bytes)).transpose()?;
        if staging.is_some() {
            let (n, all) = (d.n_layers - n_resident, d.n_layers);
            tracing::warn!("{n} of {all} decoder layers stay on the host and are sent to the GPU for every pass");
        }
        let mut layers = Vec::with_capacity(d.n_layers);
        for (i, w) in weights.decoder.iter().enumerate() {
            let matrices = match &staging {
                Some(staging) if i >= n_resident => {
                    layout.pack(loader, &d, w, staging.address())?;
                    loader.flush()?;
                    let mut host = Pinned::new(device, layout.n_bytes)?;
                    // SAFETY: the buffer has that size.
                    unsafe { device.download(host.as_mut_slice(), staging.address())? };
                    Place::Host(host)
                }
                _ => {
                    let matrices = device.alloc_zeros(layout.n_bytes)?;
                    match widths {
                        Some(widths) => widths.pack(loader, &d, w, matrices.address())?,
                        None => layout.pack(loader, &d, w, matrices.address())?,
                    }
                    Place::Device(matrices)
                }
            };
            let (attention_norm, ffn_norm) = (loader.vector(&w.attention_norm)?, loader.vector(&w.ffn_norm)?);
            layers.push(Layer { attention_norm, ffn_norm, matrices });
        }
        let mut loaded = Self {
            params: p,
            layers,
            staging,
            head,
            int8_head,
            norm: loader.vector(&weights.norm)?,
            frequencies: super::super::frequencies(device, &d)?,
            layout,
            widened: None,
        };
        let (bytes, widened_bytes) = (head_bytes + d.n_layers * layout.n_bytes, Widened::n_bytes(&p));
        let allowed = options.weight_cache_bytes.is_none_or(|most| (bytes + widened_bytes) as u64 <= most);
        let useful = device.has_hopper_kernels() && widths.is_none() && loaded.staging.is_none();
        if useful && allowed && device.memory()?.0 >= widened_bytes + encoder_bytes(&p.encoder) + ROOMY_BYTES {
            loader.flush()?;
            loaded.widened = Some(Widened::new(loader.kernels(), &loaded)?);
        }
        Ok(loaded)
    }

    /// Bytes that one pass reads.
    pub fn n_bytes(&self) -> usize {
        let head = self.int8_head.as_ref().unwrap_or(&self.head);
        head.n_bytes() + self.layers.len() * self.layout.n_bytes
    }

    /// Where a layer's matrices are while it runs.
    pub fn address(&self, layer: &Layer) -> Address {
        match (&layer.matrices, &self.staging) {
            (Place::Device(matrices), _) | (Place::Host(_), Some(matrices)) => matrices.address(),
            (Place::Host(_), None) => unreachable!("layers on the host have a staging buffer"),
        }
    }
}

/// The output matrix's shape, and a layer's layout, as F16.
fn widened_shapes(p: &Params) -> (Tiles, LayerLayout) {
    let head = Tiles::e4m7(p.vocab_size, p.decoder.dim).widened();
    (head, LayerLayout::new(layer_tiles(&p.decoder).map(Tiles::widened)))
}

impl Widened {
    fn n_bytes(p: &Params) -> usize {
        let (head, layout) = widened_shapes(p);
        head.n_bytes() + p.decoder.n_layers * layout.n_bytes
    }

    /// From weights that are all on the GPU.
    pub fn new(kernels: &Kernels, weights: &DecoderWeights) -> Result<Self> {
        let (device, p) = (kernels.device(), &weights.params.decoder);
        let widen = |from: Address, to: Address, tiles: Tiles| {
            let wide = tiles.widened();
            let a = WidenTiles { source: from, destination: to, n_pieces: tiles.n_pieces() as i32 };
            let scales = [to + wide.scales_at() as u64, from + tiles.scales_at() as u64];
            // SAFETY: both matrices have that shape.
            unsafe {
                kernels.widen_tiles(&a)?;
                device.copy(scales[0], scales[1], tiles.n_scale_bytes())
            }
        };
        let (tiles, head_tiles) = (layer_tiles(p), Tiles::e4m7(weights.params.vocab_size, p.dim));
        let (wide_head, layout) = widened_shapes(&weights.params);
        let head = device.alloc(wide_head.n_bytes())?;
        widen(weights.head.address(), head.address(), head_tiles)?;
        let mut layers = Vec::with_capacity(p.n_layers);
        for layer in &weights.layers {
            let wide = device.alloc(layout.n_bytes)?;
            let (from, to) = (weights.layout.offsets(), layout.offsets());
            for ((from, to), tiles) in from.into_iter().zip(to).zip(tiles) {
                widen(weights.address(layer) + from as u64, wide.address() + to as u64, tiles)?;
            }
            layers.push(wide);
        }
        Ok(Self { layers, head, layout })
    }

    /// The parameters with these weights.
    pub fn replace(&self, pass: &Pass) -> Pass {
        let mut pass = Pass { head: self.head.address(), ..*pass };
        for (to, layer) in pass.layers.iter_mut().zip(&self.layers) {
            let [wqkv, wo, w13, w2] = self.layout.offsets().map(|offset| layer.address() + offset as u64);
            *to = PassLayer { wqkv, wo, w13, w2, ..*to };
        }
        pass
    }
}

/// Bytes of the encoder's layers, which are loaded later.
fn encoder_bytes(p: &TransformerParams) -> usize {
    let per_layer = padded(p.dim) * (2 * padded(p.q_dim()) + 2 * padded(p.kv_dim()) + 3 * padded(p.hidden_dim));
    2 * p.n_layers * per_layer
}

/// How many layers stay on the GPU: as many as `cache_bytes` say, or as fit beside the encoder, whose weights come later.
fn n_resident(device: &Device, p: &Params, head: usize, layer: usize, cache_bytes: Option<u64>) -> Result<usize> {
    let room = match cache_bytes {
        Some(bytes) => usize::try_from(bytes).unwrap_or(usize::MAX).saturating_sub(head),
        None => device.memory()?.0.saturating_sub(encoder_bytes(&p.encoder) + WORKING_BYTES),
    };
    Ok((room / layer).min(p.decoder.n_layers))
}
