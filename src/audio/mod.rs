//! From any audio file or stream to mono 16 kHz samples ([`AudioReader`]) and on to log-mel frames ([`mel`]).

mod container;
mod detect;
pub mod mel;
mod mp4;
mod opus;
mod reader;
mod resample;
mod track;
mod wav;

pub use reader::AudioReader;

/// Samples per second of everything behind [`AudioReader`].
pub const SAMPLE_RATE: u32 = 16_000;

/// Largest magnitude that is still taken for sound; full scale is 1. Floating-point recordings may exceed full scale,
/// but values like 32767 mean that integers were written as floats.
pub const MAX_SAMPLE: f32 = 128.0;
