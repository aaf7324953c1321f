//! Sessions over the fake backend, against a plain statement of what a session must say.

use std::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::audio::mel::MelStream;
use crate::backend::fake::Fake;
use crate::backend::{MAX_REWIND, Span};
use crate::model::params::SAMPLES_PER_TOKEN;

const EOS: u32 = 2;

pub(super) fn engine(eos_in: u64) -> Engine<Fake> {
    let tokenizer = Tokenizer::parse(include_bytes!("../../samples/tiny-model/tekken.json"), 2816).unwrap();
    let params = Params::parse(include_bytes!("../../samples/tiny-model/params.json")).unwrap();
    Engine::new(Fake::new(params.n_mels, eos_in), tokenizer, &params)
}

pub(super) fn noise(n: usize, seed: u32) -> Vec<f32> {
    let hash = |i: u32| (i ^ seed).wrapping_mul(0x9E37_79B9).rotate_left(13).wrapping_mul(0x85EB_CA6B);
    (0..n as u32).map(|i| (hash(i) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// What the official code does with a whole file, over and over from the moment of each EOS on.
fn definition(engine: &mut Engine<Fake>, samples: &[f32], delay: Delay) -> Vec<u32> {
    let mut tokens = Vec::new();
    let mut start = 0;
    while start < samples.len() {
        let rest = &samples[start..];
        let mut mel = MelStream::new(engine.shared.filters.clone(), 32 * SAMPLES_PER_TOKEN);
        mel.push(rest);
        let whole = rest.len().div_ceil(SAMPLES_PER_TOKEN);
        mel.push_silence(whole * SAMPLES_PER_TOKEN - rest.len() + (delay.tokens() + 11) * SAMPLES_PER_TOKEN);
        let (prompt, positions) = (33 + delay.tokens(), 32 + whole + delay.tokens() + 11);
        let mut frames = Vec::new();
        mel.take((positions - 1) * 8, &mut frames);
        let mut stream = engine.backend.open(delay).unwrap();
        engine.backend.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: &frames }]).unwrap();

        let mut inputs = vec![1];
        inputs.resize(prompt, 32);
        start = samples.len();
        for k in 1..=positions - prompt {
            let mut span = Span {
                stream: &mut stream,
                inputs: &inputs,
                predict_from: inputs.len() - 1,
                drafts_from: inputs.len(),
                n_top: 1,
                predictions: vec![],
            };
            engine.backend.decode(std::slice::from_mut(&mut span)).unwrap();
            inputs = vec![span.predictions[0].id];
            tokens.push(inputs[0]);
            if inputs[0] == EOS {
                start = (samples.len() - rest.len()) + k * SAMPLES_PER_TOKEN;
                break;
            }
        }
    }
    tokens
}

/// Everything that a session has said: token ids and the whole text.
fn drain(session: &mut Session<Fake>, tokens: &mut Vec<u32>, text: &mut String) {
    while let Some(event) = session.next_event() {
        match event {
            Event::Token(token) => {
                tokens.push(token.id);
                text.push_str(&token.text);
            }
            Event::Restart { .. } => {}
            Event::End { text: rest } => text.push_str(&rest),
        }
    }
}

pub(super) fn options(interval_ms: u64, delay_ms: u32) -> SessionOptions {
    let delay = Some(Delay::from_ms(f64::from(delay_ms)).unwrap());
    SessionOptions { delay, interval: Duration::from_millis(interval_ms), ..SessionOptions::default() }
}

pub(super) fn transcribe(engine: &mut Engine<Fake>, samples: &[f32], options: &SessionOptions) -> (Vec<u32>, String) {
    let mut session = engine.open(options).unwrap();
    session.push(samples).unwrap();
    session.finish();
    engine.advance(&mut [&mut session]).unwrap();
    assert!(session.is_ended());
    let (mut tokens, mut text) = Default::default();
    drain(&mut session, &mut tokens, &mut text);
    (tokens, text)
}

