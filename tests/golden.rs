//! The network against the official implementation's numbers, on checkpoints that the tests make themselves.
//!
//! `golden/kal_computer.safetensors` was recorded with transformers and mistral-common in f32 on the recording of the same
//! name. Names: `CHECKPOINT/dDELAY_MS/WHAT`; what does not depend on the delay has none.

mod support;

use std::sync::{Arc, Mutex};

use safetensors::SafeTensors;
use sha2::{Digest, Sha256};
use support::synthetic::Preset;
use voxtral::audio::mel::{MelFilters, MelStream};
use voxtral::backend::cpu::Cpu;
use voxtral::backend::{Backend, BackendOptions, EncodeChunk, Span};
use voxtral::model::{Delay, Model, Utf8Joiner};

const PIECES: &str = include_str!("golden/vocab.txt");
const GOLDEN: &[u8] = include_bytes!("golden/kal_computer.safetensors");
const SAMPLES_PER_TOKEN: usize = 1280;

fn checkpoint(preset: &Preset) -> (tempfile::TempDir, Model) {
    let dir = tempfile::tempdir().unwrap();
    preset.write(dir.path(), Some(PIECES)).unwrap();
    let model = Model::open(dir.path()).unwrap();
    (dir, model)
}

struct Golden<'a>(SafeTensors<'a>);

impl Golden<'_> {
    fn open() -> Self {
        Self(SafeTensors::deserialize(GOLDEN).unwrap())
    }

    fn f32(&self, name: &str) -> Vec<f32> {
        let words = self.0.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
        words.into_iter().map(f32::from_le_bytes).collect()
    }

    fn ids(&self, name: &str) -> Vec<u32> {
        let words = self.0.tensor(name).unwrap().data().as_chunks::<4>().0.to_vec();
        words.into_iter().map(u32::from_le_bytes).collect()
    }
}

/// Named activations of a run, in order: name, layer, values.
type Activations = Arc<Mutex<Vec<(&'static str, usize, Vec<f32>)>>>;

fn gather(activations: &Activations, name: &str, layer: usize) -> Vec<f32> {
    let all = activations.lock().unwrap();
    all.iter().filter(|(n, l, _)| *n == name && *l == layer).flat_map(|(.., v)| v.iter().copied()).collect()
}

/// Every value within `5e-4 · max(1, rms)`, the tolerance for f32 builds.
#[track_caller]
fn assert_close(what: &str, got: &[f32], expected: &[f32]) {
    assert_eq!(got.len(), expected.len(), "{what}: length");
    let rms = (expected.iter().map(|x| f64::from(x * x)).sum::<f64>() / expected.len() as f64).sqrt();
    let worst = got.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).fold(0.0, f64::max);
    assert!(worst <= 5e-4 * rms.max(1.0), "{what}: off by {worst:.2e}, rms {rms:.2e}");
    println!("{what}: off by {worst:.1e}, rms {rms:.2}");
}

/// Left padding, samples, right padding, and the 40 samples more that the last position's frames look ahead.
fn log_mel(model: &Model, samples: &[f32], delay: Delay) -> Vec<f32> {
    let filters = Arc::new(MelFilters::new(model.params.n_mels, model.params.log_mel_max));
    let mut mel = MelStream::new(filters, model.tokenizer.left_pad * SAMPLES_PER_TOKEN);
    mel.push(samples);
    let to_whole = samples.len().next_multiple_of(SAMPLES_PER_TOKEN) - samples.len();
    mel.push_silence(to_whole + (delay.tokens() + 11) * SAMPLES_PER_TOKEN + 40);
    let mut frames = Vec::new();
    mel.take(mel.available(), &mut frames);
    frames
}

struct Run {
    tokens: Vec<u32>,
    activations: Activations,
}

/// Whole-file greedy decoding as the official code does it: up to EOS or the end of the padded audio.
fn transcribe(model: &Model, samples: &[f32], delay_ms: f64) -> Run {
    let mut cpu = Cpu::load(&model.weights, &BackendOptions::default()).unwrap();
    let activations = Activations::default();
    let sink = activations.clone();
    cpu.trace(Some(Box::new(move |name, layer, rows, _| sink.lock().unwrap().push((name, layer, rows.to_vec())))));

    let delay = Delay::from_ms(delay_ms).unwrap();
    let mel = log_mel(model, samples, delay);
    let mut stream = cpu.open(delay).unwrap();
    cpu.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: &mel }]).unwrap();
    let positions = mel.len() / model.params.n_mels / 8;

    let special = model.tokenizer.special;
    let mut inputs = vec![special.bos];
    inputs.resize(1 + model.tokenizer.left_pad + delay.tokens(), special.streaming_pad);
    let mut tokens = Vec::new();
    let mut fed = 0;
    loop {
        let mut span = Span {
            stream: &mut stream,
            inputs: &inputs,
            predict_from: 0,
            drafts_from: usize::MAX,
            n_top: 1,
            predictions: Vec::new(),
        };
        cpu.decode(std::slice::from_mut(&mut span)).unwrap();
        let id = span.predictions.last().unwrap().id;
        fed += inputs.len();
        tokens.push(id);
        if id == special.eos || fed + 1 >= positions {
            return Run { tokens, activations };
        }
        inputs = vec![id];
    }
}

