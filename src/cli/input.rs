//! Inputs as streams of samples, opened and decoded on a thread of their own.

use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use voxtral::audio::{AudioReader, Channel, SAMPLE_RATE};
use voxtral::{Error, Result};

use super::mic::{self, Offer};
use super::options::Input;

/// Pieces decoded ahead of need, each at most about a second.
const QUEUE: usize = 16;
/// The same for a microphone, where what waits is old: what does not fit is put together into the next piece.
const LIVE_QUEUE: usize = 2;
const THREAD_NAME: &str = "audio";

impl Input {
    /// Whether it can be read more than once.
    pub fn is_rereadable(&self) -> bool {
        matches!(self, Self::File(path) if path.is_file())
    }

    /// For messages.
    pub fn name(&self) -> String {
        match self {
            Self::File(path) => path.display().to_string(),
            Self::Stdin => "stdin".into(),
            Self::Microphone(_) => "microphone".into(),
        }
    }
}

enum Piece {
    /// Seconds that the input claims to have.
    Duration(f64),
    Samples(Vec<f32>),
    /// A pause, before which nothing is to wait for more.
    Pause,
    /// The input's end, or what ended it before.
    End(Result<()>),
}

/// Samples of one input.
pub struct PcmStream {
    pieces: Receiver<Piece>,
    duration: Option<f64>,
    pauses: bool,
}

impl PcmStream {
    /// Starts to open and decode an input.
    pub fn start(input: &Input, raw: bool, channel: Channel) -> io::Result<Self> {
        let queue = if matches!(input, Input::Microphone(_)) { LIVE_QUEUE } else { QUEUE };
        let (sender, pieces) = sync_channel(queue);
        let input = input.clone();
        let decode = move || {
            let result = open(&input, raw, channel).and_then(|reader| match input {
                Input::Microphone(_) => mic::capture(reader, |samples, pauses| send_live(samples, pauses, &sender)),
                Input::File(_) | Input::Stdin => send_all(reader, &sender),
            });
            // nobody listens any more once the input is given up
            let _ = sender.send(Piece::End(result));
        };
        std::thread::Builder::new().name(THREAD_NAME.into()).spawn(decode)?;
        Ok(Self { pieces, duration: None, pauses: false })
    }

    /// Seconds of audio, where the input has told so far.
    pub fn duration(&self) -> Option<f64> {
        self.duration
    }

    /// Whether a pause has begun since this was asked.
    pub fn take_pause(&mut self) -> bool {
        std::mem::take(&mut self.pauses)
    }

    /// Appends the next piece, waiting for it no longer than `timeout`. `false` at the end.
    ///
    /// # Errors
    /// What ended the input; all samples before it have been appended.
    pub fn read(&mut self, samples: &mut Vec<f32>, timeout: Duration) -> Result<bool> {
        match self.pieces.recv_timeout(timeout) {
            Ok(Piece::Duration(seconds)) => self.duration = Some(seconds),
            Ok(Piece::Samples(piece)) => samples.extend(piece),
            Ok(Piece::Pause) => self.pauses = true,
            Ok(Piece::End(result)) => return result.map(|()| false),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return Err(Error::DamagedAudio("its decoder crashed".into())),
        }
        Ok(true)
    }
}

/// Opens an input.
pub fn open(input: &Input, raw: bool, channel: Channel) -> Result<AudioReader> {
    match (input, raw) {
        (Input::Stdin, true) => Ok(AudioReader::raw(io::stdin())),
        (Input::Stdin, false) => match redirected_file() {
            Some(file) => AudioReader::from_file(file, channel),
            None => AudioReader::from_stream(io::stdin(), channel),
        },
        (Input::Microphone(name), _) => mic::open(name.as_deref(), channel),
        (Input::File(path), false) => AudioReader::open_channel(path, channel),
        (Input::File(path), true) => {
            let io = |error| Error::Io { path: path.clone(), error };
            let file = File::open(path).map_err(io)?;
            if file.metadata().map_err(io)?.is_dir() {
                return Err(io(io::ErrorKind::IsADirectory.into()));
            }
            Ok(AudioReader::raw(file))
        }
    }
}

/// Standard input, where it is a file that can seek.
fn redirected_file() -> Option<File> {
    #[cfg(unix)]
    let owned = std::os::fd::AsFd::as_fd(&io::stdin()).try_clone_to_owned();
    #[cfg(windows)]
    let owned = std::os::windows::io::AsHandle::as_handle(&io::stdin()).try_clone_to_owned();
    let file = File::from(owned.ok()?);
    file.metadata().ok()?.is_file().then_some(file)
}

fn send_all(mut reader: AudioReader, sender: &SyncSender<Piece>) -> Result<()> {
    tracing::debug!(format = reader.description(), seconds = reader.duration(), "input");
    if let Some(seconds) = reader.duration() {
        let _ = sender.send(Piece::Duration(seconds));
    }
    loop {
        let mut samples = Vec::with_capacity(SAMPLE_RATE as usize);
        let read = reader.read(&mut samples);
        if !samples.is_empty() && sender.send(Piece::Samples(samples)).is_err() {
            return Ok(());
        }
        if read? == 0 {
            return Ok(());
        }
    }
}

/// Offers live samples without waiting: what is not taken now is offered again with what follows.
fn send_live(samples: &mut Vec<f32>, pauses: bool, sender: &SyncSender<Piece>) -> Offer {
    let offer = |piece| match sender.try_send(piece) {
        Ok(()) => Offer::Taken,
        Err(TrySendError::Full(_)) => Offer::Busy,
        Err(TrySendError::Disconnected(_)) => Offer::Closed,
    };
    if !samples.is_empty() {
        match offer(Piece::Samples(samples.clone())) {
            Offer::Taken => samples.clear(),
            other => return other,
        }
    }
    if pauses { offer(Piece::Pause) } else { Offer::Taken }
}

/// Keeps quiet about panics on the decoding thread: those of the audio decoders are caught and become errors.
pub fn silence_decoder_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() != Some(THREAD_NAME) {
            report(info);
        }
    }));
}
