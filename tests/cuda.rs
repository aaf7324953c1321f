//! The CUDA backend against the CPU backend, and its promise that a row's bits depend on nothing but its stream.
//!
//!     cargo test --features gpu-tests --test cuda
//!     TMPDIR=/dev/shm cargo test --features gpu-tests --test cuda -- --ignored   # the real model's size, 8.9 GB
//!
//! The tests fail where there is no GPU.

mod support;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use support::synthetic::{Dims, Preset};
use voxtral::audio::mel::{MelFilters, MelStream};
use voxtral::backend::cpu::Cpu;
use voxtral::backend::cuda::{Cuda, CudaStream};
use voxtral::backend::{
    Backend, BackendOptions, CublasLt, CudaOptions, EncodeChunk, Export, Prediction, Products, Span,
};
use voxtral::model::{Delay, Model};
use voxtral::{Engine, Event, SessionOptions};

const SAMPLES_PER_TOKEN: usize = 1280;
const EOS: u32 = 2;
const RECORDINGS: [&str; 7] =
    ["hibari_intro", "kal_computer", "awb_library", "slt_numbers", "espeak_us_garden", "long_mixed", "noise_only"];

fn tiny() -> Model {
    Model::open(&support::tiny_model()).unwrap()
}

fn cuda(model: &Model, graphs: bool) -> Cuda {
    let options =
        BackendOptions { cuda: CudaOptions { graphs, ..CudaOptions::default() }, ..BackendOptions::default() };
    Cuda::load(&model.weights, &options).expect("these tests need a GPU")
}

/// Left padding, samples, right padding, and what the last frames look ahead; whole tokens.
fn log_mel(model: &Model, samples: &[f32], delay: Delay) -> Vec<f32> {
    let filters = Arc::new(MelFilters::new(model.params.n_mels, model.params.log_mel_max));
    let mut mel = MelStream::new(filters, model.tokenizer.left_pad * SAMPLES_PER_TOKEN);
    mel.push(samples);
    let to_whole = samples.len().next_multiple_of(SAMPLES_PER_TOKEN) - samples.len();
    mel.push_silence(to_whole + (delay.tokens() + 11) * SAMPLES_PER_TOKEN + 40);
    let mut frames = Vec::new();
    mel.take(mel.available() / 8 * 8, &mut frames);
    frames
}

fn prompt(model: &Model, delay: Delay) -> Vec<u32> {
    let special = model.tokenizer.special;
    let mut inputs = vec![special.bos];
    inputs.resize(1 + model.tokenizer.left_pad + delay.tokens(), special.streaming_pad);
    inputs
}

fn decode<B: Backend>(backend: &mut B, stream: &mut B::Stream, inputs: &[u32], n_top: usize) -> Vec<Prediction> {
    let mut span = Span { stream, inputs, predict_from: 0, drafts_from: usize::MAX, n_top, predictions: Vec::new() };
    backend.decode(std::slice::from_mut(&mut span)).unwrap();
    span.predictions
}

/// Feeds these tokens in spans of `n` and returns every prediction with all its probabilities: a picture of the logits.
fn feed<B: Backend>(
    backend: &mut B,
    stream: &mut B::Stream,
    tokens: &[u32],
    n: usize,
    n_top: usize,
) -> Vec<Prediction> {
    tokens.chunks(n).flat_map(|inputs| decode(backend, stream, inputs, n_top)).collect()
}

fn assert_same(what: &str, got: &[Prediction], expected: &[Prediction]) {
    assert_eq!(got.len(), expected.len(), "{what}: predictions");
    let bits = |p: &Prediction| p.top.iter().map(|&(id, p)| (id, p.to_bits())).collect::<Vec<_>>();
    for (i, (a, b)) in got.iter().zip(expected).enumerate() {
        assert!(a.id == b.id && bits(a) == bits(b), "{what}: position {i} differs: {} and {}", a.id, b.id);
    }
}

/// Tokens that look like speech: pads, word marks and text by turns.
fn some_tokens(model: &Model, n: usize) -> Vec<u32> {
    let vocab = model.params.vocab_size as u32;
    (0..n as u32)
        .map(|i| {
            if i % 3 == 0 {
                33
            } else if i % 3 == 1 {
                32
            } else {
                1000 + i * 37 % (vocab - 1000)
            }
        })
        .collect()
}

