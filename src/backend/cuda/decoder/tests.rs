//! The phases of the decoder's kernel, each launched alone on random inputs, against the CPU backend's functions. What a
//! phase reads is taken from the GPU just before it runs, so every phase answers for itself.

mod times;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::super::device::Address;
use super::super::pass::CHUNK;
use super::super::test_data::{Random, assert_rows, device, e4m7_of, f16_of, put};
use super::super::weights::Tiles;
use super::weights::{LayerLayout, Widened, layer_tiles};
use super::*;
use crate::backend::cpu::attention::{KvRing, Rows, attend};
use crate::backend::cpu::elementwise::{Rope, rms_norm, rotate, swiglu};
use crate::backend::cpu::matmul::{Product, multiply};
use crate::backend::cpu::simd::Isa;
use crate::model::params::Params;
use crate::model::weights::{AttentionWeights, FeedForwardWeights, LayerWeights, Tensor};

const N_LAYERS: usize = 2;

#[derive(Clone, Copy)]
struct Case {
    dim: usize,
    hidden_dim: usize,
    vocab_size: usize,
    n_heads: usize,
    n_kv_heads: usize,
    window: usize,
}

const ALL_HEADS_SHARE_ONE: Case =
    Case { dim: 1040, hidden_dim: 1300, vocab_size: 3003, n_heads: 16, n_kv_heads: 1, window: 300 };
/// K of w2 is more than a warp keeps of x at once; rings of 1280 slots.
const MANY_CHUNKS: Case =
    Case { dim: 512, hidden_dim: 9300, vocab_size: 1000, n_heads: 8, n_kv_heads: 2, window: 1100 };

/// A decoder without streams, and the model that it has.
struct Bench<'a> {
    kernels: &'a Kernels,
    decoder: Decoder,
    int8_kernels: PassKernels,
    layers: &'a [LayerWeights],
    embeddings: &'a Tensor,
    norm: &'a Tensor,
    isa: Isa,
}

/// The rows of a pass: spans of streams, whose rings hold random numbers.
struct Input {
    rows: Vec<Row>,
    spans: Vec<(usize, usize)>,
    rings: Vec<Buffer>,
    audio: Vec<Vec<f32>>,
    ffn_scales: Vec<Vec<f32>>,
    /// What the addresses in `rows` point to besides rings.
    _buffers: Vec<Buffer>,
    n_slots: usize,
    n_wanted: usize,
}

fn layer(p: &TransformerParams, random: &mut Random) -> LayerWeights {
    let mut matrix = |n: usize, k: usize| Tensor::from_values(&[n, k], &random.spread(n * k, (-5.0, -2.0)));
    let attention = AttentionWeights {
        wq: matrix(p.q_dim(), p.dim),
        wk: matrix(p.kv_dim(), p.dim),
        wv: matrix(p.kv_dim(), p.dim),
        wo: matrix(p.dim, p.q_dim()),
        wq_bias: None,
        wv_bias: None,
        wo_bias: None,
    };
    let feed_forward = FeedForwardWeights {
        w1: matrix(p.hidden_dim, p.dim),
        w2: matrix(p.dim, p.hidden_dim),
        w3: matrix(p.hidden_dim, p.dim),
        w2_bias: None,
    };
    let mut vector = || Tensor::from_values(&[p.dim], &random.spread(p.dim, (-1.0, 1.0)));
    LayerWeights { attention_norm: vector(), attention, ffn_norm: vector(), feed_forward, ada: None }
}

/// Writes what changes from pass to pass.
fn write_table(device: &Device, scratch: &Scratch, rows: &[Row], groups: &[Group], n_wanted: usize) {
    let mut table = vec![0u8; INPUT_BYTES];
    let mut write = |at: usize, bytes: &[u8]| table[at..at + bytes.len()].copy_from_slice(bytes);
    write(0, bytes_of(&[rows.len() as u32, groups.len() as u32, n_wanted as u32]));
    write(GROUPS_AT, bytes_of(groups));
    write(ROWS_AT, bytes_of(rows));
    // SAFETY: that is the size of both, and `table` outlives the wait.
    unsafe { device.upload(scratch.input.address(), &table).unwrap() };
    device.finish().unwrap();
}