#[test]
fn the_silence_before_segments_is_worked_out_once() {
    let mut engine = engine(u64::MAX);
    let samples = noise(40_000, 1);
    let frames = |engine: &mut Engine<Fake>, delay_ms| {
        let before = engine.stats().n_frames;
        let said = transcribe(engine, &samples, &options(500, delay_ms));
        (engine.stats().n_frames - before, said)
    };
    // the first stream may stay the only one
    let (whole, said) = frames(&mut engine, 480);
    assert_eq!(frames(&mut engine, 480), (whole, said.clone()));
    for _ in 0..3 {
        assert_eq!(frames(&mut engine, 480), (whole - 31 * 8, said.clone()));
    }
    // another delay is another beginning
    let (longer, other) = frames(&mut engine, 960);
    assert_ne!(other, said);
    assert_eq!(frames(&mut engine, 960), (longer, other.clone()));
    assert_eq!(frames(&mut engine, 960), (longer - 31 * 8, other));
    // where there is memory for one stream only it goes to the one that is used
    engine.backend.max_streams = 1;
    assert_eq!(frames(&mut engine, 960).0, longer);
    // a stream that was lost with its device is no beginning for others
    engine.backend.max_streams = usize::MAX;
    assert_eq!(frames(&mut engine, 480).1, said);
    engine.backend.lost_at = vec![engine.backend.n_calls + 1];
    assert_eq!(frames(&mut engine, 480).1, said);
    assert_eq!(frames(&mut engine, 480), (whole - 31 * 8, said));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn tokens_depend_on_the_audio_alone(
        n in 1usize..120_000,
        seed: u32,
        delay_ms in prop::sample::select(vec![80u32, 480, 960, 2400]),
        interval_ms in prop::sample::select(vec![1u64, 80, 130, 500, 2000, 10_000]),
        pushes in prop::collection::vec((1usize..20_000, any::<bool>(), any::<bool>()), 1..20),
        eos_in in prop::sample::select(vec![3u64, 40, u64::MAX]),
        lost_at in prop::collection::vec(1u64..300, 0..4),
    ) {
        let mut engine = engine(eos_in);
        let samples = noise(n, seed);
        let options = options(interval_ms, delay_ms);
        let expected = definition(&mut engine, &samples, options.delay.unwrap());
        (engine.backend.lost_at, engine.backend.n_calls) = (lost_at, 0);

        let mut session = engine.open(&options).unwrap();
        let (mut tokens, mut text) = Default::default();
        let mut rest = samples.as_slice();
        for (size, flush, advance) in pushes.iter().cycle().copied() {
            let (now, later) = rest.split_at(size.min(rest.len()));
            session.push(now).unwrap();
            rest = later;
            if flush {
                session.flush();
            }
            if rest.is_empty() {
                break;
            }
            if advance {
                engine.advance(&mut [&mut session]).unwrap();
                drain(&mut session, &mut tokens, &mut text);
            }
        }
        session.finish();
        engine.advance(&mut [&mut session]).unwrap();
        drain(&mut session, &mut tokens, &mut text);
        prop_assert!(session.is_ended());
        prop_assert_eq!(&tokens, &expected);
        prop_assert_eq!(text, text_of(&engine, &expected));
    }

    #[test]
    fn sessions_do_not_see_each_other(
        lengths in prop::collection::vec((0usize..60_000, 1usize..9000, 80u64..3000), 2..6),
        eos_in in prop::sample::select(vec![10u64, u64::MAX]),
    ) {
        let mut engine = engine(eos_in);
        let mut sessions = Vec::new();
        for (i, &(n, portion, interval_ms)) in lengths.iter().enumerate() {
            let options = options(interval_ms, [80, 480, 2400][i % 3]);
            let samples = noise(n, i as u32);
            let alone = transcribe(&mut engine, &samples, &options);
            let session = engine.open(&options).unwrap();
            sessions.push((session, samples, portion, alone, (Vec::new(), String::new())));
        }
        for turn in 0.. {
            let mut open = false;
            for (session, samples, portion, ..) in &mut sessions {
                let start = (turn * *portion).min(samples.len());
                let end = (start + *portion).min(samples.len());
                if start < end || (start == end && !session.is_ended()) {
                    session.push(&samples[start..end]).unwrap_or_default();
                    if end == samples.len() {
                        session.finish();
                    }
                    open = true;
                }
            }
            if !open {
                break;
            }
            let mut all: Vec<_> = sessions.iter_mut().map(|(session, ..)| session).collect();
            engine.advance(&mut all).unwrap();
            for (session, .., (tokens, text)) in &mut sessions {
                drain(session, tokens, text);
            }
        }
        for (.., alone, got) in sessions {
            prop_assert_eq!(alone, got);
        }
    }
}