type Activations = Vec<(&'static str, usize, Vec<f32>)>;

/// Named activations of encoding `mel` and decoding `tokens` in one go.
fn traced<B: Backend>(backend: &mut B, mel: &[f32], tokens: &[u32]) -> Activations {
    let activations = Arc::new(Mutex::new(Activations::new()));
    let sink = activations.clone();
    backend.trace(Some(Box::new(move |name, layer, rows, _| sink.lock().unwrap().push((name, layer, rows.to_vec())))));
    let mut stream = backend.open(Delay::DEFAULT).unwrap();
    backend.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: mel }]).unwrap();
    decode(backend, &mut stream, tokens, 1);
    backend.trace(None);
    let mut merged: Activations = Vec::new();
    for (name, layer, mut rows) in std::mem::take(&mut *activations.lock().unwrap()) {
        match merged.iter_mut().find(|(n, l, _)| (*n, *l) == (name, layer)) {
            Some((.., all)) => all.append(&mut rows),
            None => merged.push((name, layer, rows)),
        }
    }
    merged
}

/// The first activation that is off by more than `tolerance` of its norm fails the test, by name.
fn assert_close(got: &Activations, expected: &Activations, tolerance: f64) {
    for (name, layer, expected) in expected {
        let Some((.., got)) = got.iter().find(|(n, l, _)| n == name && l == layer) else {
            panic!("{name} {layer} was not traced")
        };
        // CUDA rounds row counts up; the rest repeats nothing that counts
        assert!(got.len() >= expected.len(), "{name} {layer}: {} values, expected {}", got.len(), expected.len());
        let square = |x: f32| f64::from(x) * f64::from(x);
        let norm: f64 = expected.iter().map(|&x| square(x)).sum();
        let off: f64 = got.iter().zip(expected).map(|(&a, &b)| square(a - b)).sum();
        let off = (off / norm).sqrt();
        println!("{name} {layer}: off by {off:.1e}");
        assert!(off <= tolerance, "{name} {layer} is the first to diverge: off by {off:.2e}");
    }
}

fn checkpoint(preset: &Preset) -> (tempfile::TempDir, Model) {
    let dir = tempfile::tempdir().unwrap();
    preset.write(dir.path(), None).unwrap();
    let model = Model::open(dir.path()).unwrap();
    (dir, model)
}

/// A small model; the decoder's heads have the width that the kernel is made for.
fn small() -> Preset {
    let mut preset = Preset::tiny();
    preset.decoder.head_dim = 128;
    preset
}

/// Widths that are no multiples of anything, grouped heads, windows shorter than the audio.
fn awkward() -> Preset {
    Preset {
        encoder: Dims { dim: 72, n_layers: 2, head_dim: 64, hidden_dim: 200, n_heads: 3, n_kv_heads: 3, window: 70 },
        decoder: Dims { dim: 142, n_layers: 2, head_dim: 128, hidden_dim: 266, n_heads: 6, n_kv_heads: 2, window: 131 },
        vocab_size: 1501,
        ..Preset::tiny()
    }
}

/// As many heads as may share a key head, in more layers.
fn shared_heads() -> Preset {
    Preset {
        decoder: Dims {
            dim: 1040,
            n_layers: 5,
            head_dim: 128,
            hidden_dim: 1300,
            n_heads: 16,
            n_kv_heads: 1,
            window: 300,
        },
        vocab_size: 3003,
        ..Preset::tiny()
    }
}

#[test]
fn activations_are_those_of_the_cpu() {
    let recording = support::recording("kal_computer");
    let checkpoints = [small(), awkward(), shared_heads()].map(|preset| checkpoint(&preset));
    for model in checkpoints.iter().map(|(_, model)| model).chain([&tiny()]) {
        let mel = log_mel(model, &recording, Delay::DEFAULT);
        let n_positions = mel.len() / model.params.n_mels / 8;
        let mut tokens = prompt(model, Delay::DEFAULT);
        tokens.extend(some_tokens(model, n_positions - tokens.len()));
        let mut cpu = Cpu::load(&model.weights, &BackendOptions::default()).unwrap();
        let expected = traced(&mut cpu, &mel, &tokens[..64]);
        let got = traced(&mut cuda(model, true), &mel, &tokens[..64]);
        assert_close(&got, &expected, 3e-2);
        let products = Products::CublasLt(CublasLt::default());
        let options =
            BackendOptions { cuda: CudaOptions { products, ..CudaOptions::default() }, ..BackendOptions::default() };
        let mut cublaslt = Cuda::load(&model.weights, &options).unwrap();
        assert!(cublaslt.uses_cublaslt(), "cuBLASLt is not there");
        assert_close(&traced(&mut cublaslt, &mel, &tokens[..64]), &expected, 3e-2);
    }
}

