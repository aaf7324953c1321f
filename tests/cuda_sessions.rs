//! The engine on a GPU: sessions side by side, going over to the CPU, what the GPU's options change, memory.
//!
//!     cargo test --features gpu-tests --test cuda_sessions
//!
//! The tests fail where there is no GPU.

mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use support::failing::{Failing, Failure};
use support::{recording, tiny_model};
use voxtral::backend::cpu::Cpu;
use voxtral::backend::cuda::Cuda;
use voxtral::backend::handover::Handover;
use voxtral::backend::{
    Backend, BackendOptions, CublasLt, CudaOptions, EncodeChunk, LtCompute, Prediction, Products, Span,
};
use voxtral::{Delay, Engine, Event, Model, Session, SessionOptions};

/// One test at a time: they look at the GPU's memory.
fn alone() -> MutexGuard<'static, ()> {
    static GPU: Mutex<()> = Mutex::new(());
    GPU.lock().unwrap_or_else(PoisonError::into_inner)
}

fn model() -> Model {
    Model::open(&tiny_model()).unwrap()
}

fn options(cuda: CudaOptions) -> BackendOptions {
    BackendOptions { cuda, ..BackendOptions::default() }
}

fn cuda(cuda: CudaOptions) -> Cuda {
    Cuda::load(&model().weights, &options(cuda)).expect("these tests need a GPU")
}

fn engine<B: Backend>(backend: B) -> Engine<B> {
    let model = model();
    Engine::new(backend, model.tokenizer, &model.params)
}

fn drain<B: Backend>(session: &mut Session<B>, ids: &mut Vec<u32>) {
    while let Some(event) = session.next_event() {
        if let Event::Token(token) = event {
            ids.push(token.id);
        }
    }
}

/// A stretch of audio, its delay in tokens and its interval in ms.
type Input = (Vec<f32>, usize, u64);

/// Ids of each input, all worked on together, with 0.3 s more of each at every turn.
fn transcribe<B: Backend>(engine: &mut Engine<B>, inputs: &[Input]) -> Vec<Vec<u32>> {
    let mut sessions: Vec<_> = inputs
        .iter()
        .map(|&(_, delay, interval)| {
            let delay = Some(Delay::from_ms(delay as f64 * 80.0).unwrap());
            let interval = Duration::from_millis(interval);
            engine.open(&SessionOptions { delay, interval, ..SessionOptions::default() }).unwrap()
        })
        .collect();
    let mut ids = vec![Vec::new(); inputs.len()];
    let mut parts: Vec<_> = inputs.iter().map(|(samples, ..)| samples.chunks(4800)).collect();
    while sessions.iter().any(|session| !session.is_ended()) {
        for (session, parts) in sessions.iter_mut().zip(&mut parts) {
            match parts.next() {
                Some(part) => session.push(part).unwrap(),
                None => session.finish(),
            }
        }
        engine.advance(&mut sessions.iter_mut().collect::<Vec<_>>()).unwrap();
        sessions.iter_mut().zip(&mut ids).for_each(|(session, ids)| drain(session, ids));
    }
    ids
}

fn inputs(n: usize) -> Vec<Input> {
    let names = ["kal_computer", "slt_numbers", "hibari_intro", "awb_library"];
    (0..n)
        .map(|i| {
            let samples = recording(names[i % names.len()]);
            let start = i * 3100 % 20_000;
            (samples[start..].to_vec(), [6, 3, 12, 30][i / 2 % 4], [80, 500, 2000][i % 3])
        })
        .collect()
}

#[test]
fn sessions_at_once_say_what_each_says_alone() {
    let _alone = alone();
    let mut engine = engine(cuda(CudaOptions::default()));
    let inputs = inputs(16);
    let expected: Vec<_> =
        inputs.iter().map(|input| transcribe(&mut engine, std::slice::from_ref(input)).remove(0)).collect();
    for n in [2, 3, 7, 16] {
        assert_eq!(transcribe(&mut engine, &inputs[..n]), expected[..n], "{n} sessions");
    }
}

#[test]
fn forked_streams_go_on_as_the_one_they_were_made_of() {
    let _alone = alone();
    support::forks::check(&mut cuda(CudaOptions::default()), &model().params);
    support::forks::check(&mut cuda(CudaOptions { mempool: false, ..CudaOptions::default() }), &model().params);
}

#[test]
fn a_failing_gpu_hands_over_to_the_cpu_without_losing_a_token() {
    let _alone = alone();
    let whole = |name| (recording(name), 6, 2000);
    let inputs = [whole("kal_computer"), whole("slt_numbers")];
    let expected =
        transcribe(&mut engine(Cpu::load(&model().weights, &options(CudaOptions::default())).unwrap()), &inputs);
    for failure in [Failure::Refused, Failure::Halfway, Failure::Dead] {
        for calls in [0, 2, 3, 5, 12, 31, 58, 83] {
            let first = Failing::new(cuda(CudaOptions::default()), calls, failure);
            let both = Handover::<_, Cpu>::new(first, &model().weights, &options(CudaOptions::default()));
            let inputs = if calls == 0 { &inputs[..1] } else { &inputs };
            let got = transcribe(&mut engine(both), inputs);
            assert_eq!(got, expected[..inputs.len()], "{failure:?} after {calls} calls");
        }
    }
}

