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
use super::detect::{self, Format};
use super::mp4;
use super::resample::Resampler;
use super::wav::{Pcm, Wav};
use crate::{Error, Result};

/// Any byte stream.
type Bytes = Box<dyn Read + Send + Sync>;

/// Mono 16 kHz samples of any audio file or stream, decoded incrementally. Channels are averaged; samples are not
/// checked for their range.
///
/// WAV (8 to 32-bit integers, floats, µ-law, A-law, ADPCM), MP3, MP2, AAC, FLAC, Ogg (Vorbis, Opus, FLAC), MP4 and M4A
/// (AAC, ALAC, Opus), AIFF, CAF, Matroska and WebM are read, at any rate from 1 to 768 kHz.
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
    end: End,
    description: String,
}

enum Source {
    Pcm(Box<Pcm<Bytes>>),
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
                return Self::with_format(Input::File(file), format);
            }
            return Self::with_format(Input::Stream(Box::new(Cursor::new(head).chain(file))), format);
        }
        // No signature: MPEG frames, or nothing known.
        let bytes = Box::new(Cursor::new(head).chain(file));
        Self::frames(bytes).map_err(|error| match error {
            Error::AudioIo(error) => io(error),
            error => error,
        })
    }

    /// Reads a stream that can't seek, like standard input: a known format if it starts with its signature, else raw
    /// signed 16-bit little-endian samples, 16 kHz, mono. MP3 without an ID3 tag has no signature.
    ///
    /// # Errors
    /// As for [`Self::open`]; [`Error::AudioIo`] if the stream can't be read.
    pub fn from_stream(mut reader: impl Read + Send + Sync + 'static) -> Result<Self> {
        let head = read_head(&mut reader, detect::SIGNATURE_LEN).map_err(Error::AudioIo)?;
        let format = detect::by_signature(&head);
        let bytes = Cursor::new(head).chain(reader);
        match format {
            Some(format) => Self::with_format(Input::Stream(Box::new(bytes)), format),
            None => Ok(Self::raw(bytes)),
        }
    }

    /// Raw signed 16-bit little-endian samples, 16 kHz, mono, whatever the first bytes look like.
    pub fn raw(reader: impl Read + Send + Sync + 'static) -> Self {
        let source = Source::Pcm(Box::new(Pcm::raw(Box::new(reader))));
        Self {
            resampler: Resampler::passing(),
            source,
            block: Vec::new(),
            end: End::NotYet,
            description: "raw, 16000 Hz, 1 channel, 16-bit".into(),
        }
    }

    fn with_format(input: Input, format: Format) -> Result<Self> {
        let (source, description) = match format {
            Format::Tagged => return Self::tagged(input.into_bytes()),
            Format::Wav => match Wav::open(input.into_bytes())? {
                Wav::Pcm(pcm) => {
                    let channels = channels_in_words(pcm.channels.into());
                    let description = format!("WAV, {} Hz, {channels}, {}", pcm.rate, pcm.sample_format());
                    (Source::Pcm(Box::new(pcm)), description)
                }
                Wav::Coded { header, data } => Source::stream(Box::new(Cursor::new(header).chain(data)), format)?,
            },
            _ => match input {
                Input::Stream(bytes) => Source::stream(bytes, format)?,
                Input::File(file) => Source::file(file, format)?,
            },
        };
        let resampler = Resampler::new(source.rate())?;
        Ok(Self { source, resampler, block: Vec::new(), end: End::NotYet, description })
    }

    /// Skips ID3v2 tags, and opens what they belong to.
    fn tagged(mut bytes: Bytes) -> Result<Self> {
        loop {
            let header = read_head(&mut bytes, detect::ID3_HEADER_LEN).map_err(Error::AudioIo)?;
            let tag_len = header.as_slice().try_into().ok().and_then(detect::id3_len);
            let Some(tag_len) = tag_len else {
                return Self::frames(Box::new(Cursor::new(header).chain(bytes)));
            };
            let skipped = std::io::copy(&mut (&mut bytes).take(tag_len), &mut std::io::sink());
            if skipped.map_err(Error::AudioIo)? < tag_len {
                return Err(Error::DamagedAudio("the file ends within its ID3 tag".into()));
            }
        }
    }

    /// Opens MPEG audio, ADTS, or tagged FLAC, not as a file that can seek: of that, symphonia would guess the length
    /// from the first frame's bit rate, and cut the audio there.
    fn frames(mut bytes: Bytes) -> Result<Self> {
        let mut head = read_head(&mut bytes, detect::SCAN_LEN).map_err(Error::AudioIo)?;
        let (format, start) = match detect::by_signature(&head) {
            Some(format @ Format::Flac) => (format, 0),
            _ => match detect::frames_start(&head, head.len() < detect::SCAN_LEN) {
                Some(start) => (Format::Frames, start),
                None => return Err(Error::UnknownAudio(detect::describe_unknown(&head))),
            },
        };
        let head = head.split_off(start);
        Self::with_format(Input::Stream(Box::new(Cursor::new(head).chain(bytes))), format)
    }

    /// Appends the next samples, at most about a second, and returns their number; 0 at the end. Of a live stream
    /// without a container, returns what has arrived.
    ///
    /// # Errors
    /// [`Error::DamagedAudio`] or [`Error::AudioIo`], once all samples that could be decoded were delivered; then 0.
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
        let resampled = match &n_read {
            Ok(1..) => self.resample(out),
            _ => self.resampler.finish(out),
        };
        match (n_read, resampled) {
            (Err(error), _) | (Ok(_), Err(error)) => End::Error(error),
            (Ok(0), Ok(())) => End::Reached,
            (Ok(_), Ok(())) => End::NotYet,
        }
    }

    fn resample(&mut self, out: &mut Vec<f32>) -> Result<()> {
        if self.source.rate() != self.resampler.rate() {
            self.resampler.finish(out)?;
            self.resampler = Resampler::new(self.source.rate())?;
        }
        self.resampler.push(&self.block, out)
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
    fn file(mut file: File, format: Format) -> Result<(Self, String)> {
        let edits = match format {
            Format::Mp4 => mp4::edits_of_file(&mut file).map_err(Error::AudioIo)?,
            _ => Vec::new(),
        };
        let again = file.try_clone();
        let seekable = Container::open(Box::new(file), format, &edits, Box::new(|| true));
        match (seekable, again) {
            (Ok(container), _) => Ok(Self::container(container)),
            (Err(error), Err(_)) => Err(error),
            (Err(error), Ok(mut file)) => {
                file.rewind().map_err(Error::AudioIo)?;
                Self::stream(Box::new(file), format).map_err(|_| error)
            }
        }
    }

    fn stream(mut bytes: Bytes, format: Format) -> Result<(Self, String)> {
        let mut complete: Complete = Box::new(|| true);
        let mut edits = Vec::new();
        if format == Format::Mp4 {
            let mut taken = Vec::new();
            edits = mp4::edits_of_stream(&mut bytes, &mut taken).map_err(Error::AudioIo)?;
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
        Container::open(Box::new(ReadOnlySource::new(bytes)), format, &edits, complete).map(Self::container)
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
    fn into_bytes(self) -> Bytes {
        match self {
            Self::File(file) => Box::new(file),
            Self::Stream(bytes) => bytes,
        }
    }
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
