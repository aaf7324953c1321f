//! The program: from arguments to an engine with its work, and to an exit code.

mod bulk;
mod commands;
mod input;
mod knobs;
mod mic;
mod options;
mod report;
mod sink;
mod transcribe;
mod worker;

use std::io::{self, ErrorKind, IsTerminal as _, Write as _};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rayon::prelude::*;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;
use voxtral::backend::Backend;
use voxtral::backend::cpu::Cpu;
#[cfg(cuda_kernels)]
use voxtral::backend::{cuda::Cuda, handover::Handover};
use voxtral::{Engine, Model};

use self::bulk::Batch;
use self::input::silence_decoder_panics;
#[cfg(cuda_kernels)]
use self::options::Gpus;
use self::options::{Command, Device, Options, Request, Verbosity};
use self::report::{Log, abandon_progress, say};
use self::transcribe::transcribe_all;

const FAILED: u8 = 1;
const INTERRUPTED: u8 = 130;
/// Inputs worked on at a time on CPUs, where a pass costs by the row.
const CPU_BATCH: usize = 4;
/// Decoder positions of a minute, which is what room is made for; where inputs are longer, fewer are open when memory runs out.
const USUAL_POSITIONS: usize = 800;
/// Interrupts within this time count as one.
const SAME_INTERRUPT: Duration = Duration::from_millis(250);
/// Pieces of memory from which on they go back to the system when they are freed.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
const RETURNED_BYTES: i32 = 64 << 10;

/// Runs the program.
pub fn main() -> ExitCode {
    let options = match Request::from_process() {
        Request::Transcribe(options) => options,
        Request::Command(command) => return run_command(&command),
        Request::ListMicrophones => return exit_code(list_microphones()),
    };
    start_logging(options.verbosity);
    silence_decoder_panics();
    let interrupted = Arc::new(AtomicBool::new(false));
    if let Err(error) = stop_on_interrupt(interrupted.clone()) {
        tracing::warn!("cannot catch Ctrl-C: {error}");
    }
    for warning in &options.warnings {
        tracing::warn!("{warning}");
    }
    exit_code(Batch::plan(&options).and_then(|mut batch| {
        let result = work(&options, &mut batch, &interrupted);
        // an error that ends all of the work comes last, and what it leaves undone is counted too
        if result.is_ok() || batch.has_begun() {
            batch.summary().iter().for_each(|summary| say(format_args!("{summary}")));
        }
        result
    }))
}

fn work(options: &Options, batch: &mut Batch, interrupted: &AtomicBool) -> anyhow::Result<u8> {
    if !options.worker && batch.jobs.is_empty() || batch.is_over() {
        return Ok(exit_status(batch));
    }
    match &options.device {
        Device::Auto => run_on_any(options, batch, interrupted),
        Device::Cpu => run_on_cpu(options, batch, interrupted),
        #[cfg(cuda_kernels)]
        Device::Cuda(gpus) => {
            let ordinals = match gpus {
                Gpus::These(ordinals) => ordinals.clone(),
                // without any the first one has it told why
                Gpus::All => (0..voxtral::backend::cuda::count().max(1)).collect(),
            };
            let engines = load::<Cuda>(options, &ordinals)?;
            let best = gpu_batch(&engines);
            run(engines, options, batch, interrupted, best)
        }
        #[cfg(not(cuda_kernels))]
        Device::Cuda(_) => anyhow::bail!(
            "this program was built without CUDA: install nvcc 13 (scripts/install_nvcc.sh puts it into .cuda/) and build again"
        ),
    }
}

fn list_microphones() -> anyhow::Result<u8> {
    let names = mic::names()?;
    if names.is_empty() {
        anyhow::bail!("there is no microphone, or none may be used");
    }
    let mut out = io::stdout().lock();
    names.iter().try_for_each(|name| writeln!(out, "{name}"))?;
    Ok(0)
}

fn run_command(command: &Command) -> ExitCode {
    start_logging(Verbosity::Normal);
    silence_decoder_panics();
    exit_code(commands::run(command).map(|well| if well { 0 } else { FAILED }))
}

fn exit_code(result: anyhow::Result<u8>) -> ExitCode {
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
        .with_writer(|| Log)
        .with_ansi(io::stderr().is_terminal())
        .without_time()
        .with_target(verbosity == Verbosity::Debug)
        .with_filter(ours);
    tracing_subscriber::registry().with(lines).init();
}

