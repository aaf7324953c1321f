//! The program: one engine, inputs one after the other, text to stdout as it is recognised.

mod input;
mod knobs;
mod options;
mod report;
mod second_look;
mod sink;
mod transcribe;

use std::io::{self, ErrorKind, IsTerminal as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;
use voxtral::backend::Backend;
use voxtral::backend::cpu::Cpu;
#[cfg(cuda_kernels)]
use voxtral::backend::{cuda::Cuda, handover::Handover};
use voxtral::{Engine, Model};

use self::input::silence_decoder_panics;
use self::options::{Device, Input, Options, Verbosity};
use self::report::say;
use self::transcribe::transcribe;

const FAILED: u8 = 1;
const INTERRUPTED: u8 = 130;
/// Interrupts within this time count as one.
const SAME_INTERRUPT: Duration = Duration::from_millis(250);

/// Runs the program.
pub fn main() -> ExitCode {
    let options = Options::from_process();
    start_logging(options.verbosity);
    silence_decoder_panics();
    let interrupted = Arc::new(AtomicBool::new(false));
    if let Err(error) = stop_on_interrupt(interrupted.clone()) {
        tracing::warn!("cannot catch Ctrl-C: {error}");
    }
    for warning in &options.warnings {
        tracing::warn!("{warning}");
    }
    let result = match options.device {
        Device::Auto => run_on_any(&options, &interrupted),
        Device::Cpu => load::<Cpu>(&options).and_then(|engine| run(engine, &options, &interrupted)),
        Device::Cuda => run_on_cuda(&options, &interrupted),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            report_error(&error);
            ExitCode::from(FAILED)
        }
    }
}

fn start_logging(verbosity: Verbosity) {
    let level = match verbosity {
        Verbosity::Silent => LevelFilter::ERROR,
        Verbosity::Normal => LevelFilter::WARN,
        Verbosity::Debug => LevelFilter::DEBUG,
    };
    // the decoders of other crates report through tracing what we report as errors
    let ours = Targets::new().with_target("voxtral", level);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .with_filter(ours);
    tracing_subscriber::registry().with(lines).init();
}

/// The first interrupt ends transcription after what has been heard, the second the process.
fn stop_on_interrupt(interrupted: Arc<AtomicBool>) -> Result<(), ctrlc::Error> {
    let mut first = None;
    ctrlc::set_handler(move || {
        // one interrupt may arrive twice, for the process and for its group
        if first.get_or_insert_with(Instant::now).elapsed() > SAME_INTERRUPT {
            std::process::exit(INTERRUPTED.into());
        }
        interrupted.store(true, Ordering::Relaxed);
    })
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == ErrorKind::BrokenPipe)
}

fn report_error(error: &anyhow::Error) {
    say(format_args!("voxtral: {error:#}\n"));
}

#[cfg(cuda_kernels)]
fn run_on_cuda(options: &Options, interrupted: &AtomicBool) -> anyhow::Result<u8> {
    load::<Cuda>(options).and_then(|engine| run(engine, options, interrupted))
}

#[cfg(not(cuda_kernels))]
fn run_on_cuda(_: &Options, _: &AtomicBool) -> anyhow::Result<u8> {
    anyhow::bail!(
        "this program was built without CUDA: install nvcc 13 (scripts/install_nvcc.sh puts it into .cuda/) and build again"
    )
}

/// On the first GPU where there is one, and on the CPU where there is none or from its first failure on.
fn run_on_any(options: &Options, interrupted: &AtomicBool) -> anyhow::Result<u8> {
    #[cfg(cuda_kernels)]
    match voxtral::backend::cuda::probe(options.backend.cuda.ordinal) {
        Ok(()) => return run(load::<Handover<Cuda, Cpu>>(options)?, options, interrupted),
        Err(reason) => tracing::debug!("no GPU: {reason}"),
    }
    load::<Cpu>(options).and_then(|engine| run(engine, options, interrupted))
}

/// Loads the model onto a backend.
fn load<B: Backend>(options: &Options) -> anyhow::Result<Engine<B>> {
    let start = Instant::now();
    let model = Model::open(&options.model).context("cannot load the model")?;
    let engine = Engine::load(model, &options.backend).context("cannot load the model")?;
    let load = start.elapsed();
    tracing::debug!(?load, "model loaded");
    if options.print_timings {
        say(format_args!("Model load: {} ms\n", load.as_millis()));
    }
    Ok(engine)
}

/// Transcribes all inputs; the exit code.
fn run<B: Backend>(mut engine: Engine<B>, options: &Options, interrupted: &AtomicBool) -> anyhow::Result<u8> {
    let mut code = 0;
    for input in &options.inputs {
        if options.inputs.len() > 1 && options.verbosity != Verbosity::Silent {
            say(format_args!("{}:\n", input.name()));
        }
        match transcribe(&mut engine, input, options, interrupted) {
            Ok(()) => {}
            Err(error) if is_broken_pipe(&error) => return Err(error),
            Err(error) => {
                let named = matches!(error.downcast_ref(), Some(voxtral::Error::Io { .. }));
                report_error(&if named { error } else { error.context(input.name()) });
                code = FAILED;
            }
        }
        if interrupted.load(Ordering::Relaxed) {
            // stopping a live stream is how it ends; stopping work on files leaves some undone
            return Ok(if *input == Input::Stdin { code } else { INTERRUPTED });
        }
    }
    Ok(code)
}
