//! [`AudioReader`]: mono 16 kHz samples of any audio file or stream.
//!
//! In: a path or a byte stream. Out: samples, a piece at a time, in constant memory. The samples depend on the bytes
//! alone, not on how they arrived; all that can be decoded is delivered before an error is.

use std::fs::File;
use std::io::{Cursor, ErrorKind, Read, Seek};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use symphonia::core::io::ReadOnlySource;

use super::container::{Complete, Container, channels_in_words};
use super::detect::{self, Format, Start};
use super::mp4;
use super::resample::Resampler;
use super::track::unsupported_codec;
use super::wav::{Pcm, Wav};
use super::{Bytes, Channel, check_samples};
use crate::{Error, Result};

/// Mono 16 kHz samples of any audio file or stream, decoded incrementally. Channels are averaged, unless one is asked
/// for. A sample
/// that is no sound, like NaN, ends the audio: see [`check_samples`].
///
/// WAV (8 to 32-bit integers, floats, µ-law, A-law, ADPCM), MP3, MP2, AAC, FLAC, Ogg (Vorbis, Opus, FLAC), MP4 and M4A
/// (AAC, ALAC, Opus), AIFF, CAF, Matroska and WebM are read, at any rate from 1 to 768 kHz.
///
/// All but two are read from streams as they come. CAF, and MP4 with its index (moov) at the end, need to seek: such a
/// stream is copied, up to its end, to a file without a name in the directory for temporary files first.
///
/// ```no_run
/// # fn main() -> voxtral::Result<()> {
/// let mut reader = voxtral::audio::AudioReader::open("speech.mp3".as_ref())?;
/// let mut samples = Vec::new();
/// while reader.read(&mut samples)? > 0 {}
/// # Ok(())
/// # }
/// ```
pub struct AudioReader {
    source: Source,
    resampler: Resampler,
    /// Samples at the source's rate.
    block: Vec<f32>,
    /// Samples that the source gave before `block`.
    n_before: u64,
    end: End,
    description: String,
}

enum Source {
    Pcm(Box<Pcm>),
    Container(Box<Container>),
}

/// What is left to return once the source has ended.
enum End {
    NotYet,
    Error(Error),
    Reached,
}

impl AudioReader {
    /// Opens a file; its format is decided by its content.
    ///
    /// # Errors
    /// [`Error::Io`] if the file can't be read, [`Error::UnknownAudio`], [`Error::UnsupportedAudio`] or
    /// [`Error::DamagedAudio`] if its header or the first packets show that it can't be decoded.
    pub fn open(path: &Path) -> Result<Self> {
        Self::open_channel(path, Channel::Mix)
    }

    /// Opens a file, of which one channel is read, or the mean of all.
    ///
    /// # Errors
    /// As for [`Self::open`]; [`Error::UnsupportedAudio`] if there is no such channel.
    pub fn open_channel(path: &Path, channel: Channel) -> Result<Self> {
        let io = |error| Error::Io { path: path.into(), error };
        let mut file = File::open(path).map_err(io)?;
        let kind = file.metadata().map_err(io)?.file_type();
        if kind.is_dir() {
            return Err(io(ErrorKind::IsADirectory.into()));
        }
        let head = read_head(&mut file, detect::SIGNATURE_LEN).map_err(io)?;
        let format = detect::by_signature(&head);
        if let Some(format) = format {
            if kind.is_file() {
                file.rewind().map_err(io)?;
                return Self::with_format(Input::File(file), format, channel);
            }
            return Self::with_format(Input::Stream(Box::new(Cursor::new(head).chain(file))), format, channel);
        }
        // No signature: MPEG frames, or nothing known.
        let bytes = Box::new(Cursor::new(head).chain(file));
        Self::frames(bytes, channel).map_err(|error| match error {
            Error::AudioIo(error) => io(error),
            error => error,
        })
    }

    /// Reads an open file from where it is, like standard input that was redirected; what it holds is decided as in
    /// [`Self::from_stream`].
    ///
    /// # Errors
    /// As for [`Self::from_stream`].
    pub fn from_file(mut file: File, channel: Channel) -> Result<Self> {
        // Formats that seek count from the first byte of the file.
        if file.stream_position().map_err(Error::AudioIo)? != 0 {
            return Self::from_stream(file, channel);
        }
        let head = read_head(&mut file, detect::SIGNATURE_LEN).map_err(Error::AudioIo)?;
        file.rewind().map_err(Error::AudioIo)?;
        match detect::by_signature(&head) {
            Some(format) => Self::with_format(Input::File(file), format, channel),
            None => Self::from_stream(file, channel),
        }
    }

