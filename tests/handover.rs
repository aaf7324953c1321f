//! Work that moves to another backend when the first one fails: no word is lost or doubled.

mod support;

use std::collections::VecDeque;
use std::sync::OnceLock;
use std::time::Duration;

use proptest::prelude::*;
use support::failing::{Failing, Failure};
use support::{recording, tiny_model};
use voxtral::backend::cpu::Cpu;
use voxtral::backend::handover::Handover;
use voxtral::backend::{Backend, BackendOptions, EncodeChunk, Export, Import, Span};
use voxtral::{Delay, Engine, Event, Model, Session, SessionOptions};

type Both = Handover<Failing<Cpu>, Cpu>;

fn model() -> Model {
    Model::open(&tiny_model()).unwrap()
}

fn backend_options() -> BackendOptions {
    BackendOptions { threads: Some(2), ..BackendOptions::default() }
}

fn engine(calls: usize, failure: Failure) -> Engine<Both> {
    let model = model();
    let options = backend_options();
    let first = Failing::new(Cpu::load(&model.weights, &options).unwrap(), calls, failure);
    Engine::new(Handover::new(first, &model.weights, &options), model.tokenizer, &model.params)
}

fn drain<B: Backend>(session: &mut Session<B>, ids: &mut Vec<u32>, text: &mut String) {
    while let Some(event) = session.next_event() {
        match event {
            Event::Token(token) => {
                ids.push(token.id);
                *text += &token.text;
            }
            Event::Restart { .. } => {}
            Event::End { text: rest } => *text += &rest,
        }
    }
}

/// Ids and text of each input, all worked on together; every advance brings one more interval of each. An input whose
/// session cannot be opened waits for the others, as callers do where there is no room.
fn transcribe<B: Backend>(engine: &mut Engine<B>, inputs: &[&[f32]], interval_ms: u64) -> Vec<(Vec<u32>, String)> {
    let options = SessionOptions { interval: Duration::from_millis(interval_ms), ..SessionOptions::default() };
    let mut transcripts = vec![(Vec::new(), String::new()); inputs.len()];
    let mut waiting: VecDeque<_> = inputs
        .iter()
        .zip(&mut transcripts)
        .map(|(samples, transcript)| (samples.chunks(interval_ms as usize * 16), transcript))
        .collect();
    let mut open = Vec::new();
    loop {
        while let Some(input) = waiting.pop_front() {
            match engine.open(&options) {
                Ok(session) => open.push((session, input)),
                Err(_) if !open.is_empty() => {
                    waiting.push_front(input);
                    break;
                }
                Err(error) => panic!("nothing to wait for: {error}"),
            }
        }
        if open.is_empty() {
            break;
        }
        for (session, (parts, _)) in &mut open {
            match parts.next() {
                Some(part) => session.push(part).unwrap(),
                None => session.finish(),
            }
        }
        engine.advance(&mut open.iter_mut().map(|(session, _)| session).collect::<Vec<_>>()).unwrap();
        for (session, (_, (ids, text))) in &mut open {
            drain(session, ids, text);
        }
        open.retain(|(session, _)| !session.is_ended());
    }
    transcripts
}

struct Reference {
    inputs: Vec<Vec<f32>>,
    transcripts: Vec<(Vec<u32>, String)>,
}

/// What the CPU alone makes of some speech.
fn reference() -> &'static Reference {
    static REFERENCE: OnceLock<Reference> = OnceLock::new();
    REFERENCE.get_or_init(|| {
        let inputs = vec![
            recording("kal_computer"),
            recording("slt_numbers"),
            [&recording("hibari_intro")[..70_000], &[0.0; 40_000], &recording("kal_computer")[..60_000]].concat(),
        ];
        let mut engine = Engine::<Cpu>::load(model(), &backend_options()).unwrap();
        let transcripts = inputs.iter().map(|samples| transcribe(&mut engine, &[samples], 2000).remove(0)).collect();
        Reference { inputs, transcripts }
    })
}

fn failure() -> impl Strategy<Value = Failure> {
    prop_oneof![Just(Failure::Refused), Just(Failure::Halfway), Just(Failure::Dead)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10))]

    #[test]
    fn a_failure_at_any_call_changes_no_token(
        calls in 0usize..70,
        failure in failure(),
        n_inputs in 1usize..=3,
        interval_ms in prop::sample::select(vec![80u64, 500, 2000, 20_000]),
    ) {
        let Reference { inputs, transcripts } = reference();
        let inputs: Vec<_> = inputs[..n_inputs].iter().map(Vec::as_slice).collect();
        let got = transcribe(&mut engine(calls, failure), &inputs, interval_ms);
        prop_assert_eq!(&got, &transcripts[..n_inputs]);
    }
}

