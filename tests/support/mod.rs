//! What several test programs and benchmarks share.
#![allow(dead_code)]

pub mod failing;
pub mod forks;
pub mod synthetic;

use std::path::{Path, PathBuf};

/// A file of the project.
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// The shipped model.
pub fn tiny_model() -> PathBuf {
    project("samples/tiny-model")
}

/// All samples of a shipped recording, which are 16-bit, mono, 16 kHz.
pub fn recording(name: &str) -> Vec<f32> {
    let mut wav = hound::WavReader::open(project(&format!("samples/{name}.wav"))).unwrap();
    wav.samples::<i16>().map(|sample| f32::from(sample.unwrap()) / 32768.0).collect()
}