impl Bench<'_> {
    fn params(&self) -> TransformerParams {
        self.decoder.weights.params.decoder
    }

    fn device(&self) -> &Arc<Device> {
        self.kernels.device()
    }

    fn floats(&self, address: Address, n: usize) -> Vec<f32> {
        let mut values = vec![0f32; n];
        // SAFETY: callers pass the size of what is there.
        unsafe { self.device().download(bytes_of_mut(&mut values), address).unwrap() };
        values
    }

    fn overwrite<T: Copy>(&self, buffer: &Buffer, value: T) {
        let values = vec![value; buffer.n_bytes() / size_of::<T>()];
        // SAFETY: the buffer is at least that large, and `values` outlive the wait.
        unsafe { self.device().upload(buffer.address(), bytes_of(&values)).unwrap() };
        self.device().finish().unwrap();
    }

    /// Rows of the residual stream.
    fn residual(&self, n: usize) -> Vec<f32> {
        let (dim, width) = (self.params().dim, padded(self.params().dim));
        let rows = self.floats(self.decoder.scratch.residual.address(), n * width);
        assert!(rows.chunks_exact(width).all(|row| row[dim..].iter().all(|&x| x == 0.0)), "wrote beyond the width");
        rows.chunks_exact(width).flat_map(|row| &row[..dim]).copied().collect()
    }

    /// Rows of `width` activations, as products read them; what pads them must be zero.
    fn activations(&self, buffer: &Buffer, n: usize, width: usize) -> Vec<f32> {
        let all = buffer.download(self.device(), 0, MAX_ROWS * columns(width)).unwrap();
        let at = |row: usize, k: usize| all[(k / 32 * MAX_ROWS + row) * 32 + k % 32];
        assert!((0..n).all(|row| (width..columns(width)).all(|k| at(row, k) == 0.0)), "padding that isn't zero");
        (0..n).flat_map(|row| (0..width).map(move |k| at(row, k))).collect()
    }

    fn multiply(&self, x: &[f32], weight: &Tensor) -> Vec<f32> {
        let m = x.len() / weight.shape()[1];
        let mut out = vec![0f32; m * weight.shape()[0]];
        multiply(self.isa, x, m, &mut [Product { weight, bias: None, out: &mut out }]);
        out
    }

    fn normed(&self, x: &[f32], weight: &Tensor) -> Vec<f32> {
        let (weight, eps) = (weight.to_f32(), self.params().norm_eps);
        let mut out = vec![0f32; x.len()];
        for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
            rms_norm(self.isa, x, &weight, eps, out);
        }
        out
    }

    /// The sums of squares of a norm's row, `[dim / 16]`.
    fn squares(&self, norm: usize, row: usize) -> Vec<f32> {
        let tiles = self.params().dim.div_ceil(16);
        let first = (norm % 2 * MAX_ROWS + row) * tiles * 4;
        self.floats(self.decoder.scratch.squares.address() + first as u64, tiles)
    }

    /// The power of two that rows of the norm after this one carry.
    fn factor(&self, norm: usize, row: usize) -> f32 {
        let p = self.params();
        let inverse = 1.0 / (self.squares(norm, row).iter().sum::<f32>() / p.dim as f32 + p.norm_eps).sqrt();
        f32::from_bits(inverse.to_bits() & 0x7F80_0000)
    }

    /// What the writer of the residual stream leaves for the norm of this number: of each of these rows `(from, to)`.
    fn check_prepared(&self, what: &str, input: &Input, norm: usize, rows: &[(usize, usize)], weight: &Tensor) {
        let dim = self.params().dim;
        let residual = self.residual(input.rows.len());
        let n = rows.iter().map(|&(_, to)| to + 1).max().unwrap();
        let prepared = self.activations(&self.decoder.scratch.normed, n, dim);
        let weight = weight.to_f32();
        for &(from, to) in rows {
            let h = &residual[from * dim..][..dim];
            let factor = if norm == 0 { 1.0 } else { self.factor(norm - 1, from) };
            let scale = |i: usize| if norm % 2 == 1 { input.ffn_scale(from, norm / 2, dim)[i] } else { 1.0 };
            let expected: Vec<f32> =
                (0..dim).map(|i| f16::from_f32(h[i] * (weight[i] * factor * scale(i))).to_f32()).collect();
            assert!(prepared[to * dim..][..dim] == expected, "{what}: prepared row {to}");
            let expected: Vec<f32> = h.chunks(16).map(|tile| tile.iter().map(|x| x * x).sum()).collect();
            assert_rows(&format!("{what}: squares of row {to}"), &self.squares(norm, to), &expected, 1, 1e-5);
        }
    }

    /// Those passes whose rows a kernel holds.
    fn that_fit<'a>(&self, passes: &[&'a [(usize, usize)]]) -> impl Iterator<Item = &'a [(usize, usize)]> {
        let most = self.decoder.kernels.max_rows();
        passes.iter().copied().filter(move |spans| spans.iter().map(|(_, n)| n).sum::<usize>() <= most)
    }

    /// Launches all phases over the rows in the table; the bits of the logits.
    fn logits_of_pass(&self, index: usize, n_wanted: usize) -> Vec<u32> {
        let (decoder, head) = (&self.decoder, Phases { n_layers: N_LAYERS }.head());
        let pass = decoder.with_weights(&decoder.parameters(true), index);
        // SAFETY: as in `check_phases`.
        unsafe { decoder.kernels.launch(index, &pass, 0..head.end).unwrap() };
        let logits = decoder.logits.as_ref().unwrap().address();
        self.floats(logits, n_wanted * decoder.weights.params.vocab_size).into_iter().map(f32::to_bits).collect()
    }

    fn new_input(&self, spans: &[(usize, usize)], random: &mut Random) -> Input {
        let p = self.params();
        let (device, width) = (self.device(), padded(p.dim));
        let n_slots = (p.sliding_window + MAX_ROWS).next_multiple_of(CHUNK);
        let mut input = Input {
            rows: Vec::new(),
            spans: spans.to_vec(),
            rings: Vec::new(),
            audio: Vec::new(),
            ffn_scales: Vec::new(),
            _buffers: Vec::new(),
            n_slots,
            n_wanted: 0,
        };
        let mut groups = Vec::new();
        for &(position, n) in spans {
            let ring = put(device, &f16_of(&random.spread(N_LAYERS * 2 * n_slots * p.kv_dim(), (-2.0, 1.0))));
            let mut padded_rows = |n: usize, add: f32| {
                let mut rows = random.spread(n * width, (-2.0, 0.0));
                for row in rows.chunks_exact_mut(width) {
                    row.iter_mut().for_each(|x| *x += add);
                    row[p.dim..].fill(0.0);
                }
                rows
            };
            let (audio, scale) = (padded_rows(n, 0.0), padded_rows(N_LAYERS, 1.0));
            let (audio_on_gpu, scale_on_gpu) = (put(device, &audio), put(device, &scale));
            for first in (0..n).step_by(pass::group_rows(&p)) {
                let rows = pass::group_rows(&p).min(n - first);
                groups.push(Group { first: (input.rows.len() + first) as i32, n: rows as i32 });
            }
            for i in 0..n {
                let row = input.rows.len();
                let wanted = row % 3 != 1;
                input.rows.push(Row {
                    audio: audio_on_gpu.address() + (i * width * 4) as u64,
                    kv: ring.address(),
                    ffn_scale: scale_on_gpu.address(),
                    position: (position + i) as u32,
                    n_slots: n_slots as u32,
                    token: (row * 7919 % self.decoder.weights.params.vocab_size) as u32,
                    head_row: if wanted { input.n_wanted as u32 } else { NO_ROW },
                });
                input.n_wanted += usize::from(wanted);
                input.audio.push(audio[i * width..][..p.dim].to_vec());
                input.ffn_scales.push(scale.clone());
            }
            input.rings.push(ring);
            input._buffers.extend([audio_on_gpu, scale_on_gpu]);
        }
        write_table(device, &self.decoder.scratch, &input.rows, &groups, input.n_wanted);
        input
    }
}

