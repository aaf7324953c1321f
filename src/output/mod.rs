//! From a session's events to what people and programs read.

pub mod atomic;
mod cues;
mod formats;
mod json;
mod jsonl;
mod segments;
mod transcript;
mod words;
mod writer;

pub use atomic::AtomicFile;
pub use cues::{Cue, Layout, cues};
pub use formats::Format;
pub use jsonl::JsonlWriter;
pub use segments::{Segment, Segmenter};
pub use transcript::{Coverage, Timings, Transcript, TranscriptBuilder};
pub use words::{Word, WordAlternative, WordBuilder};
pub use writer::{Style, TranscriptWriter};