#[test]
fn a_moved_stream_goes_on_in_a_ring_that_has_wrapped_around() {
    let _alone = alone();
    let inputs = [(recording("long_mixed")[..640_000].to_vec(), 6, 2000)];
    let expected = transcribe(&mut engine(cuda(CudaOptions::default())), &inputs);
    // 40 s: the encoder looks back on 15 s, the decoder on 20
    for calls in [380, 440] {
        let first = Failing::new(cuda(CudaOptions::default()), calls, Failure::Refused);
        let both = Handover::<_, Cpu>::new(first, &model().weights, &options(CudaOptions::default()));
        assert_eq!(transcribe(&mut engine(both), &inputs), expected, "after {calls} calls");
    }
}

/// Predictions after every token of some speech, with all their probabilities, fed in spans of `n`.
fn logits(cuda: &mut Cuda, n: usize) -> Vec<Prediction> {
    let model = model();
    let width = 8 * model.params.n_mels;
    let mel: Vec<f32> = (0..120 * width).map(|i| ((i * 7919 % 1013) as f32 / 506.5) - 1.0).collect();
    let tokens: Vec<u32> = (0..120).map(|i| if i % 3 == 0 { 33 } else { 1000 + i * 37 % 1800 }).collect();
    let mut stream = cuda.open(Delay::DEFAULT).unwrap();
    cuda.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: &mel }]).unwrap();
    let mut all = Vec::new();
    for inputs in tokens.chunks(n) {
        let n_top = model.params.vocab_size;
        let mut span = Span {
            stream: &mut stream,
            inputs,
            predict_from: 0,
            drafts_from: usize::MAX,
            n_top,
            predictions: Vec::new(),
        };
        cuda.decode(std::slice::from_mut(&mut span)).unwrap();
        all.append(&mut span.predictions);
    }
    all
}

#[test]
fn options_that_only_say_how_change_no_bit() {
    let _alone = alone();
    let expected = logits(&mut cuda(CudaOptions::default()), 7);
    let default = CudaOptions::default;
    for options in [
        CudaOptions { graphs: false, ..default() },
        CudaOptions { logits_fused: false, ..default() },
        CudaOptions { prefill: false, ..default() },
        CudaOptions { mempool: false, ..default() },
        CudaOptions { host_register_bytes: 1 << 30, ..default() },
        CudaOptions { weight_cache_bytes: Some(1), ..default() },
    ] {
        assert!(logits(&mut cuda(options.clone()), 7) == expected, "{options:?}");
    }
    let inputs = &inputs(2);
    let expected = transcribe(&mut engine(cuda(default())), inputs);
    for options in [CudaOptions { logits_fused: false, ..default() }, CudaOptions { prefill: false, ..default() }] {
        assert_eq!(transcribe(&mut engine(cuda(options.clone())), inputs), expected, "{options:?}");
    }
}

#[test]
fn cublaslt_says_the_same_in_spans_of_any_length() {
    let _alone = alone();
    let whole = |name| (recording(name), 6, 2000);
    let inputs = ["kal_computer", "slt_numbers", "hibari_intro", "awb_library"].map(whole);
    let expected = transcribe(&mut engine(cuda(CudaOptions::default())), &inputs);
    for autotune in [false, true] {
        for compute in LtCompute::ALL {
            let products = Products::CublasLt(CublasLt { autotune, compute, ..CublasLt::default() });
            let mut cuda = cuda(CudaOptions { products, ..CudaOptions::default() });
            assert!(cuda.uses_cublaslt(), "cuBLASLt is not there");
            let one = logits(&mut cuda, 1);
            for n in [2, 9, 33, 64] {
                assert!(logits(&mut cuda, n) == one, "{compute:?}, spans of {n}");
            }
            assert_eq!(transcribe(&mut engine(cuda), &inputs), expected, "{compute:?}");
        }
    }
    let products = Products::CublasLt(CublasLt { autotune: false, ..CublasLt::default() });
    let run = |graphs| logits(&mut cuda(CudaOptions { products, graphs, ..CudaOptions::default() }), 3);
    assert!(run(true) == run(false), "graphs");
}

#[test]
fn a_thousand_files_take_no_more_memory_than_a_few() {
    let _alone = alone();
    let speech = recording("kal_computer");
    for mempool in [true, false] {
        let mut engine = engine(cuda(CudaOptions { mempool, ..CudaOptions::default() }));
        let mut used = Vec::new();
        for i in 0..1000 {
            let samples = &speech[i * 37 % 60_000..][..4000 + i * 91 % 8000];
            let ids = transcribe(&mut engine, &[(samples.to_vec(), 6, 2000)]);
            assert!(!ids[0].is_empty());
            if [99, 999].contains(&i) {
                used.push(engine.backend().memory_in_use().unwrap());
            }
        }
        println!("{used:?} bytes after 100 and 1000 files");
        assert!(used[1] <= used[0] + (8 << 20), "{used:?}");
    }
}
