//! The guard against gaps: with the shipped model, kept blank by force for a while, and in the program.

mod support;

use std::f32::consts::TAU;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use support::{project, recording, tiny_model};
use voxtral::backend::cpu::Cpu;
use voxtral::backend::{Backend, BackendOptions, EncodeChunk, Prediction, Span, TraceSink};
use voxtral::model::{Delay, Weights};
use voxtral::output::{Layout, TranscriptBuilder};
use voxtral::{Engine, Event, GapGuard, Model, Result, SecondLook, SessionOptions};

const BLANK: u32 = 32;
/// Positions of the prompt, at the usual delay.
const PROMPT: usize = 39;

/// A backend whose first stream says nothing but blanks from one position to another.
struct Rutted<B> {
    backend: B,
    n_opened: usize,
    rut: std::ops::Range<usize>,
}

struct RuttedStream<S> {
    stream: S,
    number: usize,
    position: usize,
}

impl<B: Backend> Backend for Rutted<B> {
    type Stream = RuttedStream<B::Stream>;

    fn load(weights: &Weights, options: &BackendOptions) -> Result<Self> {
        Ok(Self { backend: B::load(weights, options)?, n_opened: 0, rut: 0..0 })
    }

    fn open(&mut self, delay: Delay) -> Result<Self::Stream> {
        self.n_opened += 1;
        Ok(RuttedStream { stream: self.backend.open(delay)?, number: self.n_opened - 1, position: 0 })
    }

    fn fork(&mut self, stream: &Self::Stream) -> Result<Self::Stream> {
        self.n_opened += 1;
        let (number, position) = (self.n_opened - 1, stream.position);
        Ok(RuttedStream { stream: self.backend.fork(&stream.stream)?, number, position })
    }

    fn encode(&mut self, batch: &mut [EncodeChunk<'_, Self::Stream>]) -> Result<()> {
        let chunk = |chunk: &mut EncodeChunk<'_, Self::Stream>| -> Result<()> {
            self.backend.encode(&mut [EncodeChunk { stream: &mut chunk.stream.stream, log_mel: chunk.log_mel }])
        };
        batch.iter_mut().try_for_each(chunk)
    }

    fn decode(&mut self, batch: &mut [Span<'_, Self::Stream>]) -> Result<()> {
        for span in batch {
            let RuttedStream { stream, number, position } = &mut *span.stream;
            let Span { inputs, predict_from, drafts_from, n_top, .. } = *span;
            let mut inner = Span { stream, inputs, predict_from, drafts_from, n_top, predictions: Vec::new() };
            self.backend.decode(std::slice::from_mut(&mut inner))?;
            span.predictions = inner.predictions;
            for (i, prediction) in span.predictions.iter_mut().enumerate() {
                if *number == 0 && self.rut.contains(&(*position + predict_from + i)) {
                    *prediction = Prediction { id: BLANK, top: Vec::new() };
                }
            }
            *position += inputs.len();
        }
        Ok(())
    }

    fn rewind(&mut self, stream: &mut Self::Stream, position: u64) {
        self.backend.rewind(&mut stream.stream, position);
        stream.position = position as usize;
    }

    fn max_rows(&self) -> usize {
        self.backend.max_rows()
    }

    fn decoder_bytes(&self) -> u64 {
        self.backend.decoder_bytes()
    }

    fn trace(&mut self, sink: Option<TraceSink>) {
        self.backend.trace(sink);
    }
}

struct Again<'a> {
    engine: &'a mut Engine<Rutted<Cpu>>,
    samples: &'a [f32],
}

impl SecondLook for Again<'_> {
    fn samples(&mut self, start: u64, end: u64) -> Result<Vec<f32>> {
        let n = self.samples.len();
        Ok(self.samples[(start as usize).min(n)..(end as usize).min(n)].to_vec())
    }

    fn decode(&mut self, samples: &[f32]) -> Result<Vec<Event>> {
        let mut session = self.engine.open(&SessionOptions::default())?;
        session.push(samples)?;
        session.finish();
        self.engine.advance(&mut [&mut session])?;
        Ok(std::iter::from_fn(|| session.next_event()).collect())
    }
}

/// The text of a recording with blanks from one second to another, and the guard that watched over it.
fn transcribe(name: &str, rut: std::ops::Range<usize>, guarded: bool) -> (String, GapGuard) {
    let model = Model::open(&tiny_model()).unwrap();
    let backend = Cpu::load(&model.weights, &BackendOptions::default()).unwrap();
    let position = |second: usize| PROMPT + second * 25 / 2;
    let rutted = Rutted { backend, n_opened: 0, rut: position(rut.start)..position(rut.end) };
    let mut engine = Engine::new(rutted, model.tokenizer, &model.params);
    let samples = recording(name);
    let mut session = engine.open(&SessionOptions::default()).unwrap();
    let (mut guard, mut feed) = GapGuard::new();
    let mut builder = TranscriptBuilder::new(&Layout::default(), None);
    for piece in samples.chunks(100_000) {
        session.push(piece).unwrap();
        feed.samples(piece);
        if session.n_samples() == samples.len() as u64 {
            session.finish();
        }
        engine.advance(&mut [&mut session]).unwrap();
        while let Some(event) = session.next_event() {
            let events = match guarded {
                true => guard.event(event, &mut Again { engine: &mut engine, samples: &samples }).unwrap(),
                false => vec![event],
            };
            events.iter().for_each(|event| builder.event(event));
        }
    }
    let transcript = builder.finish();
    let ends: Vec<_> = transcript.words().map(|word| word.end_ms).collect();
    assert!(ends.is_sorted(), "{ends:?}");
    (transcript.text(), guard)
}

