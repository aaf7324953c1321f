//! What a stream says does not depend on how its positions are put into passes: random numbers of drafts, company,
//! arrivals, intervals and portions, against one token at a time alone. Ids and the bits of their probabilities are
//! compared.
//!
//!     cargo test --release --features gpu-tests --test schedules    # the same on a GPU, many more of them

mod support;

use std::time::Duration;

use support::{recording, tiny_model};
use voxtral::backend::{Backend, BackendOptions};
use voxtral::{Delay, Draft, Engine, Event, Model, Session, SessionOptions};

/// Ids with the bits of their probabilities.
type Said = Vec<(u32, u32)>;

struct Input {
    samples: Vec<f32>,
    delay: Delay,
}

fn inputs() -> Vec<Input> {
    let cut = |name, from: usize, to: usize, delay_ms| {
        let samples = recording(name)[from..to].to_vec();
        Input { samples, delay: Delay::from_ms(delay_ms).unwrap() }
    };
    vec![
        cut("kal_computer", 0, 60_000, 480.0),
        cut("slt_numbers", 20_000, 75_000, 80.0),
        cut("hibari_intro", 0, 70_000, 960.0),
        cut("awb_library", 9_000, 40_000, 480.0),
        cut("kal_computer", 30_000, 31_000, 2400.0),
        // an EOS with audio behind it: a fresh start
        Input {
            samples: [recording("kal_computer"), recording("hibari_intro")[..40_000].to_vec()].concat(),
            delay: Delay::DEFAULT,
        },
    ]
}

fn options(input: &Input, interval: Duration) -> SessionOptions {
    SessionOptions { delay: Some(input.delay), interval, probabilities: true, ..SessionOptions::default() }
}

fn drain<B: Backend>(session: &mut Session<B>, said: &mut Said) {
    while let Some(event) = session.next_event() {
        if let Event::Token(token) = event {
            said.push((token.id, token.probability.expect("asked for").to_bits()));
        }
    }
}

fn alone<B: Backend>(engine: &mut Engine<B>, input: &Input) -> Said {
    engine.set_draft(Draft::Fixed(0));
    let mut session = engine.open(&options(input, Duration::from_secs(2))).unwrap();
    session.push(&input.samples).unwrap();
    session.finish();
    engine.advance(&mut [&mut session]).unwrap();
    let mut said = Said::new();
    drain(&mut session, &mut said);
    said
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        ((self.0 >> 11) % n as u64) as usize
    }
}

/// A stream on its way.
struct Running<'a, B: Backend> {
    session: Session<B>,
    input: &'a Input,
    expected: &'a Said,
    said: Said,
    portion: usize,
    pushed: usize,
}

fn one_schedule<B: Backend>(engine: &mut Engine<B>, inputs: &[Input], expected: &[Said], seed: u64) {
    let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
    let mut arrivals: Vec<_> =
        (0..1 + random.below(6)).map(|_| (random.below(12), random.below(inputs.len()))).collect();
    arrivals.sort_unstable();
    let mut running: Vec<Running<'_, B>> = Vec::new();
    for turn in 0.. {
        while arrivals.first().is_some_and(|&(at, _)| at <= turn) {
            let (_, i) = arrivals.remove(0);
            let interval = [80, 500, 2000, 10_000][random.below(4)];
            running.push(Running {
                session: engine.open(&options(&inputs[i], Duration::from_millis(interval))).unwrap(),
                input: &inputs[i],
                expected: &expected[i],
                said: Said::new(),
                portion: 1 + random.below(30_000),
                pushed: 0,
            });
        }
        engine.set_draft(match random.below(5) {
            0 => Draft::Auto,
            1 => Draft::Fixed(random.below(128)),
            _ => Draft::Fixed(random.below(9)),
        });
        for stream in &mut running {
            let end = (stream.pushed + stream.portion).min(stream.input.samples.len());
            if end > stream.pushed {
                stream.session.push(&stream.input.samples[stream.pushed..end]).unwrap();
                stream.pushed = end;
            }
            if end == stream.input.samples.len() {
                stream.session.finish();
            }
        }
        engine.step(&mut running.iter_mut().map(|stream| &mut stream.session).collect::<Vec<_>>()).unwrap();
        running.iter_mut().for_each(|stream| drain(&mut stream.session, &mut stream.said));
        running.retain(|stream| {
            let ended = stream.session.is_ended();
            assert!(!ended || stream.said == *stream.expected, "schedule {seed}");
            !ended
        });
        if running.is_empty() && arrivals.is_empty() {
            break;
        }
    }
}

fn many_schedules<B: Backend>(n: u64) {
    let model = Model::open(&tiny_model()).unwrap();
    let mut engine = Engine::<B>::load(model, &BackendOptions::default()).expect("the device that this test is for");
    let inputs = inputs();
    let expected: Vec<_> = inputs.iter().map(|input| alone(&mut engine, input)).collect();
    assert!(expected.iter().all(|said| !said.is_empty()));
    (1..=n).for_each(|seed| one_schedule(&mut engine, &inputs, &expected, seed));
}

#[test]
fn on_the_cpu() {
    many_schedules::<voxtral::backend::cpu::Cpu>(25);
}

#[cfg(feature = "gpu-tests")]
#[test]
fn on_a_gpu() {
    many_schedules::<voxtral::backend::cuda::Cuda>(400);
}
