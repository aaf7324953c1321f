//! `consolidated.safetensors`: the weights, described once and mapped into memory.
//!
//! Every tensor's name, shape and type is listed here and nowhere else. [`Weights::open`] checks them all and reports all
//! faults in one error; after it, a [`Tensor`] is a checked range of the one mapping, in BF16 as on disk.

use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use half::bf16;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};

use super::params::{DOWNSAMPLE, Params, TransformerParams};
use crate::{Error, Result};

const EMBEDDING_MODULE: &str = "mm_streams_embeddings.embedding_module";
/// Faults listed before the rest is only counted.
const MAX_FAULTS: usize = 20;

/// A BF16 tensor in the mapped file, row-major, little-endian, of any alignment.
#[derive(Clone)]
pub struct Tensor {
    map: Arc<Mmap>,
    range: Range<usize>,
    shape: Vec<usize>,
}

impl Tensor {
    /// A tensor of its own, for tests of kernels; values are rounded towards zero.
    #[cfg(test)]
    pub(crate) fn from_values(shape: &[usize], values: &[f32]) -> Self {
        assert_eq!(values.len(), shape.iter().product::<usize>());
        let bytes: Vec<u8> = values.iter().flat_map(|x| ((x.to_bits() >> 16) as u16).to_le_bytes()).collect();
        let mut map = memmap2::MmapMut::map_anon(bytes.len().max(1)).unwrap();
        map[..bytes.len()].copy_from_slice(&bytes);
        let map = Arc::new(map.make_read_only().unwrap());
        Self { map, range: 0..bytes.len(), shape: shape.to_vec() }
    }

    /// Dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Elements as the bytes of little-endian BF16 numbers.
    pub fn data(&self) -> &[[u8; 2]] {
        self.map[self.range.clone()].as_chunks().0
    }

    /// All elements, widened.
    pub fn to_f32(&self) -> Vec<f32> {
        self.data().iter().map(|&b| bf16::from_le_bytes(b).to_f32()).collect()
    }

    /// Size in bytes.
    pub fn n_bytes(&self) -> usize {
        self.range.len()
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Tensor{:?}", self.shape)
    }
}

/// A convolution's kernel `[out, in, 3]` and bias `[out]`.
#[derive(Debug, Clone)]
pub struct ConvWeights {
    pub weight: Tensor,
    pub bias: Tensor,
}

/// Attention projections, `[out, in]`; only the encoder has biases, and none for the keys.
#[derive(Debug, Clone)]
pub struct AttentionWeights {
    pub wq: Tensor,
    pub wk: Tensor,
    pub wv: Tensor,
    pub wo: Tensor,
    pub wq_bias: Option<Tensor>,
    pub wv_bias: Option<Tensor>,
    pub wo_bias: Option<Tensor>,
}

/// SwiGLU projections, `[out, in]`; only the encoder's `w2` has a bias.
#[derive(Debug, Clone)]
pub struct FeedForwardWeights {
    pub w1: Tensor,
    pub w2: Tensor,
    pub w3: Tensor,
    pub w2_bias: Option<Tensor>,
}

/// One transformer layer.
#[derive(Debug, Clone)]
pub struct LayerWeights {
    pub attention_norm: Tensor,
    pub attention: AttentionWeights,
    pub ffn_norm: Tensor,
    pub feed_forward: FeedForwardWeights,
    /// Delay conditioning of the decoder's layers: `[ada_dim, dim]` and `[dim, ada_dim]`.
    pub ada: Option<[Tensor; 2]>,
}

/// The whole model.
#[derive(Debug, Clone)]
pub struct Weights {
    pub params: Params,
    /// Token embeddings and output matrix, `[vocab_size, dim]`.
    pub tok_embeddings: Tensor,
    pub conv: [ConvWeights; 2],
    pub encoder: Vec<LayerWeights>,
    pub encoder_norm: Tensor,
    /// Adapter: `[dim, 4 * encoder dim]` and `[dim, dim]`.
    pub adapter: [Tensor; 2],
    pub decoder: Vec<LayerWeights>,
    pub norm: Tensor,
}

