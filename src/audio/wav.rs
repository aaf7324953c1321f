//! WAV headers, and uncompressed samples from WAV files and raw streams.
//!
//! In: bytes. Out: samples at the file's rate, of one channel or the mean of all, full scale ±1. The header is walked here,
//! since files from pipes carry sizes that are no sizes; the format chunk is hound's to parse. Whole frames are
//! delivered as soon as their bytes are there, and no size that a header claims is ever allocated.

use std::io::{Cursor, ErrorKind, Read};

use hound::{SampleFormat, WavReader};

use super::resample::check_rate;
use super::{Bytes, Channel};
use crate::{Error, Result};

/// Chunks before the audio data that are taken for a header; more are an endless loop.
const MAX_CHUNKS: usize = 10_000;

/// Bytes of a `fmt ` or `fact` chunk that are kept.
const MAX_KEPT: u64 = 1024;

/// Bytes behind empty audio data that are searched for audio.
const MAX_SEARCHED: u64 = 1024 * 1024;

/// Bytes read at once.
const BUFFER_LEN: usize = 64 * 1024;

/// What the header led to.
pub(super) enum Wav {
    Pcm(Pcm),
    /// A codec that needs a decoder: a header with only the chunks that matter, then the data.
    Coded {
        header: Vec<u8>,
        data: std::io::Take<Bytes>,
    },
}

/// The samples of uncompressed audio.
pub(super) struct Pcm {
    reader: Bytes,
    pub(super) rate: u32,
    pub(super) channels: u16,
    channel: Channel,
    encoding: Encoding,
    /// Bytes of audio, where the header tells.
    promised: Option<u64>,
    taken: u64,
    buffer: Vec<u8>,
    /// Bytes of an incomplete frame at the start of `buffer`.
    left_over: usize,
}

/// How one sample of one channel is stored, little endian.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Encoding {
    U8,
    S16,
    S24,
    /// 24 bits in the low end of 32.
    S24In32,
    S32,
    F32,
}

impl Wav {
    /// Reads the header, up to the first sample.
    pub(super) fn open(mut reader: Bytes, channel: Channel) -> Result<Self> {
        let mut riff = [0; 12];
        read_header(&mut reader, &mut riff)?;
        if &riff[..4] == b"RIFX" {
            return Err(Error::UnsupportedAudio("big-endian WAV (RIFX); little-endian WAV is read".into()));
        }
        let riff_len = le32(&riff[4..]);
        let (mut format, mut fact, mut data_len_64) = (Vec::new(), Vec::new(), None);
        let mut header_len = 12_u64;
        for _ in 0..MAX_CHUNKS {
            let mut chunk = [0; 8];
            read_header(&mut reader, &mut chunk)?;
            let len = le32(&chunk[4..]);
            header_len += 8;
            if &chunk[..4] == b"data" {
                if format.is_empty() {
                    return Err(Error::DamagedAudio("the WAV header has no fmt chunk before its audio data".into()));
                }
                // An unpatched header of a recorder that crashed says that there is no audio; RIFF may end here or not.
                // There may be audio all the same.
                let mut empty = false;
                let left = (u64::from(riff_len) + 8).saturating_sub(header_len);
                if len == 0 && !open_ended(riff_len) && left > 0 {
                    let mut taken = Vec::new();
                    empty = are_chunks(&mut reader, left, &mut taken)?;
                    reader = Box::new(Cursor::new(taken).chain(reader));
                }
                let data_len = match data_len_64 {
                    Some(len_64) if len == u32::MAX => Some(len_64).filter(|&len| len != 0 && len < u64::MAX >> 1),
                    _ => (empty || !open_ended(len)).then_some(u64::from(len)),
                };
                return Self::with_format(reader, &format, &fact, data_len, channel);
            }
            let padded = u64::from(len) + u64::from(len & 1);
            let kept = match &chunk[..4] {
                b"fmt " => take_some(&mut reader, len, &mut format)?,
                b"fact" => take_some(&mut reader, len, &mut fact)?,
                b"ds64" => {
                    let mut sizes = Vec::new();
                    let kept = take_some(&mut reader, len, &mut sizes)?;
                    data_len_64 = sizes.get(8..16).map(|len| u64::from(le32(len)) | u64::from(le32(&len[4..])) << 32);
                    kept
                }
                _ => 0,
            };
            skip(&mut reader, padded - kept)?;
            header_len += padded;
        }
        Err(Error::DamagedAudio(format!("the WAV header has {MAX_CHUNKS} chunks and no audio data")))
    }