impl Input {
    fn ffn_scale(&self, row: usize, layer: usize, dim: usize) -> &[f32] {
        &self.ffn_scales[row][layer * padded(dim)..][..dim]
    }

    /// Rows of the head: `(row of the pass, row of the head)`.
    fn wanted(&self) -> Vec<(usize, usize)> {
        let rows = self.rows.iter().enumerate().filter(|(_, row)| row.head_row != NO_ROW);
        rows.map(|(i, row)| (i, row.head_row as usize)).collect()
    }

    /// The stream of each row.
    fn streams(&self) -> Vec<usize> {
        self.spans.iter().enumerate().flat_map(|(i, &(_, n))| std::iter::repeat_n(i, n)).collect()
    }
}

/// Where feature `d` of a position is in its head's part of a ring: keys, or values.
fn in_ring(is_value: bool, slot: usize, d: usize) -> usize {
    if is_value { (slot / 32 * HEAD_DIM + d) * 32 + slot % 32 } else { slot * HEAD_DIM + d }
}

/// All phases of a pass, with the kernel of this index; the bits of the logits.
fn check_phases(b: &Bench<'_>, input: &Input, index: usize, what: &str) -> Vec<u32> {
    let p = b.params();
    let (dim, q_dim, kv_dim) = (p.dim, p.q_dim(), p.kv_dim());
    let (n, n_slots, scratch) = (input.rows.len(), input.n_slots, &b.decoder.scratch);
    let vocab = b.decoder.weights.params.vocab_size;
    let pass = b.decoder.parameters(true);
    let phases = Phases { n_layers: N_LAYERS };
    let run = |phases: Range<usize>| {
        // SAFETY: the scratch memory holds every row, and rings and matrices have the sizes that the parameters say.
        unsafe { b.decoder.kernels.launch(index, &b.decoder.with_weights(&pass, index), phases).unwrap() }
    };
    // what a phase leaves out shows as not a number
    for buffer in [&scratch.query, &scratch.rope, &scratch.partial, &scratch.partial_stats, &scratch.best] {
        b.overwrite(buffer, u32::MAX);
    }
    b.overwrite(b.decoder.logits.as_ref().unwrap(), f32::NAN);
    let all_rows: Vec<(usize, usize)> = (0..n).map(|row| (row, row)).collect();
    let streams = input.streams();

    run(phases.embed());
    let embeddings = b.embeddings.to_f32();
    let token = |row: &Row| e4m7_of(&embeddings[row.token as usize * dim..][..dim]);
    let sum =
        |(row, audio): (&Row, &Vec<f32>)| -> Vec<f32> { token(row).iter().zip(audio).map(|(t, a)| t + a).collect() };
    let expected: Vec<f32> = input.rows.iter().zip(&input.audio).flat_map(sum).collect();
    assert!(b.residual(n) == expected, "{what}: embeddings");
    b.check_prepared(&format!("{what}, embed"), input, 0, &all_rows, &b.layers[0].attention_norm);
    let rope = Rope::new(HEAD_DIM, p.rope_theta);
    let angles: Vec<Vec<(f32, f32)>> = input.rows.iter().map(|row| rope.angles(row.position.into())).collect();
    let expected = angles.iter().flatten().flat_map(|&(cosine, sine)| [cosine, sine]);
    for (got, expected) in b.floats(scratch.rope.address(), n * HEAD_DIM).iter().zip(expected) {
        assert!((got - expected).abs() < 1e-6, "{what}: rotation {got}, expected {expected}");
    }

    for (l, layer) in b.layers.iter().enumerate() {
        let what = format!("{what}, layer {l}");
        let first = phases.layer(l).start;
        let attention = &layer.attention;
        let rings =
            || input.rings.iter().map(|r| r.download(b.device(), 0, r.n_bytes() / 2).unwrap()).collect::<Vec<_>>();
        let before = rings();
        run(first..first + 1);
        let x = b.normed(&b.residual(n), &layer.attention_norm);
        let [mut q, mut k, v] = [&attention.wq, &attention.wk, &attention.wv].map(|w| b.multiply(&x, w));
        for ((q, k), angles) in q.chunks_exact_mut(q_dim).zip(k.chunks_exact_mut(kv_dim)).zip(&angles) {
            rotate(q, angles);
            rotate(k, angles);
        }
        let query = scratch.query.download(b.device(), 0, n * q_dim).unwrap();
        assert_rows(&format!("{what}: queries"), &query, &q, q_dim, 1e-3);
        let after = rings();
        let mut written: Vec<HashSet<usize>> = vec![HashSet::new(); after.len()];
        for (is_value, expected) in [(false, &k), (true, &v)] {
            let mut got = Vec::new();
            for (row, &stream) in input.rows.iter().zip(&streams) {
                for i in 0..kv_dim {
                    let slot = row.position as usize % n_slots;
                    let head = (2 * l + usize::from(is_value)) * n_slots * kv_dim + i / HEAD_DIM * n_slots * HEAD_DIM;
                    let at = head + in_ring(is_value, slot, i % HEAD_DIM);
                    got.push(after[stream][at]);
                    written[stream].insert(at);
                }
            }
            assert_rows(&format!("{what}: values {is_value}"), &got, expected, kv_dim, 1e-3);
        }
        for ((before, after), written) in before.iter().zip(&after).zip(&written) {
            let same = |i: usize| before[i].to_bits() == after[i].to_bits() || written.contains(&i);
            assert!((0..before.len()).all(same), "{what}: a ring changed elsewhere");
        }

        run(phases.attention(l));
        let mut expected = vec![0f32; n * q_dim];
        let mut first_row = 0;
        for (&(position, n_rows), ring) in input.spans.iter().zip(&after) {
            let mut kv = KvRing::new(p.n_kv_heads, HEAD_DIM, p.sliding_window, MAX_ROWS).unwrap();
            for at in (position + 1).saturating_sub(p.sliding_window)..position + n_rows {
                let row = |is_value: bool| -> Vec<f32> {
                    let plane = &ring[(2 * l + usize::from(is_value)) * n_slots * kv_dim..][..n_slots * kv_dim];
                    let heads = plane.chunks_exact(n_slots * HEAD_DIM);
                    heads.flat_map(|h| (0..HEAD_DIM).map(|d| h[in_ring(is_value, at % n_slots, d)])).collect()
                };
                kv.append(at as u64, &row(false), &row(true));
            }
            let range = first_row * q_dim..(first_row + n_rows) * q_dim;
            let rows =
                Rows { ring: &kv, position: position as u64, q: &query[range.clone()], out: &mut expected[range] };
            attend(b.isa, p.n_heads, p.sliding_window, &mut [rows]);
            first_row += n_rows;
        }
        let attended = b.activations(&scratch.attended, n, q_dim);
        assert_rows(&format!("{what}: attention"), &attended, &expected, HEAD_DIM, 2e-3);

        let adds = |phase: usize, x: &[f32], weight: &Tensor| {
            let before = b.residual(n);
            run(phase..phase + 1);
            let added: Vec<f32> = b.residual(n).iter().zip(&before).map(|(after, before)| after - before).collect();
            assert_rows(&format!("{what}: phase {phase} adds"), &added, &b.multiply(x, weight), dim, 1e-4);
        };
        adds(first + 2, &attended, &attention.wo);
        b.check_prepared(&format!("{what}, wo"), input, 2 * l + 1, &all_rows, &layer.ffn_norm);

        run(first + 3..first + 4);
        let mut x = b.normed(&b.residual(n), &layer.ffn_norm);
        for (row, x) in x.chunks_exact_mut(dim).enumerate() {
            x.iter_mut().zip(input.ffn_scale(row, l, dim)).for_each(|(x, scale)| *x *= scale);
        }
        let mut expected = b.multiply(&x, &layer.feed_forward.w1);
        swiglu(b.isa, &mut expected, &b.multiply(&x, &layer.feed_forward.w3));
        let activated = b.activations(&scratch.activated, n, p.hidden_dim);
        assert_rows(&format!("{what}: swiglu"), &activated, &expected, p.hidden_dim, 2e-3);

        adds(first + 4, &activated, &layer.feed_forward.w2);
        let (rows, norm) = match b.layers.get(l + 1) {
            Some(next) => (all_rows.clone(), &next.attention_norm),
            None => (input.wanted(), b.norm),
        };
        b.check_prepared(&format!("{what}, w2"), input, 2 * l + 2, &rows, norm);
    }

    let x = b.normed(&b.residual(n), b.norm);
    let x: Vec<f32> = input.wanted().iter().flat_map(|&(from, _)| &x[from * dim..][..dim]).copied().collect();
    let check_head = |what: &str, expected: &[f32]| {
        let got = b.floats(b.decoder.logits.as_ref().unwrap().address(), input.n_wanted * vocab);
        assert_rows(&format!("{what}: logits"), &got, expected, vocab, 1e-3);
        let mut best = vec![0u64; input.n_wanted];
        // SAFETY: the buffer has MAX_ROWS of them.
        unsafe { b.device().download(bytes_of_mut(&mut best), scratch.best.address()).unwrap() };
        for (row, best) in got.chunks_exact(vocab).zip(best) {
            let expected = (0..vocab).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            assert_eq!(top1(best).unwrap() as usize, expected, "{what}: the largest logit");
        }
        got.iter().map(|x| x.to_bits()).collect::<Vec<u32>>()
    };
    run(phases.head());
    let bits = check_head(what, &b.multiply(&x, b.embeddings));

    // the matrix in 8 bits, and its kernels
    let quantised = |row: &[f32]| -> Vec<f32> {
        let largest = row.iter().fold(0f32, |most, w| most.max(w.abs()));
        row.iter().map(|w| (w * (127.0 / largest)).round_ties_even() * (largest / 127.0)).collect()
    };
    let matrix: Vec<f32> = embeddings.chunks_exact(dim).flat_map(quantised).collect();
    let dot = |x: &[f32], w: &[f32]| x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum::<f64>() as f32;
    let expected = x.chunks_exact(dim).flat_map(|x| matrix.chunks_exact(dim).map(move |w| dot(x, w)));
    let expected: Vec<f32> = expected.collect();
    b.overwrite(&scratch.best, 0u64);
    b.overwrite(b.decoder.logits.as_ref().unwrap(), f32::NAN);
    // SAFETY: as above.
    unsafe { b.int8_kernels.launch(index, &b.decoder.with_weights(&pass, index), phases.head()).unwrap() };
    check_head(&format!("{what}, 8 bits"), &expected);

    // all in one launch, over the same rings
    run(phases.embed().start..phases.head().end);
    assert!(check_head(what, &b.multiply(&x, b.embeddings)) == bits, "{what}: one launch gives other bits");
    bits
}