impl Weights {
    /// The file that all of them are in, as it is mapped.
    pub fn mapped(&self) -> &[u8] {
        &self.tok_embeddings.map
    }
}

/// Takes the expected tensors out of what the file lists.
struct Collector {
    map: Arc<Mmap>,
    found: HashMap<String, (Dtype, Vec<usize>, Range<usize>)>,
    faults: Vec<String>,
}

impl Collector {
    fn take(&mut self, name: &str, shape: &[usize]) -> Tensor {
        let range = match self.found.remove(name) {
            None => {
                self.faults.push(format!("{name} is missing"));
                0..0
            }
            Some((dtype, found, range)) => {
                if found != shape {
                    self.faults.push(format!("{name} has shape {found:?}, expected {shape:?}"));
                } else if dtype != Dtype::BF16 {
                    self.faults.push(format!("{name} is {dtype:?}, expected BF16"));
                }
                range
            }
        };
        Tensor { map: self.map.clone(), range, shape: shape.to_vec() }
    }

    fn layer(&mut self, prefix: &str, p: &TransformerParams, ada_dim: Option<usize>) -> LayerWeights {
        let mut take = |name: &str, shape: &[usize]| self.take(&format!("{prefix}{name}"), shape);
        // the decoder is the stack with the delay conditioning, the encoder the one with biases
        let biased = ada_dim.is_none();
        let mut bias = |name: &str, dim| biased.then(|| take(name, &[dim]));
        let wq_bias = bias("attention.wq.bias", p.q_dim());
        let wv_bias = bias("attention.wv.bias", p.kv_dim());
        let wo_bias = bias("attention.wo.bias", p.dim);
        let w2_bias = bias("feed_forward.w2.bias", p.dim);
        LayerWeights {
            attention_norm: take("attention_norm.weight", &[p.dim]),
            attention: AttentionWeights {
                wq: take("attention.wq.weight", &[p.q_dim(), p.dim]),
                wk: take("attention.wk.weight", &[p.kv_dim(), p.dim]),
                wv: take("attention.wv.weight", &[p.kv_dim(), p.dim]),
                wo: take("attention.wo.weight", &[p.dim, p.q_dim()]),
                wq_bias,
                wv_bias,
                wo_bias,
            },
            ffn_norm: take("ffn_norm.weight", &[p.dim]),
            feed_forward: FeedForwardWeights {
                w1: take("feed_forward.w1.weight", &[p.hidden_dim, p.dim]),
                w2: take("feed_forward.w2.weight", &[p.dim, p.hidden_dim]),
                w3: take("feed_forward.w3.weight", &[p.hidden_dim, p.dim]),
                w2_bias,
            },
            ada: ada_dim.map(|ada| {
                [
                    take("ada_rms_norm_t_cond.0.weight", &[ada, p.dim]),
                    take("ada_rms_norm_t_cond.2.weight", &[p.dim, ada]),
                ]
            }),
        }
    }
}

/// What stands before `layers.` in a tensor's name, and the layer's index.
fn layer_of(name: &str) -> Option<(&str, usize)> {
    let (prefix, rest) = name.split_once("layers.")?;
    Some((prefix, rest.split('.').next()?.parse().ok()?))
}

fn n_layers(prefix: &str, params: &Params) -> usize {
    match prefix {
        "" => params.decoder.n_layers,
        prefix if prefix.ends_with("transformer.") => params.encoder.n_layers,
        _ => usize::MAX,
    }
}

impl Weights {
    /// Size in bytes of all tensors: what follows the header and its length.
    pub fn n_bytes(&self) -> u64 {
        let map = &self.tok_embeddings.map;
        let header = map.first_chunk().map_or(0, |length| u64::from_le_bytes(*length));
        map.len() as u64 - 8 - header
    }