    fn with_format(reader: Bytes, format: &[u8], fact: &[u8], data_len: Option<u64>, channel: Channel) -> Result<Self> {
        if format.len() < 16 {
            return Err(Error::DamagedAudio(format!("the WAV fmt chunk has {} bytes of 16", format.len())));
        }
        let (tag, channels, rate) = (le16(format), le16(&format[2..]), le32(&format[4..]));
        let (frame_len, bits) = (le16(&format[12..]), le16(&format[14..]));
        // The extensible format keeps its tag at the start of a GUID.
        let extensible = tag == 0xfffe && format.len() >= 40;
        let tag = if extensible { le16(&format[24..]) } else { tag };
        if channels == 0 {
            return Err(Error::UnsupportedAudio("WAV with 0 channels".into()));
        }
        check_rate(rate)?;
        if !matches!((tag, bits), (1, _) | (3, 32)) {
            let header = plain_header(format, fact, data_len);
            let limit = data_len.unwrap_or(u64::MAX);
            return Ok(Self::Coded { header, data: reader.take(limit) });
        }
        // Sizes that writers get wrong, and that hound is strict about, are set right: the chunk ends where its format
        // ends, and the byte rate is what the other fields say.
        let mut exact = format[..if extensible { 40 } else { 16 }].to_vec();
        exact[8..12].copy_from_slice(&rate.wrapping_mul(u32::from(frame_len)).to_le_bytes());
        if extensible {
            exact[16..18].copy_from_slice(&22_u16.to_le_bytes());
        }
        let header = plain_header(&exact, &[], Some(0));
        let spec =
            WavReader::new(header.as_slice()).map_err(|error| Error::UnsupportedAudio(format!("WAV: {error}")))?.spec();
        let width = frame_len / channels;
        let encoding = match (spec.sample_format, bits, width, frame_len % channels) {
            (SampleFormat::Int, 8, 1, 0) => Encoding::U8,
            (SampleFormat::Int, 16, 2, 0) => Encoding::S16,
            (SampleFormat::Int, 24, 3, 0) => Encoding::S24,
            (SampleFormat::Int, 24, 4, 0) => Encoding::S24In32,
            (SampleFormat::Int, 32, 4, 0) => Encoding::S32,
            (SampleFormat::Float, 32, 4, 0) => Encoding::F32,
            _ => {
                return Err(Error::UnsupportedAudio(format!(
                    "WAV with {bits} bits per sample in frames of {frame_len} bytes for {channels} channels; \
                     integers of 8, 16, 24 and 32 bits and 32-bit floats are read"
                )));
            }
        };
        Ok(Self::Pcm(Pcm::new(reader, spec.sample_rate, spec.channels, encoding, data_len, channel)))
    }
}

impl Pcm {
    /// 16-bit mono samples at 16 kHz, up to the end of the stream.
    pub(super) fn raw(reader: Bytes) -> Self {
        Self::new(reader, super::SAMPLE_RATE, 1, Encoding::S16, None, Channel::Mix)
    }