#[test]
fn the_tiny_model_says_what_it_says_on_the_cpu() {
    let text = std::fs::read_to_string(support::project("samples/decoded.json")).unwrap();
    let decoded: HashMap<String, HashMap<String, serde_json::Value>> = serde_json::from_str(&text).unwrap();
    for graphs in [true, false] {
        let model = tiny();
        let mut engine = Engine::new(cuda(&model, graphs), model.tokenizer, &model.params);
        let mut wrong = Vec::new();
        for name in RECORDINGS {
            let samples = support::recording(name);
            for (tokens, expected) in &decoded[name] {
                let delay = Delay::from_ms(tokens.parse::<f64>().unwrap() * 80.0).unwrap();
                let options = SessionOptions { delay: Some(delay), ..SessionOptions::default() };
                let mut session = engine.open(&options).unwrap();
                session.push(&samples).unwrap();
                session.finish();
                engine.advance(&mut [&mut session]).unwrap();
                let mut ids = Vec::new();
                while let Some(event) = session.next_event() {
                    match event {
                        Event::Token(token) => ids.push(token.id),
                        Event::Restart { .. } => break,
                        Event::End { .. } => {}
                    }
                }
                let mut expected: Vec<u32> = serde_json::from_value(expected["ids"].clone()).unwrap();
                if expected.last() != Some(&EOS) {
                    expected.pop(); // the reference feeds the last position too; the official loop does not
                }
                if ids != expected {
                    let at = ids.iter().zip(&expected).take_while(|(a, b)| a == b).count();
                    wrong.push(format!("{name} at delay {tokens}: from token {at} of {}", expected.len()));
                }
            }
        }
        assert!(wrong.is_empty(), "graphs {graphs}: {wrong:#?}");
    }
}

#[test]
fn the_length_of_spans_changes_no_bit() {
    let model = tiny();
    let mut cuda = cuda(&model, true);
    let mel = log_mel(&model, &support::recording("hibari_intro"), Delay::DEFAULT);
    let tokens = some_tokens(&model, mel.len() / model.params.n_mels / 8);
    let mut run = |n: usize| {
        let mut stream = cuda.open(Delay::DEFAULT).unwrap();
        cuda.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: &mel }]).unwrap();
        feed(&mut cuda, &mut stream, &tokens, n, model.params.vocab_size)
    };
    let expected = run(1);
    for n in [2, 3, 5, 8, 9, 13, 16, 17, 27, 32, 33, 64, 65, 100, 127, 128] {
        assert_same(&format!("spans of {n}"), &run(n), &expected);
    }
}

#[test]
fn lists_end_at_the_first_wrong_guess() {
    let model = tiny();
    let mut cuda = cuda(&model, true);
    let mel = log_mel(&model, &support::recording("kal_computer"), Delay::DEFAULT);
    let prompt = prompt(&model, Delay::DEFAULT);
    let begun = |cuda: &mut Cuda| {
        let mut stream = cuda.open(Delay::DEFAULT).unwrap();
        cuda.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: &mel }]).unwrap();
        let first = decode(cuda, &mut stream, &prompt, 1).pop().unwrap().id;
        (stream, first)
    };
    let (mut stream, first) = begun(&mut cuda);
    let mut inputs = vec![first];
    let mut expected: Vec<Prediction> = Vec::new();
    for i in 0..7 {
        expected.extend(decode(&mut cuda, &mut stream, &inputs[i..], 8));
        inputs.push(expected[i].id);
    }
    inputs.pop();
    for n_right in 0..=6 {
        let (mut stream, _) = begun(&mut cuda);
        let mut guesses = inputs.clone();
        if let Some(wrong) = guesses.get_mut(1 + n_right) {
            *wrong += 1;
        }
        let mut span = Span {
            stream: &mut stream,
            inputs: &guesses,
            predict_from: 0,
            drafts_from: 1,
            n_top: 8,
            predictions: Vec::new(),
        };
        cuda.decode(std::slice::from_mut(&mut span)).unwrap();
        let (right, wrong) = span.predictions.split_at(1 + n_right);
        assert_same(&format!("{n_right} guesses are right"), right, &expected[..=n_right]);
        assert_eq!(wrong.len(), 6 - n_right);
        assert!(wrong.iter().all(|p| p.top.is_empty()), "lists that nobody reads");
    }
}

