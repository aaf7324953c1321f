//! From a session's events to what people and programs read.

mod transcript;

pub use transcript::{Style, TranscriptWriter};
