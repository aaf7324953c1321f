//! Streaming speech-to-text with Mistral's Voxtral Realtime model.
pub mod audio;
pub mod backend;
mod error;
pub mod model;
pub use error::{Error, Result};
