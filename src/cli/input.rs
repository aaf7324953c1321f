//! Inputs as streams of samples.

use std::fs::File;
use std::io;

use voxtral::audio::{AudioReader, Channel, SAMPLE_RATE};
use voxtral::scheduler::{self, PcmSender, READER_THREAD};
use voxtral::{Error, LevelFeed, Result};

use super::mic::{self, Offer};
use super::options::Input;

impl Input {
    /// Whether it can be read more than once.
    pub fn is_rereadable(&self) -> bool {
        matches!(self, Self::File(path) if path.is_file())
    }

    /// Its size; what is no file may be endless.
    pub fn n_bytes(&self) -> u64 {
        let metadata = match self {
            Self::File(path) => path.metadata().ok().filter(std::fs::Metadata::is_file),
            Self::Stdin | Self::Microphone(_) => None,
        };
        metadata.map_or(u64::MAX, |metadata| metadata.len())
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

/// Reads an input to its end into its job, and tells a guard what it reads.
pub fn read_into(
    input: &Input,
    raw: bool,
    channel: Channel,
    sender: &PcmSender,
    feed: Option<LevelFeed>,
) -> Result<()> {
    let reader = open(input, raw, channel)?;
    match input {
        Input::Microphone(_) => mic::capture(reader, |samples, pauses| match sender.offer(samples, pauses) {
            scheduler::Offer::Taken => Offer::Taken,
            scheduler::Offer::Full => Offer::Busy,
            scheduler::Offer::Gone => Offer::Closed,
        }),
        Input::File(_) | Input::Stdin => send_all(reader, sender, feed),
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

/// Reads all samples into a job.
pub fn send_all(mut reader: AudioReader, sender: &PcmSender, mut feed: Option<LevelFeed>) -> Result<()> {
    tracing::debug!(format = reader.description(), seconds = reader.duration(), "input");
    if let Some(seconds) = reader.duration() {
        let _ = sender.set_duration(seconds);
    }
    loop {
        let mut samples = Vec::with_capacity(SAMPLE_RATE as usize);
        let read = reader.read(&mut samples);
        if let Some(feed) = &mut feed {
            feed.samples(&samples);
        }
        if !samples.is_empty() && sender.send(samples).is_err() {
            return Ok(());
        }
        if read? == 0 {
            return Ok(());
        }
    }
}

/// Keeps quiet about panics on the decoding thread: those of the audio decoders are caught and become errors.
pub fn silence_decoder_panics() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if std::thread::current().name() != Some(READER_THREAD) {
            report(info);
        }
    }));
}
