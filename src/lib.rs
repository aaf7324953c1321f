//! Streaming speech-to-text with Mistral's Voxtral Realtime model.

pub mod audio;
mod error;

pub use error::{Error, Result};