/// The bits of the logits of one of the streams, whose rings are as a pass with all of them has left them.
fn logits_alone(b: &Bench<'_>, input: &Input, span: usize) -> Vec<u32> {
    let first: usize = input.spans[..span].iter().map(|(_, n)| n).sum();
    let mut rows = input.rows[first..][..input.spans[span].1].to_vec();
    let mut n_wanted = 0;
    for row in rows.iter_mut().filter(|row| row.head_row != NO_ROW) {
        row.head_row = n_wanted;
        n_wanted += 1;
    }
    let most = pass::group_rows(&b.params());
    let group = |first: usize| Group { first: first as i32, n: most.min(rows.len() - first) as i32 };
    let groups: Vec<_> = (0..rows.len()).step_by(most).map(group).collect();
    write_table(b.device(), &b.decoder.scratch, &rows, &groups, n_wanted as usize);
    b.logits_of_pass(b.decoder.kernels.index(rows.len()), n_wanted as usize)
}

/// Does something with a decoder of random weights.
fn with_bench(case: Case, work: impl FnOnce(&Bench<'_>, &mut Random)) {
    let kernels = device();
    let device = kernels.device();
    let Case { dim, hidden_dim, vocab_size, n_heads, n_kv_heads, window } = case;
    let p = TransformerParams {
        dim,
        n_layers: N_LAYERS,
        head_dim: HEAD_DIM,
        hidden_dim,
        n_heads,
        n_kv_heads,
        rope_theta: 1e6,
        norm_eps: 1e-5,
        sliding_window: window,
    };
    pass::check(&p).unwrap();
    let mut random = Random::new((dim + window) as u32);
    let layers: Vec<LayerWeights> = (0..N_LAYERS).map(|_| layer(&p, &mut random)).collect();
    let embeddings = Tensor::from_values(&[vocab_size, dim], &random.spread(vocab_size * dim, (-5.0, -2.0)));
    let norm = Tensor::from_values(&[dim], &random.spread(dim, (-1.0, 1.0)));

    let layout = LayerLayout::new(layer_tiles(&p));
    let mut loader = Loader::new(&kernels).unwrap();
    let [wide, narrow] = [Tiles::e4m7(vocab_size, dim), Tiles::int8(vocab_size, dim)];
    let [head, int8_head] = [wide, narrow].map(|tiles| device.alloc_zeros(tiles.n_bytes()).unwrap());
    loader.pack_tiles(&embeddings, wide, head.address(), 0, -1).unwrap();
    loader.quantise_rows(&embeddings, narrow, int8_head.address()).unwrap();
    let load = |w| {
        let matrices = device.alloc_zeros(layout.n_bytes).unwrap();
        layout.pack(&mut loader, &p, w, matrices.address()).unwrap();
        Layer {
            attention_norm: loader.vector(&w.attention_norm).unwrap(),
            ffn_norm: loader.vector(&w.ffn_norm).unwrap(),
            matrices: Place::Device(matrices),
        }
    };
    let mut weights = DecoderWeights {
        params: Params { encoder: p, decoder: p, vocab_size, ada_dim: 8, n_mels: 8, log_mel_max: 1.5 },
        layers: layers.iter().map(load).collect(),
        staging: None,
        head,
        int8_head: Some(int8_head),
        norm: loader.vector(&norm).unwrap(),
        frequencies: super::super::frequencies(device, &p).unwrap(),
        layout,
        widened: None,
    };
    loader.flush().unwrap();
    weights.widened = Some(Widened::new(&kernels, &weights).unwrap());
    let mut decoder = Decoder::new(device, weights, &CudaOptions::default()).unwrap();
    decoder.reserve_logits(device).unwrap();
    let b = Bench {
        kernels: &kernels,
        decoder,
        int8_kernels: PassKernels::new(device, true, true).unwrap(),
        layers: &layers,
        embeddings: &embeddings,
        norm: &norm,
        isa: Isa::available()[0],
    };
    work(&b, &mut random);
}

/// Does something with a pass by every kernel that holds its rows, each on rings as the one before has left them. The bits
/// that they all come to.
fn by_every_kernel(
    b: &Bench<'_>,
    input: &Input,
    what: &str,
    work: fn(&Bench<'_>, &Input, usize, &str) -> Vec<u32>,
) -> Vec<u32> {
    let kernels = &b.decoder.kernels;
    let indices = kernels.index(input.rows.len())..=kernels.index(kernels.max_rows());
    let mut runs = indices.map(|index| work(b, input, index, &format!("{what}, kernel {index}")));
    let first = runs.next().unwrap();
    assert!(runs.all(|bits| bits == first), "{what}: not the bits of the other kernels");
    first
}

fn check_case(case: Case, passes: &[&[(usize, usize)]]) {
    with_bench(case, |b, random| {
        for spans in b.that_fit(passes) {
            let input = b.new_input(spans, random);
            let what = format!("{} {spans:?}", case.dim);
            let bits = by_every_kernel(b, &input, &what, check_phases);
            let alone: Vec<u32> = (0..spans.len()).flat_map(|span| logits_alone(b, &input, span)).collect();
            assert!(alone == bits, "{what}: not the bits of each stream alone");
        }
    });
}

/// A pass over and over; the bits of the logits.
fn repeat(b: &Bench<'_>, input: &Input, index: usize, what: &str) -> Vec<u32> {
    let start = Instant::now();
    let first = b.logits_of_pass(index, input.n_wanted);
    for i in 1..500 {
        assert!(b.logits_of_pass(index, input.n_wanted) == first, "{what}: other bits the {i}th time");
        // under compute-sanitizer launches take long
        if start.elapsed() > Duration::from_secs(2) {
            break;
        }
    }
    first
}

/// Weights that stay in L2 come soonest after a stage of the ring has been given back: a warp that gave it back before it had
/// read it would find them there.
#[test]
fn passes_beside_each_other_have_the_same_bits_every_time() {
    let repeat_all = |case: Case, passes: &[&[(usize, usize)]]| {
        with_bench(case, |b, random| {
            for spans in b.that_fit(passes) {
                let input = b.new_input(spans, random);
                by_every_kernel(b, &input, &format!("{} {spans:?}", case.dim), repeat);
            }
        });
    };
    std::thread::scope(|scope| {
        scope.spawn(|| repeat_all(ALL_HEADS_SHARE_ONE, &[&[(400, 1)], &[(299, 1), (300, 16)], &[(7, 100)]]));
        repeat_all(MANY_CHUNKS, &[&[(2300, 1)], &[(1500, 3), (40, 5), (1791, 9)], &[(1030, 33), (0, 31)]]);
    });
}

#[test]
fn every_phase_is_what_the_cpu_computes_at_odd_widths() {
    // a ring of 384 slots: positions from 384 on have wrapped around
    let case = Case { dim: 142, hidden_dim: 266, vocab_size: 1501, n_heads: 6, n_kv_heads: 2, window: 131 };
    check_case(
        case,
        &[
            &[(0, 1)],
            &[(255, 1)],
            &[(5, 2)],
            &[(300, 3)],
            &[(131, 7)],
            &[(1000, 8)],
            &[(127, 9)],
            &[(250, 5), (700, 12)],
            &[(0, 33)],
            &[(100, 8), (9, 40)],
            &[(250, 49)],
            &[(383, 20), (0, 20), (3, 23)],
            &[(1151, 64)],
            &[(1151, 65)],
            &[(767, 40), (0, 63), (3, 24)],
            &[(300, 64), (77, 1), (9000, 63)],
        ],
    );
}

#[test]
fn every_phase_is_what_the_cpu_computes_with_all_heads_sharing_one() {
    check_case(ALL_HEADS_SHARE_ONE, &[&[(400, 1)], &[(63, 3), (512, 5)], &[(299, 1), (300, 16)]]);
}

#[test]
fn every_phase_is_what_the_cpu_computes_over_many_chunks() {
    check_case(
        MANY_CHUNKS,
        &[&[(2300, 1)], &[(1500, 3), (40, 5), (1791, 9)], &[(1030, 33), (0, 31)], &[(1790, 60), (3000, 41)]],
    );
}

#[test]
fn every_phase_is_what_the_cpu_computes_over_more_chunks_than_a_warp_has_lanes() {
    // up to 71 chunks
    let case = Case { dim: 130, hidden_dim: 140, vocab_size: 200, n_heads: 2, n_kv_heads: 1, window: 8900 };
    // and in the second of them more units than an H200 has multiprocessors, for the kernel of up to 8 rows
    let passes: [&[_]; 4] =
        [&[(8999, 1)], &[(8999, 1), (8500, 1), (9000, 1)], &[(4100, 2), (9100, 9), (4000, 1)], &[(12_000, 65)]];
    check_case(case, &passes);
}