    /// Reads a stream that can't seek, like standard input: a known format if it starts with its signature, MPEG audio
    /// or ADTS if it starts with several frames, else raw signed 16-bit little-endian samples, 16 kHz, mono.
    ///
    /// # Errors
    /// As for [`Self::open`], also for signatures of formats that can't be read; [`Error::AudioIo`] if the stream
    /// can't be read.
    pub fn from_stream(mut reader: impl Read + Send + Sync + 'static, channel: Channel) -> Result<Self> {
        let mut head = read_head(&mut reader, detect::SIGNATURE_LEN).map_err(Error::AudioIo)?;
        let mut format = detect::by_signature(&head);
        while format.is_none() {
            match detect::judge_start(&head) {
                Start::Frames => format = Some(Format::Frames),
                Start::Refused(error) => return Err(error),
                Start::Unknown => break,
                Start::Needs(len) => {
                    let more = read_head(&mut reader, len.saturating_sub(head.len())).map_err(Error::AudioIo)?;
                    head.extend_from_slice(&more);
                    if head.len() < len {
                        break;
                    }
                }
            }
        }
        let bytes = Cursor::new(head).chain(reader);
        match format {
            Some(format) => Self::with_format(Input::Stream(Box::new(bytes)), format, channel),
            None => Self::checked(Self::raw(bytes), channel),
        }
    }

    /// Raw signed 16-bit little-endian samples, 16 kHz, mono, whatever the first bytes look like.
    pub fn raw(reader: impl Read + Send + Sync + 'static) -> Self {
        let source = Source::Pcm(Box::new(Pcm::raw(Box::new(reader))));
        Self {
            resampler: Resampler::passing(),
            source,
            block: Vec::new(),
            n_before: 0,
            end: End::NotYet,
            description: "raw, 16000 Hz, 1 channel, 16-bit".into(),
        }
    }

    fn with_format(input: Input, format: Format, channel: Channel) -> Result<Self> {
        let (source, description) = match format {
            Format::Tagged => return Self::tagged(input.into_bytes(), channel),
            Format::Wav => match Wav::open(input.into_bytes(), channel)? {
                Wav::Pcm(pcm) => {
                    let channels = channels_in_words(pcm.channels.into());
                    let description = format!("WAV, {} Hz, {channels}, {}", pcm.rate, pcm.sample_format());
                    (Source::Pcm(Box::new(pcm)), description)
                }
                Wav::Coded { header, data } => {
                    Source::stream(Box::new(Cursor::new(header).chain(data)), format, channel)?
                }
            },
            Format::Ogg => {
                let (head, input) = input.peek(detect::OGG_HEADER_LEN).map_err(Error::AudioIo)?;
                // The demuxer passes over what it does not know.
                Source::open(input, format, channel)
                    .map_err(|error| if detect::is_speex(&head) { unsupported_codec("Speex") } else { error })?
            }
            _ => Source::open(input, format, channel)?,
        };
        let resampler = Resampler::new(source.rate())?;
        let reader = Self { source, resampler, block: Vec::new(), n_before: 0, end: End::NotYet, description };
        Self::checked(reader, channel)
    }

    /// The reader, if it has the channel.
    fn checked(reader: Self, channel: Channel) -> Result<Self> {
        let n = reader.n_channels();
        match channel {
            Channel::Only(i) if i >= n => {
                let there = channels_in_words(n);
                Err(Error::UnsupportedAudio(format!("channel {} of audio with {there}", i + 1)))
            }
            _ => Ok(reader),
        }
    }

    /// Skips ID3v2 tags, and opens what they belong to.
    fn tagged(mut bytes: Bytes, channel: Channel) -> Result<Self> {
        loop {
            let header = read_head(&mut bytes, detect::ID3_HEADER_LEN).map_err(Error::AudioIo)?;
            let tag_len = header.as_slice().try_into().ok().and_then(detect::id3_len);
            let Some(tag_len) = tag_len else {
                return Self::frames(Box::new(Cursor::new(header).chain(bytes)), channel);
            };
            let skipped = std::io::copy(&mut (&mut bytes).take(tag_len), &mut std::io::sink());
            if skipped.map_err(Error::AudioIo)? < tag_len {
                return Err(Error::DamagedAudio("the file ends within its ID3 tag".into()));
            }
        }
    }