    fn new(
        reader: Bytes,
        rate: u32,
        channels: u16,
        encoding: Encoding,
        promised: Option<u64>,
        channel: Channel,
    ) -> Self {
        let frame = encoding.width() * usize::from(channels);
        let second = frame.saturating_mul(rate as usize);
        let len = (BUFFER_LEN.min(second) / frame).max(1) * frame;
        Self { reader, rate, channels, channel, encoding, promised, taken: 0, buffer: vec![0; len], left_over: 0 }
    }

    pub(super) fn duration(&self) -> Option<f64> {
        self.promised.map(|bytes| self.seconds(bytes))
    }

    /// The sample format, like "16-bit".
    pub(super) fn sample_format(&self) -> &'static str {
        match self.encoding {
            Encoding::U8 => "8-bit",
            Encoding::S16 => "16-bit",
            Encoding::S24 | Encoding::S24In32 => "24-bit",
            Encoding::S32 => "32-bit",
            Encoding::F32 => "32-bit float",
        }
    }

    /// Appends samples as soon as one frame has arrived; 0 at the end.
    pub(super) fn read(&mut self, out: &mut Vec<f32>) -> Result<usize> {
        let frame = self.frame_len();
        loop {
            let room = self.buffer.len() - self.left_over;
            let wanted = match self.promised {
                Some(promised) => room.min(usize::try_from(promised - self.taken).unwrap_or(usize::MAX)),
                None => room,
            };
            let free = &mut self.buffer[self.left_over..][..wanted];
            let n_read = match self.reader.read(free) {
                Ok(n_read) => n_read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(Error::AudioIo(error)),
            };
            if n_read == 0 {
                return self.end();
            }
            self.taken += n_read as u64;
            let filled = self.left_over + n_read;
            let whole = filled - filled % frame;
            self.encoding.append(&self.buffer[..whole], usize::from(self.channels), self.channel, out);
            self.buffer.copy_within(whole..filled, 0);
            self.left_over = filled - whole;
            if whole > 0 {
                return Ok(whole / frame);
            }
        }
    }

    fn end(&self) -> Result<usize> {
        match self.promised {
            Some(promised) if self.taken < promised => {
                Err(ends_early(self.seconds(self.taken), self.seconds(promised)))
            }
            _ => Ok(0),
        }
    }

    fn frame_len(&self) -> usize {
        self.encoding.width() * usize::from(self.channels)
    }

    fn seconds(&self, bytes: u64) -> f64 {
        (bytes / self.frame_len() as u64) as f64 / f64::from(self.rate)
    }
}

impl Encoding {
    /// Bytes.
    fn width(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::S16 => 2,
            Self::S24 => 3,
            Self::S24In32 | Self::S32 | Self::F32 => 4,
        }
    }

    /// Appends one sample per frame.
    fn append(self, bytes: &[u8], channels: usize, channel: Channel, out: &mut Vec<f32>) {
        match self {
            Self::U8 => append(bytes, channels, channel, out, |[b]: [u8; 1]| (f32::from(b) - 128.0) / 128.0),
            Self::S16 => append(bytes, channels, channel, out, |b| f32::from(i16::from_le_bytes(b)) / 32_768.0),
            Self::S24 => append(bytes, channels, channel, out, |[a, b, c]: [u8; 3]| scale_32([0, a, b, c])),
            Self::S24In32 => append(bytes, channels, channel, out, |[a, b, c, _]: [u8; 4]| scale_32([0, a, b, c])),
            Self::S32 => append(bytes, channels, channel, out, scale_32),
            Self::F32 => append(bytes, channels, channel, out, f32::from_le_bytes),
        }
    }
}

fn scale_32(bytes: [u8; 4]) -> f32 {
    (f64::from(i32::from_le_bytes(bytes)) / 2_147_483_648.0) as f32
}

fn append<const N: usize>(
    bytes: &[u8],
    channels: usize,
    channel: Channel,
    out: &mut Vec<f32>,
    decode: impl Fn([u8; N]) -> f32,
) {
    let (samples, _) = bytes.as_chunks::<N>();
    if channels == 1 {
        out.extend(samples.iter().map(|&sample| decode(sample)));
    } else {
        out.extend(samples.chunks_exact(channels).map(|frame| channel.of(frame.iter().map(|&sample| decode(sample)))));
    }
}

