//! A transformer stack: the layers that encoder and decoder have in common.

use super::attention::{KvRing, Rows, attend};
use super::elementwise::{Rope, add, for_rows, rms_norm, rotate, swiglu};
use super::matmul::{Product, multiply};
use super::simd::Isa;
use crate::Result;
use crate::backend::TraceSink;
use crate::model::params::TransformerParams;
use crate::model::weights::{LayerWeights, Tensor};

/// Weights of one layer; vectors are widened, matrices stay where they are.
struct Layer {
    weights: LayerWeights,
    attention_norm: Vec<f32>,
    ffn_norm: Vec<f32>,
    wq_bias: Option<Vec<f32>>,
    wv_bias: Option<Vec<f32>>,
    wo_bias: Option<Vec<f32>>,
    w2_bias: Option<Vec<f32>>,
}

/// Layers, final norm, and what they compute with.
pub struct Stack {
    pub params: TransformerParams,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    rope: Rope,
    isa: Isa,
    /// Name of a layer's output in traces.
    trace_name: &'static str,
}

/// Consecutive rows of one stream in a pass.
pub struct Segment<'a> {
    pub position: u64,
    pub n_rows: usize,
    /// One ring a layer.
    pub rings: &'a mut [KvRing],
    /// Factors on each layer's normed feed-forward input, `[n_layers][dim]`.
    pub ffn_scale: Option<&'a [Vec<f32>]>,
}

impl Stack {
    pub fn new(
        params: TransformerParams,
        layers: &[LayerWeights],
        norm: &Tensor,
        isa: Isa,
        trace_name: &'static str,
    ) -> Self {
        let vector = |t: &Option<Tensor>| t.as_ref().map(Tensor::to_f32);
        let layers = layers.iter().map(|weights| Layer {
            attention_norm: weights.attention_norm.to_f32(),
            ffn_norm: weights.ffn_norm.to_f32(),
            wq_bias: vector(&weights.attention.wq_bias),
            wv_bias: vector(&weights.attention.wv_bias),
            wo_bias: vector(&weights.attention.wo_bias),
            w2_bias: vector(&weights.feed_forward.w2_bias),
            weights: weights.clone(),
        });
        let rope = Rope::new(params.head_dim, params.rope_theta);
        Self { params, layers: layers.collect(), norm: norm.to_f32(), rope, isa, trace_name }
    }

