//! Inputs as streams of samples, decoded on a thread of their own.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use voxtral::audio::{AudioReader, SAMPLE_RATE};
use voxtral::{Error, Result};

use super::options::Input;

/// Pieces decoded ahead of need, each at most about a second.
const QUEUE: usize = 16;

impl Input {
    /// For messages.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Stdin => "stdin".into(),
        }
    }
}

/// Samples of one input.
pub struct PcmStream {
    pieces: Receiver<Result<Vec<f32>>>,
    duration: Option<f64>,
}

impl PcmStream {
    /// Opens an input and starts to decode it.
    pub fn open(input: &Input, raw: bool) -> Result<Self> {
        let (sender, pieces) = sync_channel(QUEUE);
        let mut duration = None;
        let reader = match input {
            // what stdin holds is found out on the thread, which may have to wait for it
            Input::Stdin => None,
            Input::File(path) => {
                let reader = if raw {
                    let io = |source| Error::Io { path: path.clone(), source };
                    if path.is_dir() {
                        return Err(io(io::ErrorKind::IsADirectory.into()));
                    }
                    AudioReader::raw(std::fs::File::open(path).map_err(io)?)
                } else {
                    AudioReader::open(path)?
                };
                tracing::debug!(format = reader.description(), seconds = reader.duration(), "input");
                duration = reader.duration();
                Some(reader)
            }
        };
        std::thread::spawn(move || {
            let opened = reader.map_or_else(|| open_stdin(raw), Ok);
            let mut reader = match opened {
                Ok(reader) => reader,
                Err(error) => return drop(sender.send(Err(error))),
            };
            loop {
                let mut samples = Vec::with_capacity(SAMPLE_RATE as usize);
                let read = reader.read(&mut samples);
                let end = !matches!(read, Ok(n) if n > 0);
                // nobody listens any more once the input is given up
                if !samples.is_empty() && sender.send(Ok(samples)).is_err() {
                    return;
                }
                if let Err(error) = read {
                    return drop(sender.send(Err(error)));
                }
                if end {
                    return;
                }
            }
        });
        Ok(Self { pieces, duration })
    }

    /// Seconds of audio, where the input tells.
    pub fn duration(&self) -> Option<f64> {
        self.duration
    }

    /// Appends the next piece, waiting for it no longer than `timeout`. `false` at the end.
    pub fn read(&mut self, samples: &mut Vec<f32>, timeout: Duration) -> Result<bool> {
        match self.pieces.recv_timeout(timeout) {
            Ok(piece) => samples.extend(piece?),
            Err(RecvTimeoutError::Timeout) => return Ok(true),
            Err(RecvTimeoutError::Disconnected) => return Ok(false),
        }
        Ok(true)
    }
}

fn open_stdin(raw: bool) -> Result<AudioReader> {
    if raw { Ok(AudioReader::raw(io::stdin())) } else { AudioReader::from_stream(io::stdin()) }
}
