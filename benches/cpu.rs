//! Speed of the CPU backend against what the machine can do.
//!
//!     cargo bench --bench cpu                 # the shipped tiny model, end to end
//!     cargo bench --bench cpu -- --full DIR   # the real model's dimensions, synthetic weights
//!
//! `--full` writes an 8.86 GB checkpoint into DIR unless it is there, and needs that much memory free: a step is compared
//! with a plain read of the same weights, so they must be in the page cache. `--threads N` as for the program; `--isa NAME`
//! for another instruction set than the machine's best.

#[path = "../tests/support/mod.rs"]
mod support;

use std::path::Path;
use std::time::{Duration, Instant};

use support::synthetic::Preset;
use voxtral::backend::cpu::{Cpu, simd::Isa};
use voxtral::backend::{Backend, BackendOptions, EncodeChunk, Span};
use voxtral::model::params::TransformerParams;
use voxtral::{Delay, Engine, Model, SessionOptions};

const REPEATS: usize = 5;
/// Rows of the decoder passes that are measured; the first is a step.
const PASS_ROWS: [usize; 11] = [1, 2, 4, 6, 8, 12, 16, 20, 24, 32, 64];

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (mut full, mut options) = (None, BackendOptions::default());
    let mut isa = Isa::available()[0];
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--full" => full = Some(arguments.next().expect("--full needs a directory")),
            "--threads" => options.threads = arguments.next().and_then(|n| n.parse().ok()),
            "--isa" => {
                let name = arguments.next().expect("--isa needs a name");
                let all = Isa::available();
                let named = all.iter().find(|isa| format!("{isa:?}").eq_ignore_ascii_case(&name));
                isa = *named.unwrap_or_else(|| panic!("this machine has {all:?}"));
            }
            _ => {} // cargo adds --bench
        }
    }
    let threads = options.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, usize::from));
    println!("commit {}, {}, {isa:?}, {threads} threads", env!("VOX_COMMIT"), machine());
    match full {
        None => end_to_end(&support::tiny_model(), &options, isa),
        Some(dir) => stages(Path::new(&dir), &options, isa),
    }
}

fn machine() -> String {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = cpu.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ").map(|(_, name)| name));
    name.unwrap_or(std::env::consts::ARCH).to_owned()
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn median_of(mut work: impl FnMut()) -> Duration {
    let mut times: Vec<_> = (0..REPEATS)
        .map(|_| {
            let start = Instant::now();
            work();
            start.elapsed()
        })
        .collect();
    median(&mut times)
}

fn end_to_end(dir: &Path, options: &BackendOptions, isa: Isa) {
    let samples = support::recording("long_mixed");
    let seconds = samples.len() as f64 / 16_000.0;
    let model = Model::open(dir).unwrap();
    let cpu = Cpu::with_isa(&model.weights, options, isa).unwrap();
    let mut engine = Engine::new(cpu, model.tokenizer, &model.params);
    let time = median_of(|| {
        let mut session = engine.open(&SessionOptions::default()).unwrap();
        session.push(&samples).unwrap();
        session.finish();
        engine.advance(&mut [&mut session]).unwrap();
    });
    println!(
        "{}: {seconds:.1} s of audio in {:.0} ms, {:.1} xRT",
        dir.display(),
        ms(time),
        seconds / time.as_secs_f64()
    );
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn stages(dir: &Path, options: &BackendOptions, isa: Isa) {
    if !dir.join("consolidated.safetensors").exists() {
        println!("writing a synthetic checkpoint to {}", dir.display());
        Preset::full().write(dir, None).unwrap();
    }
    let load = median_of(|| drop(Cpu::with_isa(&Model::open(dir).unwrap().weights, options, isa).unwrap()));
    let model = Model::open(dir).unwrap();
    let mut cpu = Cpu::with_isa(&model.weights, options, isa).unwrap();
    println!("model load: {:.0} ms", ms(load));

    let n_tokens = 64; // of audio: one encoder pass
    let log_mel: Vec<f32> =
        (0..n_tokens * 8 * model.params.n_mels).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect();
    let mut stream = cpu.open(Delay::DEFAULT).unwrap();
    let mut encode = || cpu.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: &log_mel }]).unwrap();
    encode(); // the attention window fills
    encode();
    encode();
    let encoder = median_of(&mut encode);
    let flops = encoder_flops(&model, n_tokens);
    println!(
        "encoder: {:.0} ms for {:.2} s of audio, {:.0} GFLOP/s, {:.2} xRT",
        ms(encoder),
        n_tokens as f64 * 0.08,
        flops / encoder.as_secs_f64() / 1e9,
        n_tokens as f64 * 0.08 / encoder.as_secs_f64(),
    );

    let bytes = cpu.decoder_bytes();
    decode(&mut cpu, &mut stream, 1);
    cpu.plain_pass().unwrap();
    // a read and passes of all sizes by turns: all see the same state of the machine
    let mut reads = Vec::new();
    let mut passes = PASS_ROWS.map(|rows| (rows, Vec::new()));
    for _ in 0..REPEATS {
        reads.extend(cpu.plain_pass().unwrap());
        for (rows, times) in &mut passes {
            let start = Instant::now();
            decode(&mut cpu, &mut stream, *rows);
            times.push(start.elapsed());
        }
    }
    let read = median(&mut reads);
    let rate = |time: Duration| bytes as f64 / time.as_secs_f64() / 1e9;
    println!("plain read of the decoder's {:.2} GB: {:.0} ms, {:.1} GB/s", bytes as f64 / 1e9, ms(read), rate(read));
    let step = median(&mut passes[0].1);
    for (rows, mut times) in passes {
        let time = median(&mut times);
        println!(
            "decoder pass of {rows} rows: {:.0} ms, {:.2} steps, {:.1} GB/s, {:.0} % of the plain read, {:.0} GFLOP/s",
            ms(time),
            time.as_secs_f64() / step.as_secs_f64(),
            rate(time),
            100.0 * rate(time) / rate(read),
            rate(time) * rows as f64,
        );
    }
}

/// A pass at the start of the stream, where it is left again.
fn decode(cpu: &mut Cpu, stream: &mut <Cpu as Backend>::Stream, n_rows: usize) {
    let inputs = vec![32; n_rows];
    cpu.decode(&mut [Span {
        stream,
        inputs: &inputs,
        predict_from: 0,
        drafts_from: usize::MAX,
        n_top: 1,
        predictions: Vec::new(),
    }])
    .unwrap();
    cpu.rewind(stream, 0);
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