/// A source of drafts: the model's own guesses, wrong ones, what the model will say, or a mixture.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Drafter {
    Jacobi,
    Wrong,
    Right,
    Mixed,
}

impl Drafter {
    /// Guesses for what a session says next, where `coming` is what it will say.
    fn guess(self, own: &mut Vec<u32>, coming: &[u32], seed: u64) {
        match self {
            Self::Jacobi => {}
            Self::Wrong => *own = vec![7; MAX_REWIND],
            Self::Right => *own = coming.iter().copied().take(MAX_REWIND).collect(),
            Self::Mixed => {
                let right = |(i, &id): (usize, &u32)| if (seed >> (i % 61)).is_multiple_of(3) { 7 } else { id };
                *own = coming.iter().take(MAX_REWIND).enumerate().map(right).collect();
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn drafts_never_change_what_is_said(
        streams in prop::collection::vec(
            (
                0usize..50_000,
                1usize..12_000,
                80u64..3000,
                0usize..30,
                prop::sample::select(vec![Drafter::Jacobi, Drafter::Wrong, Drafter::Right, Drafter::Mixed]),
            ),
            1..6,
        ),
        schedule in prop::collection::vec((0usize..MAX_REWIND, any::<u64>()), 1..40),
        eos_in in prop::sample::select(vec![10u64, 60, u64::MAX]),
    ) {
        let mut alone = engine(eos_in);
        alone.set_draft(Draft::Fixed(0));
        let mut engine = engine(eos_in);
        let mut waiting = Vec::new();
        for (i, &(n, portion, interval_ms, arrival, drafter)) in streams.iter().enumerate() {
            let options = options(interval_ms, [80, 480, 2400][i % 3]);
            let samples = noise(n, i as u32);
            let expected = transcribe(&mut alone, &samples, &options);
            waiting.push((arrival, options, samples, portion, drafter, expected));
        }
        let mut open = Vec::new();
        for turn in 0.. {
            for (arrival, options, samples, portion, drafter, expected) in &waiting {
                if *arrival == turn {
                    let session = engine.open(options).unwrap();
                    open.push((session, samples, *portion, 0, *drafter, expected, Vec::new(), String::new()));
                }
            }
            let &(n_drafts, seed) = &schedule[turn % schedule.len()];
            engine.set_draft(if seed % 8 == 0 { Draft::Auto } else { Draft::Fixed(n_drafts) });
            for (session, samples, portion, at, drafter, expected, tokens, _) in &mut open {
                let end = (*at + *portion).min(samples.len());
                session.push(&samples[*at..end]).unwrap_or_default();
                *at = end;
                if end == samples.len() {
                    session.finish();
                }
                drafter.guess(session.guesses(), &expected.0[tokens.len()..], seed);
            }
            let mut sessions: Vec<_> = open.iter_mut().map(|(session, ..)| session).collect();
            engine.step(&mut sessions).unwrap();
            for (session, .., tokens, text) in &mut open {
                drain(session, tokens, text);
            }
            if turn > 30 && open.iter().all(|(session, ..)| session.is_ended()) {
                break;
            }
        }
        for (_, _, _, _, _, expected, tokens, text) in open {
            prop_assert_eq!((&tokens, &text), (&expected.0, &expected.1));
        }
    }
}

#[test]
fn right_drafts_save_passes_and_wrong_ones_cost_none() {
    let samples = noise(160_000, 9);
    let mut expected = Vec::new();
    let mut passes = |drafter: Drafter, n_drafts: usize| {
        let mut engine = engine(u64::MAX);
        engine.set_draft(Draft::Fixed(n_drafts));
        let mut session = engine.open(&SessionOptions::default()).unwrap();
        session.push(&samples).unwrap();
        session.finish();
        let (mut tokens, mut text): (Vec<u32>, String) = Default::default();
        while !session.is_ended() {
            drafter.guess(session.guesses(), expected.get(tokens.len()..).unwrap_or_default(), 0);
            engine.step(&mut [&mut session]).unwrap();
            drain(&mut session, &mut tokens, &mut text);
        }
        if expected.is_empty() {
            expected = tokens;
        } else {
            assert_eq!(tokens, expected);
        }
        let stats = engine.stats();
        assert!(stats.n_right <= stats.n_drafts && stats.n_tokens == expected.len() as u64);
        stats.n_passes
    };
    let sequential = passes(Drafter::Jacobi, 0);
    assert_eq!(sequential, 135);
    assert_eq!(passes(Drafter::Wrong, 15), sequential);
    // at least one pass for each encoder call, each 16 tokens
    assert!((9..=13).contains(&passes(Drafter::Right, 15)));
    assert!((3..=6).contains(&passes(Drafter::Right, 63)));
}

#[test]
fn a_failed_call_can_be_repeated() {
    for failing in 1..40 {
        let mut engine = engine(40);
        let samples = noise(60_000, 4);
        let expected = transcribe(&mut engine, &samples, &SessionOptions::default());
        let mut sessions = [0, 1].map(|_| engine.open(&SessionOptions::default()).unwrap());
        // twice: after the first time there may be memory to free
        engine.backend.fails_at = (0..2).map(|i| engine.backend.n_calls + failing + i).collect();
        for session in &mut sessions {
            session.push(&samples).unwrap();
            session.finish();
        }
        let [a, b] = &mut sessions;
        assert!(engine.advance(&mut [a, b]).is_err(), "call {failing}");
        for session in &mut sessions {
            engine.advance(&mut [session]).unwrap();
            let (mut tokens, mut text) = Default::default();
            drain(session, &mut tokens, &mut text);
            assert_eq!((tokens, text), expected, "call {failing}");
        }
    }
}

#[test]
fn a_fresh_start_without_room_waits_for_the_others() {
    let mut engine = engine(40);
    let samples = [noise(60_000, 4), noise(90_000, 5)];
    let expected = [&samples[0], &samples[1]].map(|s| transcribe(&mut engine, s, &SessionOptions::default()));
    let mut sessions = [0, 1].map(|_| engine.open(&SessionOptions::default()).unwrap());
    engine.backend.max_streams = 1;
    for (session, samples) in sessions.iter_mut().zip(&samples) {
        session.push(samples).unwrap();
        session.finish();
    }
    let [a, b] = &mut sessions;
    engine.advance(&mut [a, b]).unwrap();
    for (session, expected) in sessions.iter_mut().zip(expected) {
        let (mut tokens, mut text) = Default::default();
        drain(session, &mut tokens, &mut text);
        assert_eq!((tokens, text), expected);
    }
}

/// All text tokens' bytes, joined and decoded; each EOS ends a text of its own.
fn text_of(engine: &Engine<Fake>, tokens: &[u32]) -> String {
    let text = |part: &[u32]| {
        let bytes = part.iter().filter_map(|&id| engine.shared.tokenizer.bytes(id)).collect::<Vec<_>>().concat();
        String::from_utf8_lossy(&bytes).into_owned()
    };
    tokens.split(|&id| id == EOS).map(text).collect()
}

#[test]
fn no_audio_says_nothing() {
    let (tokens, text) = transcribe(&mut engine(40), &[], &SessionOptions::default());
    assert_eq!((tokens, text), (vec![], String::new()));
}

#[test]
fn ten_milliseconds_are_heard() {
    // ceil(160 / 1280) + 10 tokens
    let (tokens, _) = transcribe(&mut engine(u64::MAX), &noise(160, 1), &SessionOptions::default());
    assert_eq!(tokens.len(), 11);
}

#[test]
fn tokens_come_as_soon_as_their_audio_is_there() {
    let mut engine = engine(u64::MAX);
    let mut session = engine.open(&options(80, 480)).unwrap();
    let (mut tokens, mut text) = Default::default();
    // the first needs (1 + 6) * 1280 + 40 samples
    for (n, expected) in [(8999, 0), (1, 1), (1279, 1), (1, 2), (12_800, 12)] {
        session.push(&noise(n, 0)).unwrap();
        session.flush();
        engine.advance(&mut [&mut session]).unwrap();
        drain(&mut session, &mut tokens, &mut text);
        assert_eq!(tokens.len(), expected);
    }
}

#[test]
fn an_interval_is_gathered_unless_flushed() {
    let mut engine = engine(u64::MAX);
    let mut session = engine.open(&options(2000, 480)).unwrap();
    session.push(&noise(31_999, 0)).unwrap();
    engine.advance(&mut [&mut session]).unwrap();
    assert_eq!(session.next_event(), None);
    session.push(&[0.0]).unwrap();
    engine.advance(&mut [&mut session]).unwrap();
    assert!(session.next_event().is_some());
}

#[test]
fn times_run_on_over_a_restart() {
    let mut engine = engine(30);
    let mut session = engine.open(&options(500, 480)).unwrap();
    session.push(&noise(160_000, 5)).unwrap();
    session.finish();
    engine.advance(&mut [&mut session]).unwrap();
    let (mut time, mut restarts) = (0, 0);
    while let Some(event) = session.next_event() {
        match event {
            Event::Token(token) => {
                time += 80;
                assert_eq!(token.time_ms, time);
            }
            Event::Restart { time_ms } => {
                assert_eq!(time_ms, time);
                restarts += 1;
            }
            Event::End { .. } => {}
        }
    }
    assert!(restarts > 1 && time >= 10_000, "{restarts} restarts, {time} ms");
}

#[test]
fn a_long_stream_keeps_little() {
    let mut engine = engine(200);
    let mut session = engine.open(&options(1000, 480)).unwrap();
    for second in 0..600 {
        session.push(&noise(16_000, second)).unwrap();
        engine.advance(&mut [&mut session]).unwrap();
        while session.next_event().is_some() {}
        assert!(session.n_kept() < 48_000 + session::REPLAY * SAMPLES_PER_TOKEN, "{} samples kept", session.n_kept());
    }
}

#[test]
fn bad_samples_are_refused_and_those_before_are_heard() {
    let mut engine = engine(u64::MAX);
    let mut session = engine.open(&SessionOptions::default()).unwrap();
    session.push(&[0.0; 10]).unwrap();
    let error = session.push(&[0.0, 0.0, f32::NAN, 0.0]).unwrap_err().to_string();
    assert!(error.contains("sample 12 is NaN"), "{error}");
    assert_eq!(session.n_samples(), 12);
    session.finish();
    assert!(session.push(&[0.0]).is_err());
}

#[test]
fn probabilities_come_where_asked_for_and_change_nothing() {
    let mut engine = engine(40);
    let samples = noise(64_000, 3);
    let plain = transcribe(&mut engine, &samples, &SessionOptions::default());
    for (probabilities, expected) in [(false, None), (true, Some(0.5))] {
        let mut session = engine.open(&SessionOptions { probabilities, ..SessionOptions::default() }).unwrap();
        session.push(&samples).unwrap();
        session.finish();
        engine.advance(&mut [&mut session]).unwrap();
        let events = std::iter::from_fn(|| session.next_event());
        let tokens = events.filter_map(|event| match event {
            Event::Token(token) => Some(token),
            _ => None,
        });
        let mut ids = Vec::new();
        for token in tokens {
            assert_eq!(token.probability, expected);
            assert!(token.alternatives.is_empty());
            let kind = match token.id {
                32 => TokenKind::Blank,
                33 => TokenKind::WordEnd,
                1000.. => TokenKind::Text,
                _ => TokenKind::Control,
            };
            assert_eq!(token.kind, kind);
            ids.push(token.id);
        }
        assert_eq!(ids, plain.0);
    }
}

#[test]
fn alternatives_are_near_texts() {
    let mut engine = engine(u64::MAX);
    let samples = noise(64_000, 3);
    let plain = transcribe(&mut engine, &samples, &SessionOptions::default());
    let mut lists = 0;
    let options = SessionOptions { alternatives: Some(0.8), ..SessionOptions::default() };
    let mut session = engine.open(&options).unwrap();
    session.push(&samples).unwrap();
    session.finish();
    engine.advance(&mut [&mut session]).unwrap();
    let mut tokens = Vec::new();
    while let Some(event) = session.next_event() {
        let Event::Token(token) = event else { continue };
        tokens.push(token.id);
        // the fake's probabilities halve: the third is 1/4 of the first, within 0.8; the fourth is not
        assert!(token.alternatives.len() <= 3);
        assert!(token.alternatives.iter().all(|a| !a.text.contains(char::REPLACEMENT_CHARACTER)));
        if let [best, others @ ..] = token.alternatives.as_slice() {
            lists += 1;
            assert_eq!((best.id, best.text.as_str()), (token.id, token.text.as_str()));
            assert!(
                !others.is_empty() && others.iter().all(|a| a.id >= 1000 && a.probability * 5.0 >= best.probability)
            );
        }
    }
    assert!(lists > 0);
    assert_eq!(tokens.len(), plain.0.len());
    assert!(engine.open(&SessionOptions { alternatives: Some(1.5), ..SessionOptions::default() }).is_err());
}

#[test]
fn the_work_of_hearing_the_silence_is_counted() {
    let mut engine = engine(u64::MAX);
    for _ in 0..4 {
        transcribe(&mut engine, &noise(40_000, 1), &options(500, 480));
        assert_eq!(engine.stats().n_passes, engine.backend.n_passes as u64);
    }
}

#[test]
fn where_memory_is_short_the_silence_is_not_heard_for_every_stream() {
    let mut engine = engine(u64::MAX);
    engine.backend.max_streams = 2;
    let _open = engine.open(&options(500, 480)).unwrap();
    for _ in 0..8 {
        engine.open(&options(500, 480)).unwrap();
    }
    assert_eq!(engine.backend.n_calls, 2, "one encoder call and one pass");
}

#[test]
fn a_call_that_fails_is_made_again_when_there_was_memory_to_free() {
    let mut engine = engine(u64::MAX);
    let samples = noise(40_000, 1);
    let expected = transcribe(&mut engine, &samples, &options(500, 480));
    for later in [3, 4, 9] {
        let mut engine = super::tests::engine(u64::MAX);
        drop(engine.open(&options(500, 480)).unwrap());
        engine.backend.fails_at = vec![later];
        assert_eq!(transcribe(&mut engine, &samples, &options(500, 480)), expected, "call {later} fails");
        let mut session = engine.open(&options(500, 480)).unwrap();
        session.push(&samples).unwrap();
        engine.backend.fails_at = vec![engine.backend.n_calls + 1];
        assert!(engine.advance(&mut [&mut session]).is_err(), "nothing to free");
    }
}