#[test]
fn graphs_change_no_bit() {
    let model = tiny();
    let mel = log_mel(&model, &support::recording("kal_computer"), Delay::DEFAULT);
    let tokens = some_tokens(&model, mel.len() / model.params.n_mels / 8);
    let runs = [true, false].map(|graphs| {
        let mut cuda = cuda(&model, graphs);
        let mut stream = cuda.open(Delay::DEFAULT).unwrap();
        for log_mel in mel.chunks(16 * model.params.n_mels) {
            cuda.encode(&mut [EncodeChunk { stream: &mut stream, log_mel }]).unwrap();
        }
        feed(&mut cuda, &mut stream, &tokens, 3, model.params.vocab_size)
    });
    assert_same("graphs", &runs[0], &runs[1]);
}

#[test]
fn the_size_of_encoder_chunks_changes_no_bit() {
    let model = tiny();
    let mut cuda = cuda(&model, true);
    // longer than one pass of the smallest size, and than every window
    let samples: Vec<f32> = support::recording("long_mixed").repeat(2);
    let mel = log_mel(&model, &samples, Delay::DEFAULT);
    let n_positions = mel.len() / model.params.n_mels / 8;
    let tokens = some_tokens(&model, n_positions);
    let mut run = |n_frames: usize| {
        let mut stream = cuda.open(Delay::DEFAULT).unwrap();
        for log_mel in mel.chunks(n_frames * model.params.n_mels) {
            cuda.encode(&mut [EncodeChunk { stream: &mut stream, log_mel }]).unwrap();
        }
        feed(&mut cuda, &mut stream, &tokens, 64, 64)
    };
    let expected = run(8 * n_positions);
    for n_frames in [8, 24, 136, 264, 1000, 3000] {
        assert_same(&format!("chunks of {n_frames} frames"), &run(n_frames), &expected);
    }
}

/// Embeddings and the encoder's last keys and values, as bits.
fn encoded(cuda: &mut Cuda, stream: &CudaStream) -> (Vec<u32>, Vec<Vec<u32>>) {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    let state = cuda.export(stream).unwrap();
    let kv = state.encoder.layers.iter().flat_map(|[keys, values]| [bits(keys), bits(values)]);
    (bits(&state.embeddings), kv.collect())
}

/// Passes of up to eight rows, which have a kernel of their own where the GPU has it, against passes of all rows.
#[test]
fn live_audio_has_the_bits_of_whole_files() {
    let real = Dims { n_layers: 3, ..Preset::full().encoder };
    // groups, rests in every width, and shares of which some multiprocessors have none
    let awkward = Dims { dim: 200, head_dim: 64, hidden_dim: 712, n_heads: 6, n_kv_heads: 2, n_layers: 2, window: 129 };
    let tall = Dims { dim: 1150, hidden_dim: 5000, ..real };
    for encoder in [real, awkward, tall] {
        let (_dir, model) = checkpoint(&Preset { encoder, ..small() });
        let mut cuda = cuda(&model, true);
        let n_mels = model.params.n_mels;
        // past the window, and past the end of the rings
        let samples: Vec<f32> = support::recording("long_mixed").repeat(2)[..22 * 16000].to_vec();
        let mel = log_mel(&model, &samples, Delay::DEFAULT);
        let others: Vec<f32> = mel.iter().rev().copied().collect();
        let mut whole = |mel: &[f32]| {
            let mut stream = cuda.open(Delay::DEFAULT).unwrap();
            cuda.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: mel }]).unwrap();
            encoded(&mut cuda, &stream)
        };
        let expected = [whole(&mel), whole(&others)];
        assert!(expected[0].0.iter().all(|&v| f32::from_bits(v).is_finite()) && expected[0] != expected[1]);
        for n_frames in [8, 16] {
            let mut stream = cuda.open(Delay::DEFAULT).unwrap();
            for log_mel in mel.chunks(n_frames * n_mels) {
                cuda.encode(&mut [EncodeChunk { stream: &mut stream, log_mel }]).unwrap();
            }
            assert!(encoded(&mut cuda, &stream) == expected[0], "dim {}, chunks of {n_frames} frames", encoder.dim);
        }
        // two streams, the second of which is behind
        let [mut first, mut second] = [(); 2].map(|()| cuda.open(Delay::DEFAULT).unwrap());
        let (start, rest) = mel.split_at(70 * 8 * n_mels);
        cuda.encode(&mut [EncodeChunk { stream: &mut first, log_mel: start }]).unwrap();
        for (log_mel, other) in rest.chunks(8 * n_mels).zip(others.chunks(8 * n_mels)) {
            let chunks = [(&mut first, log_mel), (&mut second, other)];
            cuda.encode(&mut chunks.map(|(stream, log_mel)| EncodeChunk { stream, log_mel })).unwrap();
        }
        cuda.encode(&mut [EncodeChunk { stream: &mut second, log_mel: &others[rest.len()..] }]).unwrap();
        for (stream, expected) in [first, second].iter().zip(&expected) {
            assert!(encoded(&mut cuda, stream) == *expected, "dim {}, two streams", encoder.dim);
        }
    }
}