#[test]
fn checkpoints_are_the_same_bits_as_the_reference_scripts() {
    for (preset, sha256) in [
        (Preset::tiny(), "b73de31f37ae6909927e164513699213dea787006a597d0196e42e9cca41aaec"),
        (Preset::tiny_eos(), "189acd5375d5c26bf5954d4715a4853c31ed331969dc370d7db22e2657ff1053"),
    ] {
        let (dir, _) = checkpoint(&preset);
        let bytes = std::fs::read(dir.path().join("consolidated.safetensors")).unwrap();
        assert_eq!(format!("{:x}", Sha256::digest(bytes)), sha256);
    }
}

#[test]
fn mel_equals_the_official_one() {
    let (_dir, model) = checkpoint(&Preset::tiny());
    let expected = Golden::open().f32("mel");
    let got = log_mel(&model, &support::recording("kal_computer"), Delay::DEFAULT);
    assert_eq!(got.len(), expected.len());
    let worst = got.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
    assert!(worst <= 1e-4, "off by {worst:.1e}");
    // silence is exact
    assert!(got.iter().zip(&expected).filter(|(_, b)| **b == -0.625).all(|(a, b)| a == b));
}

#[test]
fn encoder_and_adapter_equal_the_official_ones() {
    let (_dir, model) = checkpoint(&Preset::tiny());
    let run = transcribe(&model, &support::recording("kal_computer"), 480.0);
    let golden = Golden::open();
    for (name, layer, expected) in [
        ("conv", 0, "tiny/conv"),
        ("encoder_layer", 0, "tiny/enc_l0"),
        ("encoder_layer", 2, "tiny/enc_last"),
        ("encoder_norm", 0, "tiny/enc_norm"),
        ("adapter", 0, "tiny/adapter"),
        ("decoder_layer", 0, "tiny/d480/dec_l0"),
        ("decoder_layer", 2, "tiny/d480/dec_last"),
        ("decoder_norm", 0, "tiny/d480/dec_norm"),
    ] {
        let expected = golden.f32(expected);
        assert_close(name, &gather(&run.activations, name, layer), &expected);
    }
}

#[test]
fn tokens_and_logits_equal_the_official_ones_at_all_delays() {
    let golden = Golden::open();
    let texts: serde_json::Value = serde_json::from_str(include_str!("golden/texts.json")).unwrap();
    let samples = support::recording("kal_computer");
    for (name, preset) in [("tiny", Preset::tiny()), ("tiny-eos", Preset::tiny_eos())] {
        let (_dir, model) = checkpoint(&preset);
        let vocab = model.params.vocab_size;
        for delay_ms in [80, 480, 2400] {
            let run = transcribe(&model, &samples, f64::from(delay_ms));
            let key = |what| format!("{name}/d{delay_ms}/{what}");
            assert_eq!(run.tokens, golden.ids(&key("tokens")), "{name} at {delay_ms} ms");
            let mut joiner = Utf8Joiner::default();
            let pieces = run.tokens.iter().filter_map(|&id| model.tokenizer.bytes(id));
            let text: String = pieces.map(|bytes| joiner.push(bytes)).collect();
            assert_eq!(text + &joiner.finish(), texts[name][delay_ms.to_string()], "{name} at {delay_ms} ms");

            assert_close("t_cond", &gather(&run.activations, "t_cond", 0), &golden.f32(&key("t_cond")));
            let ada: Vec<f32> = (0..3).flat_map(|i| gather(&run.activations, "ada", i)).collect();
            assert_close("ada", &ada, &golden.f32(&key("ada")));

            let prompt = 1 + model.tokenizer.left_pad + Delay::from_ms(f64::from(delay_ms)).unwrap().tokens();
            let logits = gather(&run.activations, "logits", 0).split_off((prompt - 1) * vocab);
            assert_close("logits", &logits[..8 * vocab], &golden.f32(&key("logits")));
            let ids = golden.ids(&key("top8_ids"));
            let best: Vec<f32> = ids.iter().enumerate().map(|(i, &id)| logits[i / 8 * vocab + id as usize]).collect();
            assert_close("best logits", &best, &golden.f32(&key("top8_vals")));
        }
    }
}
