//! The library's one error type, by cause. Messages name what was wrong and what would be accepted; whoever opened a
//! file adds its name.

use std::path::PathBuf;

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong in the library.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The operating system refused a file.
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
    /// A model file does not hold what it must; every fault found is listed.
    #[error("{}: {}", path.display(), list(faults))]
    Model { path: PathBuf, faults: Vec<String> },
    /// The bytes are not in any known audio format.
    #[error("not a known audio format ({0}); WAV, MP3, FLAC, Ogg, M4A/MP4, AIFF, CAF, MKV and WebM are read")]
    UnknownAudio(String),
    /// A known container with something inside that is not supported.
    #[error("unsupported audio: {0}")]
    UnsupportedAudio(String),
    /// The audio is damaged or ends early. What could be decoded was delivered before this error.
    #[error("damaged audio: {0}")]
    DamagedAudio(String),
    /// Reading the audio's bytes failed.
    #[error("cannot read audio: {0}")]
    AudioIo(std::io::Error),
    /// A sample that is no sound: not finite, or far outside -1..1.
    #[error("sample {index} is {value:?}: samples must be finite and within ±{limit}", limit = crate::audio::MAX_SAMPLE)]
    InvalidSample { index: u64, value: f32 },
    /// An option outside its range.
    #[error("{0}")]
    InvalidOption(String),
    /// The backend failed.
    #[error("{0}")]
    Backend(String),
}

fn list(faults: &[String]) -> String {
    match faults {
        [one] => one.clone(),
        many => many.iter().map(|fault| format!("\n  - {fault}")).collect(),
    }
}