#[test]
fn company_changes_no_bit() {
    let model = tiny();
    let mut cuda = cuda(&model, true);
    let mels = ["kal_computer", "hibari_intro", "slt_numbers", "noise_only"]
        .map(|name| log_mel(&model, &support::recording(name), Delay::DEFAULT));
    let n_tokens = 60;
    let n_streams = 56;
    let tokens: Vec<_> = (0..n_streams).map(|i| some_tokens(&model, n_tokens + i)[i..].to_vec()).collect();
    let mel = |i: usize| &mels[i % mels.len()][..n_tokens * 8 * model.params.n_mels];
    let alone: Vec<_> = (0..n_streams)
        .map(|i| {
            let mut stream = cuda.open(Delay::DEFAULT).unwrap();
            cuda.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: mel(i) }]).unwrap();
            feed(&mut cuda, &mut stream, &tokens[i], 1, model.params.vocab_size)
        })
        .collect();

    let mut streams: Vec<_> = (0..n_streams).map(|_| cuda.open(Delay::DEFAULT).unwrap()).collect();
    // unequal shares of frames, in company
    for (first, n) in [(0, 2), (2, 1), (3, 10), (13, 47)] {
        let frame = 8 * model.params.n_mels;
        let mut batch: Vec<_> = streams
            .iter_mut()
            .enumerate()
            .map(|(i, stream)| EncodeChunk { stream, log_mel: &mel(i)[first * frame..(first + n) * frame] })
            .collect();
        cuda.encode(&mut batch).unwrap();
    }
    let mut together = vec![Vec::new(); n_streams];
    let mut done = vec![0; n_streams];
    for round in 0.. {
        let mut batch = Vec::new();
        for (i, stream) in streams.iter_mut().enumerate() {
            let n = (1 + (i + round) % 4).min(n_tokens - done[i]);
            if n > 0 && (i + round) % 5 > 0 {
                let inputs = &tokens[i][done[i]..done[i] + n];
                let n_top = model.params.vocab_size;
                batch.push((
                    i,
                    Span { stream, inputs, predict_from: 0, drafts_from: usize::MAX, n_top, predictions: Vec::new() },
                ));
                done[i] += n;
            }
        }
        let (takers, mut spans): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        if spans.is_empty() && done.iter().all(|&n| n == n_tokens) {
            break;
        }
        cuda.decode(&mut spans).unwrap();
        for (i, span) in takers.into_iter().zip(spans) {
            together[i].extend(span.predictions);
        }
    }
    for i in 0..n_streams {
        assert_same(&format!("stream {i} among {n_streams}"), &together[i], &alone[i]);
    }
}

