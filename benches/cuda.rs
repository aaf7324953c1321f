//! Speed of the CUDA backend, on a synthetic checkpoint of the real model's dimensions.
//!
//!     cargo bench --features cuda --bench cuda -- DIR     # 8.86 GB are written into DIR unless they are there
//!
//! `--cublaslt` has cuBLASLt multiply in the decoder, `--page-lock` page-locks the whole file for loading, `--no-pool` takes
//! memory without the driver's pool.
//!
//! Times are wall-clock medians of whole backend calls, waiting for the GPU included.

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use support::synthetic::Preset;
use voxtral::backend::cuda::{Cuda, CudaStream};
use voxtral::backend::{Backend, BackendOptions, CublasLt, CudaOptions, EncodeChunk, Products, Span};
use voxtral::model::params::TransformerParams;
use voxtral::{Delay, Engine, Model, SessionOptions};

fn main() {
    let dir = std::env::args().skip(1).find(|a| !a.starts_with("--")).expect("a directory for the checkpoint");
    let dir = Path::new(&dir);
    if !dir.join("consolidated.safetensors").exists() {
        let start = Instant::now();
        Preset::full().write(dir, None).unwrap();
        println!("checkpoint written in {:.1} s", start.elapsed().as_secs_f64());
    }
    let model = Model::open(dir).unwrap();
    for run in 1..=3 {
        let start = Instant::now();
        let cuda = Cuda::load(&model.weights, &options()).unwrap();
        let time = start.elapsed();
        if run == 1 {
            println!("commit {}, {}", env!("VOX_COMMIT"), cuda.device_name());
        }
        let bytes = (cuda.decoder_bytes() + cuda.encoder_bytes()) as f64;
        println!("load {run}: {:.2} s, {:.1} GB/s", time.as_secs_f64(), bytes / time.as_secs_f64() / 1e9);
    }
    let mut cuda = Cuda::load(&model.weights, &options()).unwrap();
    encoder(&mut cuda, &model);
    decoder(&mut cuda, &model);
    println!("memory in use: {} MiB", cuda.memory_in_use().unwrap() >> 20);
    clip(cuda, model);
}

fn options() -> BackendOptions {
    let asked = |name| std::env::args().any(|argument| argument == name);
    let cuda = CudaOptions {
        products: if asked("--cublaslt") { Products::CublasLt(CublasLt::default()) } else { Products::Own },
        host_register_bytes: if asked("--page-lock") { u64::MAX } else { 0 },
        mempool: !asked("--no-pool"),
        ..CudaOptions::default()
    };
    BackendOptions { cuda, ..BackendOptions::default() }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median_of(repeats: usize, mut work: impl FnMut() -> Duration) -> Duration {
    work();
    let mut times: Vec<_> = (0..repeats).map(|_| work()).collect();
    times.sort_unstable();
    times[times.len() / 2]
}

fn timed(work: impl FnOnce()) -> Duration {
    let start = Instant::now();
    work();
    start.elapsed()
}

fn frames(model: &Model, n_tokens: usize) -> Vec<f32> {
    let n = n_tokens * 8 * model.params.n_mels;
    (0..n as u32).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

/// Multiply-adds of convolutions, encoder layers and adapter, counted twice, with a full window of attention.
fn encoder_flops(model: &Model, n_tokens: usize) -> f64 {
    let TransformerParams { dim, n_layers, hidden_dim, sliding_window, .. } = model.params.encoder;
    let (q, kv) = (model.params.encoder.q_dim(), model.params.encoder.kv_dim());
    let rows = 4 * n_tokens;
    let layer = dim * (2 * q + 2 * kv) + 3 * dim * hidden_dim + 2 * q * sliding_window;
    let conv = 2 * rows * dim * 3 * model.params.n_mels + rows * dim * 3 * dim;
    let d = model.params.decoder.dim;
    2.0 * (rows * n_layers * layer + conv + n_tokens * d * (4 * dim + d)) as f64
}

fn encoder(cuda: &mut Cuda, model: &Model) {
    for n_tokens in [2293, 375, 25] {
        let mel = frames(model, n_tokens);
        let time = median_of(5, || {
            let mut stream = cuda.open(Delay::DEFAULT).unwrap();
            timed(|| cuda.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: &mel }]).unwrap())
        });
        let rate = encoder_flops(model, n_tokens) / time.as_secs_f64() / 1e12;
        println!("encoder, {:.0} s in one go: {:.2} ms, {rate:.0} TFLOP/s", n_tokens as f64 * 0.08, ms(time));
    }
    for n_streams in [1, 8, 32] {
        let mut streams: Vec<_> = (0..n_streams).map(|_| cuda.open(Delay::DEFAULT).unwrap()).collect();
        let (window, step) = (frames(model, 200), frames(model, 1));
        for stream in &mut streams {
            cuda.encode(&mut [EncodeChunk { stream, log_mel: &window }]).unwrap();
        }
        let time = median_of(50, || {
            let mut batch: Vec<_> = streams.iter_mut().map(|stream| EncodeChunk { stream, log_mel: &step }).collect();
            timed(|| cuda.encode(&mut batch).unwrap())
        });
        let rate = cuda.encoder_bytes() as f64 / time.as_secs_f64() / 1e9;
        println!("encoder, 80 ms of {n_streams} streams: {:.3} ms, {rate:.0} GB/s of weights", ms(time));
    }
}