#[test]
fn a_first_backend_that_never_works_is_no_loss() {
    let Reference { inputs, transcripts } = reference();
    for failure in [Failure::Refused, Failure::Dead] {
        // opening the stream, the first frames, the prompt
        for calls in 0..3 {
            let got = transcribe(&mut engine(calls, failure), &[&inputs[0]], 2000);
            assert_eq!(got, transcripts[..1], "{failure:?} after {calls} calls");
        }
    }
}

#[test]
fn no_room_for_one_more_stream_leaves_the_others_where_they_are() {
    let model = model();
    let options = backend_options();
    let first = Failing::new(Cpu::load(&model.weights, &options).unwrap(), 1, Failure::Refused);
    let mut both: Both = Handover::new(first, &model.weights, &options);
    let stream = both.open(Delay::DEFAULT).unwrap();
    assert!(both.open(Delay::DEFAULT).is_err() && both.is_on_first());
    drop(stream);
    assert!(both.open(Delay::DEFAULT).is_ok() && both.is_on_first());
}

#[test]
fn a_device_that_dies_in_a_long_recording_costs_no_word() {
    let samples = recording("long_mixed");
    let mut cpu = Engine::<Cpu>::load(model(), &backend_options()).unwrap();
    let (_, expected) = transcribe(&mut cpu, &[&samples], 2000).remove(0);
    // some 940 tokens: only the last 15 s are fed again
    for calls in [400, 750] {
        let (_, text) = transcribe(&mut engine(calls, Failure::Dead), &[&samples], 2000).remove(0);
        assert_eq!(text, expected, "after {calls} calls");
    }
}

#[test]
fn a_device_that_failed_is_freed_when_no_stream_is_on_it() {
    for failure in [Failure::Refused, Failure::Halfway, Failure::Dead] {
        let mut engine = engine(20, failure);
        let mut sessions = [0, 1].map(|_| engine.open(&SessionOptions::default()).unwrap());
        sessions.iter_mut().for_each(|session| session.push(&recording("kal_computer")).unwrap());
        let [a, b] = &mut sessions;
        while engine.backend().is_on_first() {
            assert!(engine.backend().memory_in_use().is_some());
            engine.step(&mut [a, b]).unwrap();
        }
        for _ in 0..2 {
            engine.step(&mut [a, b]).unwrap();
        }
        assert!(engine.backend().memory_in_use().is_none(), "{failure:?}");
    }
}

#[test]
fn an_exported_stream_goes_on_elsewhere_bit_for_bit() {
    let model = model();
    let mut cpu = Cpu::load(&model.weights, &backend_options()).unwrap();
    let width = 8 * model.params.n_mels;
    let mel: Vec<f32> = (0..400 * width).map(|i| ((i * 7919 % 1013) as f32 / 506.5) - 1.0).collect();
    let tokens: Vec<u32> = (0..400).map(|i| if i % 3 == 0 { 33 } else { 1000 + i * 37 % 1800 }).collect();
    let decode = |cpu: &mut Cpu, stream: &mut _, inputs: &[u32]| {
        let mut span =
            Span { stream, inputs, predict_from: 0, drafts_from: usize::MAX, n_top: 8, predictions: Vec::new() };
        cpu.decode(std::slice::from_mut(&mut span)).unwrap();
        span.predictions
    };
    // within the first window, and after both have wrapped around
    for (encoded, decoded) in [(50, 20), (380, 340)] {
        let mut stream = cpu.open(Delay::DEFAULT).unwrap();
        cpu.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: &mel[..encoded * width] }]).unwrap();
        decode(&mut cpu, &mut stream, &tokens[..decoded]);
        let state = cpu.export(&stream).unwrap();
        let mut other = Cpu::load(&model.weights, &backend_options()).unwrap();
        let mut moved = other.import(Delay::DEFAULT, &state).unwrap();
        assert_eq!(other.export(&moved).unwrap(), state);
        let go_on = |cpu: &mut Cpu, stream: &mut _| {
            cpu.rewind(stream, decoded as u64 - 10);
            let first = decode(cpu, stream, &tokens[decoded - 10..encoded]);
            cpu.encode(&mut [EncodeChunk { stream: &mut *stream, log_mel: &mel[encoded * width..] }]).unwrap();
            [first, decode(cpu, stream, &tokens[encoded..])].concat()
        };
        assert_eq!(go_on(&mut other, &mut moved), go_on(&mut cpu, &mut stream));
    }
}
