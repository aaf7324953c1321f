//! What the program does besides transcribing: completions, the manual, and looking into, timing and checking a model.

mod bench;
mod info;
mod verify;

use std::io::{self, Write as _};

use clap_complete::Shell;
use voxtral::audio::{AudioReader, Channel, SAMPLE_RATE};
use voxtral::backend::cpu::Cpu;
use voxtral::backend::{Backend, BackendOptions};

use super::options::{self, Command, Device};

/// A recording of eight seconds that comes with the program, to time and check a model with.
const RECORDING: &[u8] = include_bytes!("../../../samples/kal_computer.wav");

/// Runs a command; whether all is well.
pub fn run(command: &Command) -> anyhow::Result<bool> {
    match command {
        Command::Completions { shell } => completions(*shell)?,
        Command::Man => manual()?,
        Command::Info(options) => info::run(options)?,
        Command::Bench(options) => bench::run(options)?,
        Command::Verify(options) => return verify::run(options),
    }
    Ok(true)
}

fn completions(shell: Shell) -> io::Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut options::interface(), "voxtral", &mut script);
    io::stdout().write_all(&script)
}

fn manual() -> io::Result<()> {
    let mut page = Vec::new();
    clap_mangen::Man::new(options::interface()).render(&mut page)?;
    io::stdout().write_all(&page)
}

/// All samples of an audio file, or of [`RECORDING`].
fn samples(reader: Option<AudioReader>) -> voxtral::Result<Vec<f32>> {
    let mut reader = match reader {
        Some(reader) => reader,
        None => AudioReader::from_stream(RECORDING, Channel::Mix)?,
    };
    let mut samples = Vec::new();
    while reader.read(&mut samples)? > 0 {}
    Ok(samples)
}

fn seconds(n_samples: usize) -> f64 {
    n_samples as f64 / f64::from(SAMPLE_RATE)
}

/// Work that any backend can do.
trait Work {
    type Output;
    /// `device` is the backend's name for people.
    fn run<B: Backend>(self, device: &'static str) -> anyhow::Result<Self::Output>;
}

/// What is said of the CPU, as opposed to a GPU.
const CPU: &str = "CPU";

/// Does work on a device; `auto` is the GPU where one can be used.
fn run_on<W: Work>(device: &Device, options: &BackendOptions, work: W) -> anyhow::Result<W::Output> {
    match (device, gpu(options)) {
        (Device::Cpu, _) | (Device::Auto, Err(_)) => work.run::<Cpu>(CPU),
        (Device::Cuda(_), Err(reason)) => anyhow::bail!("{reason}"),
        (_, Ok(())) => run_on_gpu(work),
    }
}

/// Whether there is a GPU to use, or why not.
#[cfg(cuda_kernels)]
fn gpu(options: &BackendOptions) -> Result<(), String> {
    voxtral::backend::cuda::probe(options.cuda.ordinal)
}

#[cfg(not(cuda_kernels))]
fn gpu(_: &BackendOptions) -> Result<(), String> {
    Err("this program was built without CUDA".into())
}

#[cfg(cuda_kernels)]
fn run_on_gpu<W: Work>(work: W) -> anyhow::Result<W::Output> {
    work.run::<voxtral::backend::cuda::Cuda>("GPU")
}

#[cfg(not(cuda_kernels))]
fn run_on_gpu<W: Work>(_: W) -> anyhow::Result<W::Output> {
    anyhow::bail!("this program was built without CUDA")
}

/// Bytes for people, in units of a thousand.
fn bytes(n: u64) -> String {
    match n {
        0..1000 => format!("{n} B"),
        1000..1_000_000 => format!("{:.1} kB", n as f64 / 1e3),
        1_000_000..1_000_000_000 => format!("{:.1} MB", n as f64 / 1e6),
        _ => format!("{:.2} GB", n as f64 / 1e9),
    }
}