#[test]
fn rewinding_and_growing_rings_lose_nothing() {
    // a window longer than a fresh ring, so that it grows more than once and then wraps around
    let mut preset = small();
    preset.decoder.window = 1100;
    let (_dir, model) = checkpoint(&preset);
    let mut cuda = cuda(&model, true);
    let samples: Vec<f32> = support::recording("long_mixed").repeat(2);
    let mel = log_mel(&model, &samples, Delay::DEFAULT);
    let n_positions = mel.len() / model.params.n_mels / 8;
    let tokens = some_tokens(&model, n_positions);
    assert!(n_positions > 1400);
    let open = |cuda: &mut Cuda| {
        let mut stream = cuda.open(Delay::DEFAULT).unwrap();
        cuda.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: &mel }]).unwrap();
        stream
    };
    let mut stream = open(&mut cuda);
    let expected = feed(&mut cuda, &mut stream, &tokens, 64, 64);
    let mut stream = open(&mut cuda);
    let mut got = Vec::new();
    let mut position = 0;
    while position < n_positions {
        // drafts that are wrong are checked with the right ones, then forgotten
        let right = (1 + position % 7).min(n_positions - position);
        let wrong = (position % 5).min(n_positions - position - right);
        let mut inputs = tokens[position..position + right].to_vec();
        inputs.extend(std::iter::repeat_n(7, wrong));
        let predictions = decode(&mut cuda, &mut stream, &inputs, 64);
        got.extend_from_slice(&predictions[..right]);
        position += right;
        cuda.rewind(&mut stream, position as u64);
    }
    assert_same("with drafts", &got, &expected);
}

#[test]
fn layers_on_the_host_change_no_bit() {
    let model = tiny();
    let mel = log_mel(&model, &support::recording("kal_computer"), Delay::DEFAULT);
    let tokens = some_tokens(&model, mel.len() / model.params.n_mels / 8);
    // the head takes 1.1 MB, a layer 1.2 MB: all three stay on the GPU, one, none
    let runs = [None, Some(3_000_000), Some(0)].map(|weight_cache_bytes| {
        let options = CudaOptions { weight_cache_bytes, ..CudaOptions::default() };
        let options = BackendOptions { cuda: options, ..BackendOptions::default() };
        let mut cuda = Cuda::load(&model.weights, &options).unwrap();
        let mut stream = cuda.open(Delay::DEFAULT).unwrap();
        cuda.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: &mel }]).unwrap();
        let predictions = feed(&mut cuda, &mut stream, &tokens, 3, model.params.vocab_size);
        (predictions, cuda.sent_layers())
    });
    let n_passes = tokens.len().div_ceil(3) as u64;
    assert_eq!(runs.each_ref().map(|(_, n_sent)| *n_sent), [0, 2 * n_passes, 3 * n_passes]);
    assert_same("one layer on the GPU", &runs[1].0, &runs[0].0);
    assert_same("no layer on the GPU", &runs[2].0, &runs[0].0);
}

/// Logits of these rows `[n, dim]` with the output matrix in 8 bits: the largest of its row's magnitudes is 127.
fn int8_logits(model: &Model, rows: &[f32]) -> Vec<Vec<f64>> {
    let dim = model.params.decoder.dim;
    let quantised = |row: &[f32]| -> Vec<f64> {
        let largest = row.iter().fold(0f32, |most, w| most.max(w.abs()));
        let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
        row.iter().map(|w| f64::from((w * inverse).round_ties_even()) * f64::from(largest / 127.0)).collect()
    };
    let embeddings = model.weights.tok_embeddings.to_f32();
    let matrix: Vec<Vec<f64>> = embeddings.chunks_exact(dim).map(quantised).collect();
    let dot = |x: &[f32], w: &[f64]| -> f64 { x.iter().zip(w).map(|(&x, w)| f64::from(x) * w).sum() };
    rows.chunks_exact(dim).map(|x| matrix.iter().map(|w| dot(x, w)).collect()).collect()
}