    /// Maps the file and checks that it holds exactly the tensors that these parameters ask for.
    ///
    /// The file must not be changed while it is mapped.
    pub fn open(path: &Path, params: &Params) -> Result<Self> {
        let io = |error| Error::Io { path: path.into(), error };
        let fault = |text: String| Error::Model { path: path.into(), faults: vec![text] };
        let file = File::open(path).map_err(io)?;
        if file.metadata().map_err(io)?.len() < 8 {
            return Err(fault("too short for a safetensors file".into()));
        }
        // SAFETY: the mapping is read-only; that nobody truncates the file meanwhile is a condition of this function.
        let map = Arc::new(unsafe { Mmap::map(&file) }.map_err(io)?);
        let tensors =
            SafeTensors::deserialize(&map).map_err(|e| fault(format!("not a complete safetensors file: {e}")))?;

        let base = map.as_ptr() as usize;
        let found = tensors.iter().map(|(name, view)| {
            let start = view.data().as_ptr() as usize - base;
            (name.to_owned(), (view.dtype(), view.shape().to_vec(), start..start + view.data().len()))
        });
        let mut collect = Collector { map: map.clone(), found: found.collect(), faults: Vec::new() };
        let weights = Self::collect(&mut collect, params);
        let mut faults = collect.faults;

        // tensors of layers beyond those of params.json mean that the two files do not belong together
        let mut unknown: Vec<_> = collect.found.into_keys().collect();
        unknown.sort_unstable();
        let beyond = |name: &String| layer_of(name).is_some_and(|(prefix, i)| i >= n_layers(prefix, params));
        let (beyond, extra): (Vec<_>, Vec<_>) = unknown.into_iter().partition(beyond);
        faults.extend(beyond.iter().map(|name| format!("{name} is unexpected: params.json has fewer layers")));
        if let Some(first) = extra.first() {
            tracing::warn!("{first} and {} more tensors are ignored: not of this architecture", extra.len() - 1);
        }
        if faults.len() > MAX_FAULTS {
            let more = faults.len() - MAX_FAULTS;
            faults.truncate(MAX_FAULTS);
            faults.push(format!("and {more} more"));
        }
        if faults.is_empty() { Ok(weights) } else { Err(Error::Model { path: path.into(), faults }) }
    }

    fn collect(c: &mut Collector, params: &Params) -> Self {
        let (e, d) = (params.encoder, params.decoder);
        let whisper = format!("{EMBEDDING_MODULE}.whisper_encoder");
        let projection = format!("{EMBEDDING_MODULE}.audio_language_projection");
        let tok_embeddings = c.take(&format!("{EMBEDDING_MODULE}.tok_embeddings.weight"), &[params.vocab_size, d.dim]);
        let conv = [(0, params.n_mels), (1, e.dim)].map(|(i, channels)| ConvWeights {
            weight: c.take(&format!("{whisper}.conv_layers.{i}.conv.weight"), &[e.dim, channels, 3]),
            bias: c.take(&format!("{whisper}.conv_layers.{i}.conv.bias"), &[e.dim]),
        });
        let encoder =
            (0..e.n_layers).map(|i| c.layer(&format!("{whisper}.transformer.layers.{i}."), &e, None)).collect();
        let encoder_norm = c.take(&format!("{whisper}.transformer.norm.weight"), &[e.dim]);
        let adapter = [(0, DOWNSAMPLE * e.dim), (2, d.dim)]
            .map(|(i, width)| c.take(&format!("{projection}.{i}.weight"), &[d.dim, width]));
        let decoder = (0..d.n_layers).map(|i| c.layer(&format!("layers.{i}."), &d, Some(params.ada_dim))).collect();
        let norm = c.take("norm.weight", &[d.dim]);
        Self { params: *params, tok_embeddings, conv, encoder, encoder_norm, adapter, decoder, norm }
    }
}
