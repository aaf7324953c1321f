//! `voxtral verify`: whether a model directory is whole, and whether CPU and GPU agree on it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::time::Instant;

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use voxtral::backend::Backend;
use voxtral::backend::cpu::Cpu;
use voxtral::{Engine, Event, Model, SessionOptions};

use super::{CPU, Work, bytes, gpu, run_on_gpu, samples, seconds};
use crate::cli::options::{Device, VerifyOptions};

/// The file with the others' checksums, as `sha256sum` writes it.
const CHECKSUMS: &str = "SHA256SUMS";

/// Checks everything; whether all is well.
pub fn run(options: &VerifyOptions) -> anyhow::Result<bool> {
    let mut out = io::stdout();
    let model = Model::open(&options.model).context("cannot load the model")?;
    writeln!(out, "ok    {}: all tensors have the shapes that params.json asks for", options.model.display())?;
    drop(model);
    let mut well = checksums(&options.model, &mut out)?;

    let cpu = Transcribe(options).run::<Cpu>(CPU)?;
    let gpu = match (options.device.device(), gpu(&options.device.backend())) {
        (Device::Cpu, _) => None,
        (Device::Auto, Err(reason)) => {
            writeln!(out, "-     no GPU to compare with: {reason}")?;
            None
        }
        (Device::Cuda(_), Err(reason)) => anyhow::bail!("{reason}"),
        (_, Ok(())) => Some(run_on_gpu(Transcribe(options))?),
    };
    for heard in [Some(&cpu), gpu.as_ref()].into_iter().flatten() {
        let said = if heard.text.is_empty() { "nothing".to_owned() } else { format!("“{}”", heard.text) };
        let mark = if heard.text.is_empty() { "FAIL " } else { "ok   " };
        well &= !heard.text.is_empty();
        writeln!(out, "{mark} {} hears in {:.1} s: {said}", heard.device, heard.seconds)?;
    }
    if let Some(gpu) = &gpu {
        let n_equal = cpu.ids.iter().zip(&gpu.ids).take_while(|(a, b)| a == b).count();
        if cpu.ids == gpu.ids {
            writeln!(out, "ok    CPU and GPU agree on all {} tokens", cpu.ids.len())?;
        } else {
            well = false;
            writeln!(out, "FAIL  CPU and GPU agree on the first {n_equal} of {} tokens only", cpu.ids.len())?;
        }
    }
    writeln!(out, "{}", if well { "all well" } else { "not well" })?;
    Ok(well)
}

/// Compares the files with the list beside them, or shows what would be in one.
fn checksums(dir: &Path, out: &mut impl Write) -> anyhow::Result<bool> {
    let list = match fs::read_to_string(dir.join(CHECKSUMS)) {
        Ok(list) => Some(list),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error).context(dir.join(CHECKSUMS).display().to_string()),
    };
    let mut well = true;
    for name in Model::FILES {
        let path = dir.join(name);
        let mut hash = Sha256::new();
        let size = File::open(&path).and_then(|mut file| io::copy(&mut file, &mut hash));
        let size = bytes(size.with_context(|| path.display().to_string())?);
        let sum: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        match list.as_deref().map(|list| expected(list, name)) {
            None => writeln!(out, "-     {sum}  {name}, {size}")?,
            Some(Some(expected)) if expected.eq_ignore_ascii_case(&sum) => {
                writeln!(out, "ok    {sum}  {name}, {size}")?;
            }
            Some(Some(expected)) => {
                well = false;
                writeln!(out, "FAIL  {sum}  {name}, {size}: {CHECKSUMS} has {expected}")?;
            }
            Some(None) => {
                well = false;
                writeln!(out, "FAIL  {sum}  {name}, {size}: not in {CHECKSUMS}")?;
            }
        }
    }
    if list.is_none() {
        writeln!(out, "-     no {CHECKSUMS} in the directory to compare these with")?;
    }
    Ok(well)
}

fn expected<'a>(list: &'a str, name: &str) -> Option<&'a str> {
    let entries = list.lines().filter_map(|line| line.split_once(char::is_whitespace));
    entries
        .into_iter()
        .find(|(_, file)| file.trim_start().trim_start_matches('*').trim_end() == name)
        .map(|(sum, _)| sum)
}

struct Heard {
    device: &'static str,
    ids: Vec<u32>,
    text: String,
    /// How long it took, loading included.
    seconds: f64,
}

struct Transcribe<'a>(&'a VerifyOptions);

impl Work for Transcribe<'_> {
    type Output = Heard;

    fn run<B: Backend>(self, device: &'static str) -> anyhow::Result<Heard> {
        let options = self.0;
        let start = Instant::now();
        let mut engine = Engine::<B>::load(Model::open(&options.model)?, &options.device.backend()).context(device)?;
        let mut session = engine.open(&SessionOptions::default())?;
        let samples = samples(None)?;
        tracing::debug!(device, seconds = seconds(samples.len()), "built-in recording");
        session.push(&samples)?;
        session.finish();
        engine.advance(&mut [&mut session])?;
        let (mut ids, mut text) = (Vec::new(), String::new());
        while let Some(event) = session.next_event() {
            match event {
                Event::Token(token) => {
                    ids.push(token.id);
                    text += &token.text;
                }
                Event::End { text: rest } => text += &rest,
                Event::Restart { .. } => {}
            }
        }
        let text = text.trim().to_owned();
        Ok(Heard { device, ids, text, seconds: start.elapsed().as_secs_f64() })
    }
}
