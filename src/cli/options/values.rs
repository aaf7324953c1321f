//! Values of arguments from their text, each with what was expected instead.

use std::ffi::OsString;
use std::time::Duration;

use voxtral::backend::MAX_REWIND;
use voxtral::output::Format;
use voxtral::{Delay, Draft};

use super::{Device, Formats, Gpus, Shard};

/// Names of what Slurm sets for a task of an array, and Kubernetes for a pod of an indexed Job. The latter tells no count:
/// its Job has to.
pub const SLURM: [&str; 4] =
    ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT"];
pub const KUBERNETES: [&str; 2] = ["JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"];

/// `K/N`, which begins with 1, or `auto`.
pub fn shard(text: &str, environment: impl Fn(&str) -> Option<OsString>) -> Result<Shard, String> {
    let number = |name: &str| match environment(name) {
        None => Ok(None),
        Some(value) => match value.to_str().and_then(|value| value.parse::<usize>().ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("{name} is {}, expected a number", value.display())),
        },
    };
    let shard = if text != "auto" {
        let parts = text.split_once('/').and_then(|(k, n)| Some((k.parse::<usize>().ok()?, n.parse().ok()?)));
        let (k, count) = parts.ok_or("--shard: expected K/N, as in 1/8, or auto")?;
        Shard { index: k.checked_sub(1).ok_or("--shard: parts are counted from 1")?, count }
    } else if let [Some(id), min, step, Some(count)] = slurm(number)? {
        let (min, step) = (min.unwrap_or(0), step.unwrap_or(1).max(1));
        Shard { index: id.checked_sub(min).ok_or("--shard auto: the task is before the array's first")? / step, count }
    } else if let Some(index) = number(KUBERNETES[0])? {
        let count = number(KUBERNETES[1])?;
        Shard { index, count: count.ok_or("--shard auto: JOB_COMPLETIONS has to say how many parts there are")? }
    } else {
        return Err("--shard auto: this is no task of a Slurm array and no pod of an indexed Kubernetes Job".into());
    };
    if shard.index < shard.count {
        Ok(shard)
    } else {
        Err(format!("--shard: there is no part {} of {}", shard.index + 1, shard.count))
    }
}

fn slurm(number: impl Fn(&str) -> Result<Option<usize>, String>) -> Result<[Option<usize>; 4], String> {
    let mut values = [None; 4];
    for (value, name) in values.iter_mut().zip(SLURM) {
        *value = number(name)?;
    }
    Ok(values)
}

pub fn device(text: &str) -> Result<Device, String> {
    match text {
        "auto" => return Ok(Device::Auto),
        "cpu" => return Ok(Device::Cpu),
        "cuda:all" => return Ok(Device::Cuda(Gpus::All)),
        _ => {}
    }
    let mut ordinals = Vec::new();
    for name in text.split(',') {
        let ordinal = match name {
            "cuda" => Some(0),
            _ => name.strip_prefix("cuda:").and_then(|n| n.parse::<u16>().ok()),
        };
        let ordinal = ordinal.ok_or("expected auto, cpu, cuda, cuda:N, several like cuda:0,cuda:1, or cuda:all")?;
        if ordinals.contains(&ordinal.into()) {
            return Err(format!("{name} is there twice"));
        }
        ordinals.push(ordinal.into());
    }
    Ok(Device::Cuda(Gpus::These(ordinals)))
}

pub fn one_device(text: &str) -> Result<Device, String> {
    match device(text)? {
        Device::Cuda(Gpus::These(ordinals)) if ordinals.len() > 1 => Err("expected one device".into()),
        Device::Cuda(Gpus::All) => Err("expected one device".into()),
        device => Ok(device),
    }
}

fn number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "not a number".to_owned())
}

pub fn interval(text: &str) -> Result<Duration, String> {
    let seconds = number(text)?;
    if seconds > 0.0 && seconds <= 60.0 {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("expected a positive number of seconds, at most 60".into())
    }
}

pub fn delay(text: &str) -> Result<Delay, String> {
    Delay::from_ms(number(text)?).map_err(|_| "expected 80 to 2400".into())
}

pub fn formats(name: &str) -> Result<Formats, String> {
    if name == "all" { Ok(Formats(Format::ALL.to_vec())) } else { Ok(Formats(vec![name.parse()?])) }
}

pub fn segment_seconds(text: &str) -> Result<Duration, String> {
    let seconds = number(text)?;
    if (1.0..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("expected 1 to 3600".into())
    }
}

/// How many inputs at a time; as many as are good where nothing is said.
#[derive(Debug, Clone, Copy)]
pub struct BatchArgument(pub Option<usize>);

pub fn batch(text: &str) -> Result<BatchArgument, String> {
    match text {
        "auto" => Ok(BatchArgument(None)),
        _ => match text.parse() {
            Ok(n @ 1..=1024) => Ok(BatchArgument(Some(n))),
            _ => Err("expected auto or 1 to 1024".into()),
        },
    }
}

pub fn draft(text: &str) -> Result<Draft, String> {
    match text {
        "auto" => Ok(Draft::Auto),
        _ => match text.parse() {
            Ok(n) if n < MAX_REWIND => Ok(Draft::Fixed(n)),
            _ => Err(format!("expected auto or 0 to {}", MAX_REWIND - 1)),
        },
    }
}

pub fn cutoff(text: &str) -> Result<f32, String> {
    let cutoff = number(text)? as f32;
    if (0.0..=1.0).contains(&cutoff) { Ok(cutoff) } else { Err("expected 0 to 1".into()) }
}