/// The first interrupt ends transcription after what has been heard, the second the process.
fn stop_on_interrupt(interrupted: Arc<AtomicBool>) -> Result<(), ctrlc::Error> {
    let mut first = None;
    ctrlc::set_handler(move || {
        // one interrupt may arrive twice, for the process and for its group
        if first.get_or_insert_with(Instant::now).elapsed() > SAME_INTERRUPT {
            abandon_progress();
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

/// On the first GPU where there is one, and on the CPU where there is none or from its first failure on.
fn run_on_any(options: &Options, batch: &mut Batch, interrupted: &AtomicBool) -> anyhow::Result<u8> {
    #[cfg(cuda_kernels)]
    match voxtral::backend::cuda::probe(0) {
        Ok(()) => {
            let engines = load::<Handover<Cuda, Cpu>>(options, &[0])?;
            let best = gpu_batch(&engines);
            return run(engines, options, batch, interrupted, best);
        }
        Err(reason) => tracing::debug!("no GPU: {reason}"),
    }
    run_on_cpu(options, batch, interrupted)
}

fn run_on_cpu(options: &Options, batch: &mut Batch, interrupted: &AtomicBool) -> anyhow::Result<u8> {
    return_memory();
    run(load::<Cpu>(options, &[0])?, options, batch, interrupted, CPU_BATCH)
}

/// Has what a pass used returned when it ends. glibc would keep it, for the thread that it was used on, and passes are on
/// whichever thread is free: that of each would grow to the largest. Beside GPUs, where many threads take and free audio, it
/// would cost some 2 % of the speed.
fn return_memory() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    // SAFETY: it sets a word that allocations look at. Should it fail, memory stays as it was.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, RETURNED_BYTES);
    }
}

/// Inputs worked on at a time on GPUs: as many as a pass has rows, or, where those are few, three quarters of them, which leaves
/// room for prompts.
#[cfg(cuda_kernels)]
fn gpu_batch<B: Backend>(engines: &[Engine<B>]) -> usize {
    let rows = engines.iter().map(|engine| engine.backend().max_rows()).min().unwrap_or(1);
    if rows > 64 { rows } else { rows * 3 / 4 }
}

/// Loads the model onto a backend, on each of these devices at a time.
fn load<B: Backend>(options: &Options, ordinals: &[usize]) -> anyhow::Result<Vec<Engine<B>>> {
    let start = Instant::now();
    let _span = tracing::debug_span!("load").entered();
    let load = |ordinal: usize| -> voxtral::Result<Engine<B>> {
        let mut backend = options.backend.clone();
        backend.cuda.ordinal = ordinal;
        let mut engine = Engine::load(Model::open(&options.model)?, &backend)?;
        engine.set_draft(options.draft);
        Ok(engine)
    };
    let engines: voxtral::Result<Vec<_>> = match ordinals {
        [one] => load(*one).map(|engine| vec![engine]),
        _ => ordinals.par_iter().map(|&ordinal| load(ordinal)).collect(),
    };
    let engines = engines.context("cannot load the model")?;
    let load = start.elapsed();
    tracing::debug!(?load, "model loaded");
    if options.print_timings {
        say(format_args!("Model load: {} ms\n", load.as_millis()));
    }
    Ok(engines)
}

/// Does what was asked for; the exit code.
fn run<B: Backend + 'static>(
    engines: Vec<Engine<B>>,
    options: &Options,
    batch: &mut Batch,
    interrupted: &AtomicBool,
    best: usize,
) -> anyhow::Result<u8> {
    let room = engines.iter().filter_map(|engine| engine.backend().room_for_streams(USUAL_POSITIONS)).min();
    // one more is what segments begin as copies of
    let room = room.map_or(best, |n| n.saturating_sub(1));
    let at_a_time = options.batch.unwrap_or(best.min(room).max(1));
    if options.worker {
        return worker::serve(engines, options, interrupted, at_a_time);
    }
    transcribe_all(engines, options, batch, interrupted, at_a_time)
}

fn exit_status(batch: &Batch) -> u8 {
    if batch.has_failed() { FAILED } else { 0 }
}