    /// Opens MPEG audio, ADTS, or tagged FLAC, not as a file that can seek: of that, symphonia would guess the length
    /// from the first frame's bit rate, and cut the audio there.
    fn frames(mut bytes: Bytes, channel: Channel) -> Result<Self> {
        let mut head = read_head(&mut bytes, detect::SCAN_LEN).map_err(Error::AudioIo)?;
        // RIFF may hold MP3.
        if let Some(error) = detect::unsupported(&head).filter(|_| !head.starts_with(b"RIFF")) {
            return Err(error);
        }
        let (format, start) = match detect::by_signature(&head) {
            Some(format @ Format::Flac) => (format, 0),
            _ => match detect::frames_start(&head, head.len() < detect::SCAN_LEN) {
                Some(start) => (Format::Frames, start),
                None => return Err(Error::UnknownAudio(detect::describe_unknown(&head))),
            },
        };
        let head = head.split_off(start);
        Self::with_format(Input::Stream(Box::new(Cursor::new(head).chain(bytes))), format, channel)
    }

    /// Appends the next samples, at most about a second, and returns their number; 0 at the end. Of a live stream
    /// without a container, returns what has arrived.
    ///
    /// # Errors
    /// [`Error::DamagedAudio`] or [`Error::AudioIo`], once all samples that could be decoded were delivered; then 0.
    /// [`Error::InvalidSample`], once all samples before that one were; its index counts at the recording's own rate.
    pub fn read(&mut self, out: &mut Vec<f32>) -> Result<usize> {
        let before = out.len();
        while out.len() == before {
            match std::mem::replace(&mut self.end, End::Reached) {
                End::NotYet => self.end = self.step(out),
                End::Error(error) => return Err(error),
                End::Reached => break,
            }
        }
        Ok(out.len() - before)
    }

    /// Takes one block from the source through the resampler.
    fn step(&mut self, out: &mut Vec<f32>) -> End {
        self.block.clear();
        let n_read = self.source.read(&mut self.block);
        // Before the resampler, which would spread a bad sample, or panic.
        let checked = check_samples(&self.block, self.n_before);
        if let Err(Error::InvalidSample { index, .. }) = checked {
            self.block.truncate((index - self.n_before) as usize);
        }
        self.n_before += self.block.len() as u64;
        let resampled = if n_read.is_ok() && !self.block.is_empty() { self.resample(out) } else { Ok(()) };
        let end = match (n_read, checked) {
            (Err(error), _) | (_, Err(error)) => End::Error(error),
            (Ok(0), _) => End::Reached,
            _ => return resampled.map_or_else(End::Error, |()| End::NotYet),
        };
        resampled.and_then(|()| self.resampler.finish(out)).map_or_else(End::Error, |()| end)
    }

    fn resample(&mut self, out: &mut Vec<f32>) -> Result<()> {
        if self.source.rate() != self.resampler.rate() {
            self.resampler.finish(out)?;
            self.resampler = Resampler::new(self.source.rate())?;
        }
        self.resampler.push(&self.block, out)
    }

    /// How many channels the recording has; streams may change theirs.
    pub fn n_channels(&self) -> usize {
        match &self.source {
            Source::Pcm(pcm) => pcm.channels.into(),
            Source::Container(container) => container.channels(),
        }
    }

    /// Seconds, where the container tells. A claim, not a measurement.
    pub fn duration(&self) -> Option<f64> {
        match &self.source {
            Source::Pcm(pcm) => pcm.duration(),
            Source::Container(container) => container.duration,
        }
    }

    /// The format in words, like `WAV, 44100 Hz, 2 channels, 16-bit`.
    pub fn description(&self) -> &str {
        &self.description
    }
}

impl std::fmt::Debug for AudioReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AudioReader").field("description", &self.description).finish_non_exhaustive()
    }
}

impl Source {
    fn container(container: Container) -> (Self, String) {
        let description = container.description.clone();
        (Self::Container(Box::new(container)), description)
    }

    /// A file that can seek. A file that was cut off may fail for what is missing at its end; read from the start, it
    /// still gives what is there.
    fn file(mut file: File, format: Format, channel: Channel) -> Result<(Self, String)> {
        let edits = match format {
            Format::Mp4 => mp4::edits_of_file(&mut file).map_err(Error::AudioIo)?,
            _ => Vec::new(),
        };
        let again = file.try_clone();
        let seekable = Container::open(Box::new(file), format, &edits, Box::new(|| true), channel);
        match (seekable, again) {
            (Ok(container), _) => Ok(Self::container(container)),
            (Err(error), Err(_)) => Err(error),
            (Err(error), Ok(mut file)) => {
                file.rewind().map_err(Error::AudioIo)?;
                Self::stream(Box::new(file), format, channel).map_err(|_| error)
            }
        }
    }