/// Words that must be inserted, dropped or replaced to get from one text to the other.
fn word_errors(text: &str, reference: &str) -> usize {
    let words = |text: &str| text.to_lowercase().split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (text, reference) = (words(text), words(reference));
    let mut row: Vec<usize> = (0..=reference.len()).collect();
    for (i, word) in text.iter().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, other) in reference.iter().enumerate() {
            let replaced = diagonal + usize::from(word != other);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[reference.len()]
}

#[test]
fn a_rut_is_found_and_its_words_come_back() {
    let reference = std::fs::read_to_string(project("samples/long_mixed.txt")).unwrap();
    let (plain, guard) = transcribe("long_mixed", 0..0, true);
    assert!(guard.gaps().is_empty());
    let plain_errors = word_errors(&plain, &reference);
    for rut in [20..40, 50..100] {
        let (lost, _) = transcribe("long_mixed", rut.clone(), false);
        assert!(word_errors(&lost, &reference) > plain_errors + 30, "{lost}");
        let (text, guard) = transcribe("long_mixed", rut.clone(), true);
        let errors = word_errors(&text, &reference);
        println!("{rut:?} s: {errors} word errors, {plain_errors} without a rut; {:?}", guard.gaps());
        assert!(errors <= plain_errors + 4, "{errors} errors: {text}");
        assert!(guard.gaps().iter().all(|gap| gap.start_ms + 3000 > 1000 * rut.start as u64 && !gap.text.is_empty()));
    }
}

/// Twelve seconds of somebody humming, in syllables: it moves like a voice, and the model has no words for it.
fn humming(path: &Path) {
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 16_000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut writer = hound::WavWriter::create(path, spec).unwrap();
    let mut phase = 0.0f32;
    for i in 0..13 * 16_000 {
        let t = i as f32 / 16_000.0 - 0.5;
        let bend = 0.25 * (TAU * 1.147 * t).sin() + 0.1 * (TAU * 1.3 * t).sin();
        phase = (phase + 90.0 * 2f32.powf(bend) / 16_000.0).fract();
        let loudness = if (0.0..12.0).contains(&t) { (1.5 * (TAU * 3.1 * t).sin()).clamp(0.0, 1.0) } else { 0.0 };
        writer.write_sample((0.02 * 32_768.0 * loudness * (TAU * phase).sin()) as i16).unwrap();
    }
    writer.finalize().unwrap();
}

/// Runs the program with these arguments; its exit code, what it says in JSON, and stderr.
fn voxtral(arguments: &[&str], input: &Path) -> (i32, serde_json::Value, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_voxtral"));
    command.env_remove("VOX_MODEL").env_remove("VOX_PRINT_TIMINGS").stdin(Stdio::null());
    command.arg("-d").arg(tiny_model()).args(["--device", "cpu", "-f", "json"]).args(arguments).arg(input);
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap(), serde_json::from_slice(&stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn speech_without_words_is_reported_and_strictly_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("humming.wav");
    humming(&path);
    let (code, json, stderr) = voxtral(&[], &path);
    assert_eq!((code, &json["text"]), (0, &"".into()));
    let [gap] = json["gaps"].as_array().unwrap().as_slice() else { panic!("{json}") };
    assert!(gap["recovered"] == false && gap["speech"].as_f64() >= Some(8.0), "{gap}");
    assert!(gap["start"].as_f64() <= Some(1.0) && gap["end"].as_f64() >= Some(12.0), "{gap}");
    assert_eq!(json["coverage"]["missed"], gap["speech"]);
    assert!(stderr.contains("humming.wav") && stderr.contains("no words for speech from 0.0"), "{stderr}");

    let (code, json, stderr) = voxtral(&["--strict", "--silent"], &path);
    assert_eq!((code, json["gaps"].as_array().unwrap().len()), (1, 1));
    assert!(stderr.contains("s of speech have no words"), "{stderr}");
    let (code, json, stderr) = voxtral(&["--no-gap-guard"], &path);
    assert_eq!((code, &json["gaps"], stderr.as_str()), (0, &serde_json::json!([]), ""));
}

#[test]
fn recordings_and_noise_give_no_cause() {
    for name in ["kal_computer", "awb_library", "noise_only"] {
        let (code, json, stderr) = voxtral(&["--strict"], &project(&format!("samples/{name}.wav")));
        assert_eq!((code, &json["gaps"], stderr.as_str()), (0, &serde_json::json!([]), ""), "{name}");
    }
}
