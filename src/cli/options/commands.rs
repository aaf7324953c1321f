//! Arguments of what the program does besides transcribing.

use std::path::PathBuf;

use clap::{Args, Subcommand};
use clap_complete::Shell;
use voxtral::backend::{BackendOptions, CudaOptions};

use super::values::one_device;
use super::{Device, Gpus};

// What to do instead of transcribing. As documentation this would take the place of the program's own.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Write the completions of a shell to stdout
    Completions { shell: Shell },
    /// Write the manual page to stdout
    Man,
    /// Show what a model directory holds: dimensions, formats, sizes, expected memory
    Info(InfoOptions),
    /// Measure how fast a model runs on this machine, with what it could do at most
    Bench(BenchOptions),
    /// Check a model directory: shapes, checksums, and a recording transcribed on CPU and GPU
    Verify(VerifyOptions),
}

#[derive(Args, Debug)]
pub struct InfoOptions {
    /// Model directory
    #[arg(short = 'd', long, value_name = "DIR", env = "VOX_MODEL", hide_env = true)]
    pub model: PathBuf,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct BenchOptions {
    /// Model directory
    #[arg(short = 'd', long, value_name = "DIR", env = "VOX_MODEL", hide_env = true)]
    pub model: PathBuf,

    /// Audio to measure with [default: a recording of eight seconds that is built in]
    #[arg(short = 'i', long, value_name = "FILE")]
    pub input: Option<PathBuf>,

    /// Times that it is transcribed, after two to warm up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub runs: u16,

    /// As JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub device: DeviceOptions,
}

#[derive(Args, Debug)]
pub struct VerifyOptions {
    /// Model directory
    #[arg(short = 'd', long, value_name = "DIR", env = "VOX_MODEL", hide_env = true)]
    pub model: PathBuf,

    #[command(flatten)]
    pub device: DeviceOptions,
}

/// What a command computes with.
#[derive(Args, Debug)]
pub struct DeviceOptions {
    /// Where to compute: auto (a GPU if there is one), cpu, cuda, or cuda:N for the GPU of that number
    #[arg(long, default_value = "auto", value_parser = one_device)]
    device: Device,

    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// What the environment asks for.
    #[arg(skip)]
    pub cuda: CudaOptions,
}

impl DeviceOptions {
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn backend(&self) -> BackendOptions {
        let ordinal = match &self.device {
            Device::Cuda(Gpus::These(ordinals)) => ordinals.first().copied().unwrap_or(0),
            _ => 0,
        };
        let cuda = CudaOptions { ordinal, ..self.cuda.clone() };
        BackendOptions { threads: self.threads.map(usize::from), cuda }
    }
}
