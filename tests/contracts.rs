//! What the program promises, on the shipped model and recordings and on synthetic checkpoints.

mod support;

use std::sync::OnceLock;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::Value;
use support::synthetic::Preset;
use support::{recording, tiny_model};
use voxtral::backend::cpu::Cpu;
use voxtral::backend::cpu::simd::Isa;
use voxtral::backend::{Backend, BackendOptions};
use voxtral::{Delay, Engine, Event, Model, Session, SessionOptions};

const RECORDINGS: [&str; 7] =
    ["hibari_intro", "kal_computer", "awb_library", "slt_numbers", "espeak_us_garden", "long_mixed", "noise_only"];
const EOS: u32 = 2;

fn engine(threads: usize) -> Engine<Cpu> {
    Engine::load(
        Model::open(&tiny_model()).unwrap(),
        &BackendOptions { threads: Some(threads), ..BackendOptions::default() },
    )
    .unwrap()
}

fn options(delay_tokens: usize, interval_ms: u64) -> SessionOptions {
    let delay = Some(Delay::from_ms(delay_tokens as f64 * 80.0).unwrap());
    SessionOptions { delay, interval: Duration::from_millis(interval_ms), ..SessionOptions::default() }
}

#[derive(Debug, Default, Clone, PartialEq)]
struct Transcript {
    ids: Vec<u32>,
    text: String,
}

impl Transcript {
    fn drain<B: Backend>(&mut self, session: &mut Session<B>) {
        while let Some(event) = session.next_event() {
            match event {
                Event::Token(token) => {
                    self.ids.push(token.id);
                    self.text += &token.text;
                }
                Event::Restart { .. } => {}
                Event::End { text } => self.text += &text,
            }
        }
    }
}

fn transcribe(engine: &mut Engine<Cpu>, samples: &[f32], options: &SessionOptions) -> Transcript {
    let mut session = engine.open(options).unwrap();
    session.push(samples).unwrap();
    session.finish();
    engine.advance(&mut [&mut session]).unwrap();
    let mut transcript = Transcript::default();
    transcript.drain(&mut session);
    transcript
}

/// Splits `samples` into pushes of the given sizes, over and over, advancing after each.
fn stream(engine: &mut Engine<Cpu>, samples: &[f32], options: &SessionOptions, sizes: &[usize]) -> Transcript {
    let mut session = engine.open(options).unwrap();
    let mut transcript = Transcript::default();
    let mut rest = samples;
    for &size in sizes.iter().cycle() {
        let (now, later) = rest.split_at(size.min(rest.len()));
        session.push(now).unwrap();
        engine.advance(&mut [&mut session]).unwrap();
        transcript.drain(&mut session);
        rest = later;
        if rest.is_empty() {
            break;
        }
    }
    session.finish();
    engine.advance(&mut [&mut session]).unwrap();
    transcript.drain(&mut session);
    transcript
}

#[test]
fn the_shipped_recordings_give_the_reference_ids_at_all_delays() {
    let decoded: Value =
        serde_json::from_str(&std::fs::read_to_string(support::project("samples/decoded.json")).unwrap()).unwrap();
    let mut engine = engine(2);
    for name in RECORDINGS {
        let samples = recording(name);
        for delay in [1, 3, 6, 12, 30] {
            let expected = &decoded[name][delay.to_string()];
            let mut ids: Vec<u32> = serde_json::from_value(expected["ids"].clone()).unwrap();
            if ids.last() != Some(&EOS) {
                ids.pop(); // that decode feeds the last position too; the official loop does not, nor do we
            }
            let got = transcribe(&mut engine, &samples, &options(delay, 2000));
            // the reference ends at EOS, where we start again if there is audio left
            assert_eq!(&got.ids[..ids.len()], ids, "{name}, delay {delay}");
            let whole = ids.last() != Some(&EOS) || ids.len() * 1280 >= samples.len();
            assert_eq!(got.ids.len() == ids.len(), whole, "{name}, delay {delay}");
            assert_eq!(got.text.trim(), expected["text"].as_str().unwrap().trim(), "{name}, delay {delay}");
        }
    }
}

#[test]
fn every_instruction_set_gives_the_reference_text() {
    for isa in Isa::available() {
        let model = Model::open(&tiny_model()).unwrap();
        let backend = Cpu::with_isa(&model.weights, &BackendOptions::default(), isa).unwrap();
        let mut engine = Engine::new(backend, model.tokenizer, &model.params);
        let got = transcribe(&mut engine, &recording("kal_computer"), &SessionOptions::default());
        assert_eq!(got.text, " The computer was too slow, so we bought a new one last week.", "{isa:?}");
    }
}