/// A pass of `n_rows` rows of each stream; how long until predictions after the last `n_predicted` of them are on the host.
fn decode(cuda: &mut Cuda, streams: &mut [CudaStream], n_rows: usize, n_predicted: usize) -> Duration {
    let inputs = vec![32; n_rows];
    let span = |stream| Span {
        stream,
        inputs: &inputs,
        predict_from: n_rows - n_predicted,
        drafts_from: usize::MAX,
        n_top: 1,
        predictions: Vec::new(),
    };
    let mut spans: Vec<_> = streams.iter_mut().map(span).collect();
    timed(|| cuda.decode(&mut spans).unwrap())
}

/// The median of passes with predictions after all rows, which begin at the position where the streams are and leave them there.
fn pass_time(cuda: &mut Cuda, streams: &mut [CudaStream], n_rows: usize) -> Duration {
    let position = streams[0].position();
    median_of(50, || {
        let time = decode(cuda, streams, n_rows, n_rows);
        for stream in streams.iter_mut() {
            cuda.rewind(stream, position);
        }
        time
    })
}

fn decoder(cuda: &mut Cuda, model: &Model) {
    let mel = frames(model, 2500);
    let bytes = cuda.decoder_bytes() as f64;
    let rate = |time: Duration| bytes / time.as_secs_f64() / 1e9;
    let open = |cuda: &mut Cuda, n_tokens: usize| {
        let mut stream = cuda.open(Delay::DEFAULT).unwrap();
        let log_mel = &mel[..n_tokens * 8 * model.params.n_mels];
        cuda.encode(&mut [EncodeChunk { stream: &mut stream, log_mel }]).unwrap();
        stream
    };
    let prompt = median_of(5, || {
        let mut stream = [open(cuda, 200)];
        decode(cuda, &mut stream, 39, 1)
    });
    println!("prefill of 39 positions: {:.3} ms, {:.0} GB/s of weights", ms(prompt), rate(prompt));

    let mut stream = [open(cuda, 2500)];
    for position in [64, 1170, 2300] {
        while stream[0].position() < position {
            let n_rows = (position - stream[0].position()).min(64);
            decode(cuda, &mut stream, n_rows as usize, 1);
        }
        let time = pass_time(cuda, &mut stream, 1);
        println!("step at {position} positions: {:.3} ms, {:.0} GB/s of weights", ms(time), rate(time));
    }
    // the first step above is timed just after the encoder, and takes longer than among other passes
    let mut step = None;
    for (n_streams, n_rows) in [(1, 1), (1, 2), (1, 4), (1, 8), (1, 16), (1, 32), (1, 64), (8, 1), (32, 1)] {
        let mut streams: Vec<_> = (0..n_streams).map(|_| open(cuda, 200)).collect();
        decode(cuda, &mut streams, 64, 1);
        let time = pass_time(cuda, &mut streams, n_rows);
        let step = *step.get_or_insert(time);
        println!(
            "{n_streams} streams at 64 positions, {n_rows} rows each: {:.3} ms, {:.2} steps, {:.0} GB/s of weights",
            ms(time),
            time.as_secs_f64() / step.as_secs_f64(),
            rate(time),
        );
    }
}

/// A clip of 180 s, start to end, as the program does it.
fn clip(cuda: Cuda, model: Model) {
    let params = model.params;
    let mut engine = Engine::new(cuda, model.tokenizer, &params);
    let samples: Vec<f32> = (0..180 * 16_000u32)
        .map(|i| 0.1 * ((i.wrapping_mul(0x9E37_79B9) >> 8) as f32 / (1 << 23) as f32 - 1.0))
        .collect();
    for run in 1..=2 {
        let before = engine.stats();
        let mut n_tokens = 0;
        let wall = timed(|| {
            let mut session = engine.open(&SessionOptions::default()).unwrap();
            session.push(&samples).unwrap();
            session.finish();
            engine.advance(&mut [&mut session]).unwrap();
            while session.next_event().is_some() {
                n_tokens += 1;
            }
        });
        let stats = engine.stats() - before;
        println!(
            "180 s clip, run {run}: {:.2} s, {:.1} xRT; encoder {:.0} ms, decoder {:.0} ms in {} passes, {n_tokens} events",
            wall.as_secs_f64(),
            180.0 / wall.as_secs_f64(),
            ms(stats.encoder),
            ms(stats.decoder),
            stats.n_passes,
        );
    }
}