    /// Rings for a stream whose passes have at most `max_rows` rows.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn rings(&self, max_rows: usize) -> Result<Vec<KvRing>> {
        let p = &self.params;
        let ring = || KvRing::new(p.n_kv_heads, p.head_dim, p.sliding_window, max_rows);
        (0..p.n_layers).map(|_| ring()).collect()
    }

    /// Runs all layers over `x`, `[n_rows of all segments, dim]`, in place.
    pub fn forward(&self, x: &mut [f32], segments: &mut [Segment<'_>], trace: &mut Option<TraceSink>) {
        let p = &self.params;
        let rows = x.len() / p.dim;
        let angles: Vec<_> =
            segments.iter().flat_map(|s| (0..s.n_rows).map(|i| self.rope.angles(s.position + i as u64))).collect();
        let mut h = vec![0.0; x.len()]; // [rows, dim]
        let (mut q, mut o) = (vec![0.0; rows * p.q_dim()], vec![0.0; rows * p.q_dim()]);
        let (mut k, mut v) = (vec![0.0; rows * p.kv_dim()], vec![0.0; rows * p.kv_dim()]);
        let (mut gate, mut up) = (vec![0.0; rows * p.hidden_dim], vec![0.0; rows * p.hidden_dim]);

        for (i, layer) in self.layers.iter().enumerate() {
            let attention = &layer.weights.attention;
            self.rms_norm(x, &layer.attention_norm, &mut h);
            self.multiply(
                &h,
                rows,
                &mut [
                    Product { weight: &attention.wq, bias: layer.wq_bias.as_deref(), out: &mut q },
                    Product { weight: &attention.wk, bias: None, out: &mut k },
                    Product { weight: &attention.wv, bias: layer.wv_bias.as_deref(), out: &mut v },
                ],
            );
            for ((q, k), angles) in q.chunks_mut(p.q_dim()).zip(k.chunks_mut(p.kv_dim())).zip(&angles) {
                rotate(q, angles);
                rotate(k, angles);
            }
            self.attend(i, segments, &q, &k, &v, &mut o);
            let wo = Product { weight: &attention.wo, bias: layer.wo_bias.as_deref(), out: &mut h };
            self.multiply(&o, rows, &mut [wo]);
            add(x, &h);

            let feed_forward = &layer.weights.feed_forward;
            self.rms_norm(x, &layer.ffn_norm, &mut h);
            let mut normed = h.as_mut_slice();
            for segment in segments.iter() {
                let (own, rest) = normed.split_at_mut(segment.n_rows * p.dim);
                if let Some(scale) = segment.ffn_scale {
                    for row in own.chunks_exact_mut(p.dim) {
                        row.iter_mut().zip(&scale[i]).for_each(|(h, &scale)| *h *= scale);
                    }
                }
                normed = rest;
            }
            self.multiply(
                &h,
                rows,
                &mut [
                    Product { weight: &feed_forward.w1, bias: None, out: &mut gate },
                    Product { weight: &feed_forward.w3, bias: None, out: &mut up },
                ],
            );
            for_rows(&mut gate, p.hidden_dim, &up, p.hidden_dim, |gate, up| swiglu(self.isa, gate, up));
            let w2 = Product { weight: &feed_forward.w2, bias: layer.w2_bias.as_deref(), out: &mut h };
            self.multiply(&gate, rows, &mut [w2]);
            add(x, &h);
            if let Some(sink) = trace {
                sink(self.trace_name, i, x, p.dim);
            }
        }
    }

    /// The norm after the last layer.
    pub fn final_norm(&self, x: &[f32]) -> Vec<f32> {
        let mut out = vec![0.0; x.len()];
        self.rms_norm(x, &self.norm, &mut out);
        out
    }

    /// Bytes of the layers' matrices.
    pub fn n_bytes(&self) -> usize {
        let of = |layer: &Layer| {
            let (a, f) = (&layer.weights.attention, &layer.weights.feed_forward);
            [&a.wq, &a.wk, &a.wv, &a.wo, &f.w1, &f.w2, &f.w3].map(Tensor::n_bytes).iter().sum::<usize>()
        };
        self.layers.iter().map(of).sum()
    }

    fn rms_norm(&self, x: &[f32], weight: &[f32], out: &mut [f32]) {
        let dim = self.params.dim;
        for_rows(out, dim, x, dim, |out, x| rms_norm(self.isa, x, weight, self.params.norm_eps, out));
    }

    fn multiply(&self, x: &[f32], rows: usize, products: &mut [Product<'_>]) {
        multiply(self.isa, x, rows, products);
    }

    /// Stores the new keys and values, then attends over the rings.
    fn attend(&self, layer: usize, segments: &mut [Segment<'_>], q: &[f32], k: &[f32], v: &[f32], mut out: &mut [f32]) {
        let p = &self.params;
        let mut row = 0;
        let mut batch = Vec::with_capacity(segments.len());
        for segment in segments {
            let ring = &mut segment.rings[layer];
            for i in 0..segment.n_rows {
                let kv = (row + i) * p.kv_dim()..(row + i + 1) * p.kv_dim();
                ring.append(segment.position + i as u64, &k[kv.clone()], &v[kv]);
            }
            let q = &q[row * p.q_dim()..(row + segment.n_rows) * p.q_dim()];
            let (own, rest) = out.split_at_mut(q.len());
            batch.push(Rows { ring, position: segment.position, q, out: own });
            out = rest;
            row += segment.n_rows;
        }
        attend(self.isa, p.n_heads, p.sliding_window, &mut batch);
    }
}