fn reference() -> &'static Vec<(Vec<f32>, Transcript)> {
    static ALL: OnceLock<Vec<(Vec<f32>, Transcript)>> = OnceLock::new();
    ALL.get_or_init(|| {
        let mut engine = engine(2);
        let cases = [("hibari_intro", 0..70_000), ("slt_numbers", 0..90_000), ("kal_computer", 20_000..110_000)];
        cases
            .map(|(name, range)| {
                let samples = recording(name)[range].to_vec();
                let transcript = transcribe(&mut engine, &samples, &options(6, 2000));
                (samples, transcript)
            })
            .into()
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn same_audio_same_words(
        case in 0usize..3,
        sizes in prop::collection::vec(1usize..20_000, 1..8),
        interval_ms in prop_oneof![Just(80u64), Just(10_000), 80u64..10_000],
        threads in 1usize..=4,
    ) {
        let (samples, expected) = &reference()[case];
        let got = stream(&mut engine(threads), samples, &options(6, interval_ms), &sizes);
        prop_assert_eq!(&got, expected);
    }

    #[test]
    fn interleaved_sessions_are_as_if_alone(
        portions in prop::collection::vec((0usize..3, 500usize..30_000, 80u64..4000), 2..5),
    ) {
        let mut engine = engine(2);
        let mut sessions: Vec<_> = portions
            .iter()
            .map(|&(case, portion, interval_ms)| {
                let session = engine.open(&options(6, interval_ms)).unwrap();
                (session, reference()[case].0.chunks(portion), Transcript::default())
            })
            .collect();
        while sessions.iter().any(|(session, ..)| !session.is_ended()) {
            for (session, parts, _) in &mut sessions {
                match parts.next() {
                    Some(part) => session.push(part).unwrap(),
                    None => session.finish(),
                }
            }
            let mut all: Vec<_> = sessions.iter_mut().map(|(session, ..)| session).collect();
            engine.advance(&mut all).unwrap();
            sessions.iter_mut().for_each(|(session, _, transcript)| transcript.drain(session));
        }
        for ((.., got), (case, ..)) in sessions.iter().zip(portions) {
            prop_assert_eq!(got, &reference()[case].1);
        }
    }
}

#[test]
fn forked_streams_go_on_as_the_one_they_were_made_of() {
    let model = Model::open(&tiny_model()).unwrap();
    let options = BackendOptions { threads: Some(2), ..BackendOptions::default() };
    support::forks::check(&mut Cpu::load(&model.weights, &options).unwrap(), &model.params);
}

#[test]
fn two_sentences_with_six_seconds_of_nothing_between_both_come_out() {
    let mut engine = engine(2);
    let (first, second) = (recording("hibari_intro"), recording("kal_computer"));
    let samples = [&first[..], &[0.0; 96_000], &second].concat();
    let whole = transcribe(&mut engine, &samples, &options(6, 2000));
    assert!(whole.ids[..whole.ids.len() - 1].contains(&EOS), "the pause must bring an EOS");
    let text = "Hello, this is a short test of the speech recognition system. It writes down every word, while I am still \
                speaking. The computer was too slow, so we bought a new one last week.";
    assert_eq!(whole.text.trim(), text);
    for interval_ms in [80, 700, 10_000] {
        assert_eq!(stream(&mut engine, &samples, &options(6, interval_ms), &[3000]), whole);
    }
}

#[test]
fn after_eos_the_rest_is_a_fresh_start_on_what_the_eos_left() {
    let dir = tempfile::tempdir().unwrap();
    Preset::tiny_eos().write(dir.path(), None).unwrap();
    let model = Model::open(dir.path()).unwrap();
    let mut engine = Engine::<Cpu>::load(model, &BackendOptions::default()).unwrap();
    let samples = recording("kal_computer");
    for delay in [1, 6, 30] {
        let whole = transcribe(&mut engine, &samples, &options(delay, 2000)).ids;
        let first_eos = whole.iter().position(|&id| id == EOS).unwrap();
        assert!((first_eos + 1) * 1280 < samples.len(), "delay {delay}: EOS must leave audio");
        // the k-th token speaks of the k-th 80 ms: cut the audio there and begin anew
        let mut cut: Vec<u32> = Vec::new();
        while cut.len() * 1280 < samples.len() {
            let rest = transcribe(&mut engine, &samples[cut.len() * 1280..], &options(delay, 2000)).ids;
            let end = rest.iter().position(|&id| id == EOS).map_or(rest.len(), |at| at + 1);
            cut.extend(&rest[..end]);
        }
        assert_eq!(whole, cut, "delay {delay}");
    }
}

#[test]
fn speech_up_to_the_last_sample_is_heard() {
    let mut engine = engine(2);
    // the last word ends at 7.655 s
    let samples = &recording("hibari_intro")[..(7.66 * 16_000.0) as usize];
    for delay in [3, 6, 12, 30] {
        let text = transcribe(&mut engine, samples, &options(delay, 2000)).text;
        assert!(text.ends_with("still speaking."), "delay {delay}: {text}");
    }
}

#[test]
fn ten_milliseconds_give_the_tokens_that_the_official_loop_gives() {
    let got = transcribe(&mut engine(1), &recording("hibari_intro")[..160], &options(6, 2000));
    assert_eq!(got.ids.len(), 1 + 10);
}

#[test]
fn silence_says_nothing() {
    let got = transcribe(&mut engine(2), &[0.0; 160_000], &options(6, 2000));
    assert_eq!(got.text, "");
}