    fn open(input: Input, format: Format, channel: Channel) -> Result<(Self, String)> {
        let mut bytes = match input {
            Input::File(file) => return Self::file(file, format, channel),
            Input::Stream(bytes) => bytes,
        };
        let needs_seeking = match format {
            Format::Caf => true,
            Format::Mp4 => {
                let mut taken = Vec::new();
                let edits = mp4::edits_of_stream(&mut bytes, &mut taken).map_err(Error::AudioIo)?;
                bytes = Box::new(Cursor::new(taken).chain(bytes));
                edits.is_none()
            }
            _ => false,
        };
        if needs_seeking { Self::file(spooled(bytes)?, format, channel) } else { Self::stream(bytes, format, channel) }
    }

    /// A stream that is read as it comes.
    fn stream(mut bytes: Bytes, format: Format, channel: Channel) -> Result<(Self, String)> {
        let mut complete: Complete = Box::new(|| true);
        let mut edits = Vec::new();
        if format == Format::Mp4 {
            let mut taken = Vec::new();
            edits = mp4::edits_of_stream(&mut bytes, &mut taken).map_err(Error::AudioIo)?.unwrap_or_default();
            bytes = Box::new(Cursor::new(taken).chain(bytes));
        }
        if format == Format::Matroska {
            let head = read_head(&mut bytes, detect::MATROSKA_HEADER_LEN).map_err(Error::AudioIo)?;
            let len = detect::matroska_len(&head);
            let counted = Counted { bytes: Cursor::new(head).chain(bytes), count: Arc::default() };
            let count = counted.count.clone();
            complete = Box::new(move || len.is_none_or(|len| len <= count.load(Ordering::Relaxed)));
            bytes = Box::new(counted);
        }
        Container::open(Box::new(ReadOnlySource::new(bytes)), format, &edits, complete, channel).map(Self::container)
    }

    fn rate(&self) -> u32 {
        match self {
            Self::Pcm(pcm) => pcm.rate,
            Self::Container(container) => container.rate(),
        }
    }

    fn read(&mut self, out: &mut Vec<f32>) -> Result<usize> {
        match self {
            Self::Pcm(pcm) => pcm.read(out),
            Self::Container(container) => container.read(out),
        }
    }
}

/// Where bytes come from, at the first byte of the format.
enum Input {
    /// Can seek.
    File(File),
    Stream(Bytes),
}

impl Input {
    /// The first bytes, and the input as it was before.
    fn peek(self, len: usize) -> std::io::Result<(Vec<u8>, Self)> {
        match self {
            Self::File(mut file) => {
                let head = read_head(&mut file, len)?;
                file.rewind()?;
                Ok((head, Self::File(file)))
            }
            Self::Stream(mut bytes) => {
                let head = read_head(&mut bytes, len)?;
                let again = Cursor::new(head.clone()).chain(bytes);
                Ok((head, Self::Stream(Box::new(again))))
            }
        }
    }

    fn into_bytes(self) -> Bytes {
        match self {
            Self::File(file) => Box::new(file),
            Self::Stream(bytes) => bytes,
        }
    }
}

/// Copies a stream to a temporary file without a name, which is gone once it is closed.
fn spooled(mut bytes: Bytes) -> Result<File> {
    let mut copy = || -> std::io::Result<File> {
        let mut file = tempfile::tempfile()?;
        std::io::copy(&mut bytes, &mut file)?;
        file.rewind()?;
        Ok(file)
    };
    copy().map_err(|error| {
        let text = format!("copying it to a temporary file in {}: {error}", std::env::temp_dir().display());
        Error::AudioIo(std::io::Error::new(error.kind(), text))
    })
}

/// Counts the bytes that were read.
struct Counted<R> {
    bytes: R,
    count: Arc<AtomicU64>,
}

impl<R: Read> Read for Counted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n_read = self.bytes.read(buffer)?;
        self.count.fetch_add(n_read as u64, Ordering::Relaxed);
        Ok(n_read)
    }
}

/// Reads `len` bytes, or all if there are fewer. An error after some bytes is for the next read to report.
fn read_head(reader: &mut impl Read, len: usize) -> std::io::Result<Vec<u8>> {
    let mut head = Vec::new();
    match reader.take(len as u64).read_to_end(&mut head) {
        Err(error) if head.is_empty() => Err(error),
        _ => Ok(head),
    }
}