#[test]
fn logits_in_8_bits_are_those_of_the_quantised_matrix() {
    let recording = support::recording("kal_computer");
    let checkpoints = [small(), awkward(), shared_heads()].map(|preset| checkpoint(&preset));
    for model in checkpoints.iter().map(|(_, model)| model).chain([&tiny()]) {
        let vocab = model.params.vocab_size;
        let mel = log_mel(model, &recording, Delay::DEFAULT);
        let tokens = &some_tokens(model, mel.len() / model.params.n_mels / 8)[..64];
        let load = |logits_int8, products| {
            let options = CudaOptions { logits_int8, products, ..CudaOptions::default() };
            Cuda::load(&model.weights, &BackendOptions { cuda: options, ..BackendOptions::default() }).unwrap()
        };
        let of = |a: &Activations, name| a.iter().find(|(n, ..)| *n == name).unwrap().2.clone();
        // a library's pass rounds the norm to F16 in another place than what its trace shows
        for (products, tolerance) in [(Products::Own, 2e-5), (Products::CublasLt(CublasLt::default()), 2e-3)] {
            let mut cuda = load(true, products);
            let got = traced(&mut cuda, &mel, tokens);
            let expected = int8_logits(model, &of(&got, "decoder_norm"));
            let got = of(&got, "logits");
            let norm = |values: &mut dyn Iterator<Item = f64>| values.map(|x| x * x).sum::<f64>().sqrt();
            let off = got.iter().zip(expected.iter().flatten()).map(|(&a, b)| f64::from(a) - b);
            let off = norm(&mut { off }) / norm(&mut expected.iter().flatten().copied());
            println!("{products:?}: off by {off:.1e}");
            assert!(off < tolerance, "{products:?}: off by {off:.1e}");

            let mut open = || {
                let mut stream = cuda.open(Delay::DEFAULT).unwrap();
                cuda.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: &mel }]).unwrap();
                stream
            };
            let mut streams: Vec<_> = (0..8).map(|_| open()).collect();
            let all = feed(&mut cuda, &mut streams[0], tokens, 1, vocab);
            for (stream, n) in streams[1..7].iter_mut().zip([2, 3, 9, 17, 33, 64]) {
                assert_same(&format!("{products:?}, spans of {n}"), &feed(&mut cuda, stream, tokens, n, vocab), &all);
            }
            // the likeliest token comes from where the logits are made
            let ids = feed(&mut cuda, &mut streams[7], tokens, 5, 1);
            let mut clear = 0;
            for (i, (prediction, row)) in ids.iter().zip(&expected).enumerate() {
                assert_eq!(prediction.id, all[i].id, "{products:?}, position {i}");
                let best = (0..vocab).max_by(|&a, &b| row[a].total_cmp(&row[b])).unwrap();
                let second = (0..vocab).filter(|&id| id != best).map(|id| row[id]).fold(f64::NEG_INFINITY, f64::max);
                if row[best] - second > 10.0 * tolerance * norm(&mut row.iter().copied()) / (vocab as f64).sqrt() {
                    clear += 1;
                    assert_eq!(prediction.id as usize, best, "{products:?}, position {i}");
                }
            }
            assert!(clear > 32, "{products:?}: {clear} of 64 positions have a clear winner");
        }
        let wide = of(&traced(&mut load(false, Products::Own), &mel, tokens), "logits");
        let narrow = of(&traced(&mut load(true, Products::Own), &mel, tokens), "logits");
        assert!(wide != narrow, "the knob changes nothing");
    }
}

#[test]
#[ignore = "writes a checkpoint of 8.9 GB, and the CPU runs it"]
fn full_size_predictions_are_those_of_the_cpu() {
    let (_dir, model) = checkpoint(&Preset::full());
    let samples = support::recording("hibari_intro");
    let mel = &log_mel(&model, &samples, Delay::DEFAULT)[..64 * 8 * model.params.n_mels];
    let mut tokens = prompt(&model, Delay::DEFAULT);
    tokens.extend(some_tokens(&model, 64 - tokens.len()));
    let mut cpu = Cpu::load(&model.weights, &BackendOptions::default()).unwrap();
    let expected = traced(&mut cpu, mel, &tokens);
    let got = traced(&mut cuda(&model, true), mel, &tokens);
    let logits = |a: &Activations| a.iter().find(|(name, ..)| *name == "logits").unwrap().2.clone();
    let vocab = model.params.vocab_size;
    let (got_logits, expected_logits) = (logits(&got), logits(&expected));
    let (mut n, mut clear, mut same) = (0, 0, 0);
    for (a, b) in got_logits.chunks_exact(vocab).zip(expected_logits.chunks_exact(vocab)) {
        let best = |row: &[f32]| (0..vocab).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        let first = best(b);
        let second = (0..vocab).filter(|&i| i != first).map(|i| b[i]).fold(f32::NEG_INFINITY, f32::max);
        let mean = b.iter().sum::<f32>() / vocab as f32;
        let std = (b.iter().map(|x| (x - mean) * (x - mean)).sum::<f32>() / vocab as f32).sqrt();
        let agree = best(a) == first;
        n += 1;
        same += usize::from(agree);
        if b[first] - second > 0.15 * std {
            clear += 1;
            assert!(agree, "position {}: gap {} of the logits' deviation {std}", n - 1, b[first] - second);
        }
    }
    println!("{same} of {n} predictions agree, {clear} have a clear winner");
    assert_close(&got, &expected, 6e-2);
}
