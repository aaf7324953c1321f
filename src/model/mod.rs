//! What a model directory holds: [`params`], [`weights`] and [`tokenizer`], opened and checked together.

pub mod params;
pub mod tokenizer;
pub mod weights;

use std::path::{Path, PathBuf};

pub use params::Params;
pub use tokenizer::{Tokenizer, Utf8Joiner};
pub use weights::Weights;

use crate::{Error, Result};

/// The model's output lags its input by this many tokens of 80 ms; longer delays are more accurate.
///
/// It enters twice: the prompt is longer by it, and the decoder is conditioned on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay(u32);

impl Delay {
    /// 480 ms, the model's recommended delay.
    pub const DEFAULT: Self = Self(6);
    /// Shortest and longest accepted delay in milliseconds: what the model was trained with.
    const MIN_MS: f64 = 80.0;
    const MAX_MS: f64 = 2400.0;

    /// A delay in milliseconds, 80 to 2400; like the official tokenizer, whatever is no multiple of 80 ms is
    /// rounded to whole mel frames and then up to whole tokens.
    pub fn from_ms(ms: f64) -> Result<Self> {
        let samples = (ms / 1000.0 * 16_000.0).trunc();
        let frames = if samples % 160.0 == 0.0 { samples / 160.0 } else { (samples / 160.0 - 1.0).ceil() };
        let tokens = (frames / 8.0).ceil();
        if (Self::MIN_MS..=Self::MAX_MS).contains(&ms) {
            Ok(Self(tokens as u32))
        } else {
            Err(Error::InvalidOption(format!("delay of {ms} ms: expected {} to {} ms", Self::MIN_MS, Self::MAX_MS)))
        }
    }

    /// Tokens of 80 ms.
    pub fn tokens(self) -> usize {
        self.0 as usize
    }

    /// Milliseconds.
    pub fn ms(self) -> u64 {
        u64::from(self.0) * 80
    }
}

/// An opened model directory.
#[derive(Debug)]
pub struct Model {
    pub params: Params,
    pub tokenizer: Tokenizer,
    pub weights: Weights,
}

impl Model {
    /// What a model directory holds.
    pub const FILES: [&str; 3] = ["params.json", "tekken.json", "consolidated.safetensors"];

    /// Opens a directory with `params.json`, `tekken.json` and `consolidated.safetensors`, checks all three and maps the
    /// weights into memory without reading them.
    pub fn open(dir: &Path) -> Result<Self> {
        let [params, tekken, weights] = Self::files(dir)?;
        let params = Params::open(&params)?;
        let tokenizer = Tokenizer::open(&tekken, params.vocab_size)?;
        let weights = Weights::open(&weights, &params)?;
        Ok(Self { params, tokenizer, weights })
    }

    fn files(dir: &Path) -> Result<[PathBuf; 3]> {
        let names = Self::FILES;
        let entry = std::fs::metadata(dir).map_err(|error| Error::Io { path: dir.into(), error })?;
        let mut faults = Vec::new();
        if entry.is_dir() {
            for name in names {
                match std::fs::metadata(dir.join(name)) {
                    Ok(file) if file.is_file() => {}
                    Ok(_) => faults.push(format!("{name} is not a regular file")),
                    Err(e) if e.kind() == std::io::ErrorKind::NotFound => faults.push(format!("{name} is missing")),
                    Err(e) => faults.push(format!("{name}: {e}")),
                }
            }
        } else {
            faults.push(format!("not a directory; expected one with {}", names.join(", ")));
        }
        if !faults.is_empty() {
            if dir.join("model.safetensors").exists() && !dir.join(names[2]).exists() {
                faults.push(
                    "model.safetensors is there, but it holds the same weights in another layout (Hugging Face's, with \
                     permuted rows): download consolidated.safetensors from the same repository, as download_model.sh does"
                        .into(),
                );
            }
            return Err(Error::Model { path: dir.into(), faults });
        }
        Ok(names.map(|name| dir.join(name)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_are_rounded_as_the_official_tokenizer_does() {
        let tokens = |ms| Delay::from_ms(ms).map(Delay::tokens).ok();
        assert_eq!([80.0, 100.0, 480.0, 1200.0, 2400.0].map(tokens), [1, 2, 6, 15, 30].map(Some));
        assert_eq!([0.0, -80.0, 79.0, 2401.0, f64::NAN, f64::INFINITY].map(tokens), [None; 6]);
        assert_eq!(Delay::DEFAULT.ms(), 480);
    }
}
