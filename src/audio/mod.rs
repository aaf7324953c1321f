//! From any audio file or stream to mono 16 kHz samples ([`AudioReader`]) and on to log-mel frames ([`mel`]).

mod container;
mod detect;
pub mod mel;
mod mp4;
mod opus;
mod reader;
mod resample;
mod speech;
mod track;
mod wav;

pub use reader::AudioReader;
pub use speech::speech_ms;

use crate::{Error, Result};

/// Any byte stream.
type Bytes = Box<dyn std::io::Read + Send + Sync>;

/// Samples per second of everything behind [`AudioReader`].
pub const SAMPLE_RATE: u32 = 16_000;

/// Largest magnitude that is still taken for sound; full scale is 1. Floating-point recordings may exceed full scale,
/// but values like 32767 mean that integers were written as floats.
pub const MAX_SAMPLE: f32 = 128.0;

/// What of a recording's channels is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Channel {
    /// The mean of all.
    #[default]
    Mix,
    /// One of them, counted from 0.
    Only(usize),
}

impl Channel {
    /// The sample of a frame. Where a recording has fewer channels for a while, the last stands for those missing.
    fn of(self, frame: impl ExactSizeIterator<Item = f32>) -> f32 {
        let n = frame.len();
        match self {
            Self::Mix => (frame.map(f64::from).sum::<f64>() / n as f64) as f32,
            Self::Only(i) => frame.take(i + 1).last().unwrap_or(0.0),
        }
    }
}

/// Checks that samples are sound: finite and not absurdly large. `index` is that of the first one, for the message.
pub fn check_samples(samples: &[f32], index: u64) -> Result<()> {
    let is_sound = |x: &f32| x.abs() <= MAX_SAMPLE;
    // all at once, which is several times as fast as one by one
    if samples.iter().fold(true, |all, x| all & is_sound(x)) {
        return Ok(());
    }
    match samples.iter().position(|x| !is_sound(x)) {
        Some(i) => Err(Error::InvalidSample { index: index + i as u64, value: samples[i] }),
        None => Ok(()),
    }
}

#[cfg(test)]
pub(crate) use speech::tests as speech_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_sound_is_refused_and_named() {
        check_samples(&[0.0, -1.0, 1.5, MAX_SAMPLE], 0).unwrap();
        for bad in [f32::NAN, f32::INFINITY, -1e30, 32767.0] {
            let error = check_samples(&[0.1, bad, 0.1], 10).unwrap_err().to_string();
            assert!(error.contains("sample 11"), "{error}");
        }
    }
}
