//! From a session's events to what people and programs read.

pub mod atomic;
mod cues;
mod formats;
mod jsonl;
mod segments;
mod transcript;
mod words;

pub use atomic::AtomicFile;
pub use cues::{Cue, Layout, cues};
pub use formats::{Coverage, Format, Timings, Transcript, TranscriptBuilder};
pub use jsonl::JsonlWriter;
pub use segments::{Segment, Segmenter};
pub use transcript::{Style, TranscriptWriter};
pub use words::{Word, WordAlternative, WordBuilder};