pub(super) fn ends_early(seconds: f64, promised: f64) -> Error {
    Error::DamagedAudio(format!("the audio ends after {seconds:.2} s, its header promises {promised:.2} s"))
}

/// Whether a size is what writers put there when they don't know it: 0, or near the largest signed or unsigned number.
fn open_ended(len: u32) -> bool {
    len == 0 || len >= 0xffff_ff00 || (0x7fff_0000..=0x8000_0100).contains(&len)
}

/// Whether the next bytes are chunks that end where `left` bytes end. `taken` gets what was read to find out.
fn are_chunks(reader: &mut impl Read, mut left: u64, taken: &mut Vec<u8>) -> Result<bool> {
    while left > 0 && (taken.len() as u64) < MAX_SEARCHED {
        let start = taken.len();
        reader.take(left.min(8)).read_to_end(taken).map_err(Error::AudioIo)?;
        let Some((name, len)) = taken[start..].split_at_checked(4).filter(|(_, len)| len.len() == 4) else {
            return Ok(false);
        };
        let len = u64::from(le32(len));
        left -= 8;
        if len > left || !name.iter().all(|byte| matches!(byte, b' '..=b'~')) {
            return Ok(false);
        }
        let padded = (len + len % 2).min(left);
        let wanted = padded.min(MAX_SEARCHED);
        if (reader.take(wanted).read_to_end(taken).map_err(Error::AudioIo)? as u64) < wanted {
            return Ok(false);
        }
        left -= padded;
    }
    Ok(true)
}

/// A WAV header with just these chunks, for a parser that shall see nothing else.
fn plain_header(format: &[u8], fact: &[u8], data_len: Option<u64>) -> Vec<u8> {
    let mut header = b"RIFF\xff\xff\xff\xffWAVE".to_vec();
    for (name, body) in [(b"fmt ", format), (b"fact", fact.get(..4).unwrap_or_default())] {
        if !body.is_empty() {
            header.extend_from_slice(name);
            header.extend_from_slice(&(body.len() as u32).to_le_bytes());
            header.extend_from_slice(body);
            header.extend_from_slice(&[0][..body.len() & 1]);
        }
    }
    let len = data_len.and_then(|len| u32::try_from(len).ok()).unwrap_or(u32::MAX);
    header.extend_from_slice(b"data");
    header.extend_from_slice(&len.to_le_bytes());
    header
}

/// Reads up to [`MAX_KEPT`] bytes of a chunk and returns their number.
fn take_some(reader: &mut impl Read, len: u32, kept: &mut Vec<u8>) -> Result<u64> {
    let wanted = u64::from(len).min(MAX_KEPT);
    kept.clear();
    let n_read = reader.take(wanted).read_to_end(kept).map_err(Error::AudioIo)? as u64;
    if n_read < wanted { Err(header_cut()) } else { Ok(wanted) }
}

fn skip(reader: &mut impl Read, len: u64) -> Result<()> {
    let n_skipped = std::io::copy(&mut reader.take(len), &mut std::io::sink()).map_err(Error::AudioIo)?;
    if n_skipped < len { Err(header_cut()) } else { Ok(()) }
}

fn read_header(reader: &mut impl Read, bytes: &mut [u8]) -> Result<()> {
    reader.read_exact(bytes).map_err(|error| match error.kind() {
        ErrorKind::UnexpectedEof => header_cut(),
        _ => Error::AudioIo(error),
    })
}

fn header_cut() -> Error {
    Error::DamagedAudio("the WAV file ends before its audio data".into())
}

fn le16(bytes: &[u8]) -> u16 {
    u16::from_le_bytes([bytes[0], bytes[1]])
}

fn le32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}
