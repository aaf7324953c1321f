//! Every format but plain WAV: symphonia takes the container apart and decodes; Opus packets go to [`Opus`].
//!
//! In: bytes in a format that [`super::detect`] found. Out: mono samples at the track's rate, mean of all channels,
//! without the encoder's delay and padding where the container tells them. A packet that can't be decoded becomes
//! silence of the last packet's length, so that what follows keeps its time, and is counted for the error at the end.

use std::io::ErrorKind;

use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions, well_known as codecs};
use symphonia::core::errors::Error as Fault;
use symphonia::core::formats::probe::{Hint, Probe, ProbeOptions};
use symphonia::core::formats::{FormatOptions, FormatReader, Track};
use symphonia::core::io::{MediaSource, MediaSourceStream};
use symphonia::core::meta::MetadataOptions;
use symphonia::core::packet::Packet;
use symphonia::core::units::Duration;
use symphonia::default::{formats, get_codecs};

use super::SAMPLE_RATE;
use super::detect::Format;
use super::opus::{CLOCK_RATE, Opus};
use super::resample::check_rate;
use super::wav::{ends_early, mean};
use crate::{Error, Result};

/// Whether all bytes that the header promises were read.
pub(super) type Complete = Box<dyn Fn() -> bool + Send>;

pub(super) struct Container {
    reader: Box<dyn FormatReader>,
    format: Format,
    stream: Stream,
    /// Tells whether the file is there to its end.
    complete: Complete,
    /// Decoded while opening.
    ready: Vec<f32>,
    /// Interleaved samples of one packet.
    decoded: Vec<f32>,
    seconds: f64,
    bad_packets: u64,
    pub(super) duration: Option<f64>,
    pub(super) description: String,
}

/// The decoding of one track; chained Ogg files start a new one in the middle.
struct Stream {
    track: u32,
    decoder: Decoder,
    rate: u32,
    channels: usize,
    /// Ticks per second of packet times, as a fraction.
    ticks: (u64, u64),
    /// Samples still to be dropped from the start.
    delay: u64,
    /// What the container calls padding: dropped, unless more audio or more of it than there may be comes after.
    held: Vec<f32>,
    max_padding: usize,
    last_frames: usize,
    /// Samples of silence for packets that could not be decoded, due when one comes that can.
    silence: usize,
    good_packets: u64,
    /// Seconds, where the header is to be believed.
    promised: Option<f64>,
}

enum Decoder {
    Symphonia(Box<dyn AudioDecoder>),
    Opus(Box<Opus>),
}

impl Container {
    /// Opens the first audio track with a codec that is known, and decodes its first packet. `complete` is asked when
    /// the bytes have ended at a place where more could follow.
    pub(super) fn open(source: Box<dyn MediaSource>, format: Format, complete: Complete) -> Result<Self> {
        let seekable = source.is_seekable();
        let stream = MediaSourceStream::new(source, Default::default());
        let reader = probe_of(format)
            .probe(&Hint::new(), stream, FormatOptions::default(), MetadataOptions::default())
            .map_err(|fault| open_error(fault, format, seekable))?;
        let stream = Stream::open(reader.as_ref(), format)?;
        let duration = stream.promised.or_else(|| {
            let info = reader.media_info();
            info.time_base?.calc_duration(info.duration?).map(|time| time.as_secs_f64())
        });
        let mut container = Self {
            reader,
            format,
            stream,
            complete,
            ready: Vec::new(),
            decoded: Vec::new(),
            seconds: 0.0,
            bad_packets: 0,
            duration: duration.filter(|&seconds| seconds > 0.0),
            description: String::new(),
        };
        let mut ready = Vec::new();
        container.read(&mut ready)?;
        container.ready = ready;
        check_rate(container.stream.rate)?;
        container.description = container.describe();
        Ok(container)
    }

    /// Of the samples that the last [`Self::read`] returned.
    pub(super) fn rate(&self) -> u32 {
        self.stream.rate
    }

    /// Appends the samples of some packets; 0 at the end.
    pub(super) fn read(&mut self, out: &mut Vec<f32>) -> Result<usize> {
        if !self.ready.is_empty() {
            out.append(&mut self.ready);
            return Ok(out.len());
        }
        let before = out.len();
        while out.len() == before {
            let packet = match self.reader.next_packet() {
                Ok(Some(packet)) => packet,
                Ok(None) => return self.end(None),
                Err(Fault::ResetRequired) => {
                    self.stream = Stream::open(self.reader.as_ref(), self.format)?;
                    continue;
                }
                Err(fault) => return self.end(Some(fault)),
            };
            if packet.track_id != self.stream.track {
                continue;
            }
            // Where frames have a fixed size, symphonia takes nothing for a packet when the file is cut.
            if packet.data.is_empty() && matches!(self.format, Format::Wav | Format::Aiff | Format::Caf) {
                return self.end(None);
            }
            if !self.stream.decode(packet, &mut self.decoded, out) {
                self.bad_packets += 1;
            }
            check_rate(self.stream.rate)?;
        }
        let n = out.len() - before;
        self.seconds += n as f64 / f64::from(self.stream.rate);
        Ok(n)
    }

    fn end(&self, fault: Option<Fault>) -> Result<usize> {
        let short = self.stream.promised.filter(|&promised| self.seconds + self.tolerance() < promised);
        match fault {
            Some(Fault::IoError(error)) if error.kind() != ErrorKind::UnexpectedEof => Err(Error::AudioIo(error)),
            // At the end of a Matroska stream that can't seek, symphonia looks for one more element.
            Some(Fault::IoError(_)) if self.format == Format::Matroska && (self.complete)() => self.packets_lost(),
            Some(Fault::IoError(_)) if short.is_none() => {
                Err(Error::DamagedAudio(format!("the stream is cut off after {:.2} s", self.seconds)))
            }
            Some(Fault::IoError(_)) | None if short.is_some() => {
                Err(ends_early(self.seconds, short.unwrap_or_default()))
            }
            Some(fault) => Err(Error::DamagedAudio(format!("after {:.2} s: {}", self.seconds, words(&fault)))),
            None => self.packets_lost(),
        }
    }

    fn packets_lost(&self) -> Result<usize> {
        let all = if self.stream.good_packets == 0 { "all " } else { "" };
        match self.bad_packets {
            0 => Ok(0),
            1 => Err(Error::DamagedAudio(format!("{all}1 packet could not be decoded"))),
            n => Err(Error::DamagedAudio(format!("{all}{n} packets could not be decoded"))),
        }
    }

    /// Seconds that the stream may be shorter than its header says. Lossless formats are exact, others round.
    fn tolerance(&self) -> f64 {
        match self.format {
            Format::Flac | Format::Wav | Format::Aiff | Format::Caf => 1e-4,
            _ if self.seconds == 0.0 => 0.0,
            _ => 0.1,
        }
    }

    fn describe(&self) -> String {
        let codec = match &self.stream.decoder {
            Decoder::Opus(_) => "Opus".into(),
            Decoder::Symphonia(decoder) => codec_name(decoder.codec_info().short_name),
        };
        let name = match self.format.container() {
            Some(container) => format!("{container} ({codec})"),
            None => codec,
        };
        // Opus has no rate of its own; 48 kHz is what its users know.
        let rate = if matches!(self.stream.decoder, Decoder::Opus(_)) { CLOCK_RATE } else { self.stream.rate };
        format!("{name}, {rate} Hz, {}", channels_in_words(self.stream.channels))
    }
}

pub(super) fn channels_in_words(channels: usize) -> String {
    if channels == 1 { "1 channel".into() } else { format!("{channels} channels") }
}

impl Stream {
    /// Picks the first audio track that can be decoded.
    fn open(reader: &dyn FormatReader, format: Format) -> Result<Self> {
        let mut refused = None;
        for track in reader.tracks() {
            let Some(CodecParameters::Audio(params)) = &track.codec_params else { continue };
            match Decoder::new(params) {
                Ok(decoder) => return Ok(Self::new(decoder, track, params, format)),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let unknown = reader.tracks().is_empty() || reader.tracks().iter().any(|track| track.codec_params.is_none());
        let text = if unknown { "no audio track of a known codec" } else { "no audio track" };
        Err(refused.unwrap_or_else(|| Error::UnsupportedAudio(text.into())))
    }

    fn new(decoder: Decoder, track: &Track, params: &AudioCodecParameters, format: Format) -> Self {
        let rate = match decoder {
            Decoder::Opus(_) => SAMPLE_RATE,
            Decoder::Symphonia(_) => params.sample_rate.unwrap_or(SAMPLE_RATE),
        };
        let mut stream = Self {
            track: track.id,
            rate,
            channels: 0,
            ticks: track.time_base.map_or((1, 1), |base| (base.denom.get().into(), base.numer.get().into())),
            delay: 0,
            held: Vec::new(),
            max_padding: rate as usize,
            last_frames: 0,
            silence: 0,
            good_packets: 0,
            promised: None,
            decoder,
        };
        let seconds = match (track.num_frames, track.duration) {
            (Some(frames), _) => params.sample_rate.map(|rate| frames as f64 / f64::from(rate)),
            (None, Some(duration)) => {
                track.time_base.and_then(|base| base.calc_duration(duration)).map(|time| time.as_secs_f64())
            }
            (None, None) => None,
        };
        match format {
            // The frame count before MPEG audio tells where its padding starts, but not when files were joined.
            Format::Tagged | Format::Frames => stream.max_padding = track.padding.unwrap_or(0) as usize,
            Format::Caf => stream.delay = track.delay.unwrap_or(0).into(),
            _ => {}
        }
        if let Decoder::Opus(opus) = &stream.decoder {
            stream.delay = opus.pre_skip;
        }
        // The last time in an Ogg file is no length when the first isn't 0; Ogg tells its end by a mark. In Matroska
        // the length is that of the longest track.
        if !matches!(format, Format::Ogg | Format::Matroska) {
            stream.promised = seconds.filter(|&seconds| seconds > 0.0);
        }
        stream
    }

    /// Appends the mono samples of a packet. False if it could not be decoded.
    fn decode(&mut self, mut packet: Packet, decoded: &mut Vec<f32>, out: &mut Vec<f32>) -> bool {
        // Decoders would cut what the packet says; what is cut at the end is decided here.
        let pts = packet.pts.get();
        let mut cut_start = packet.trim_start.get();
        let mut cut_end = std::mem::take(&mut packet.trim_end).get();
        packet.trim_start = Duration::ZERO;
        let done = match &mut self.decoder {
            Decoder::Opus(opus) => {
                self.channels = opus.channels();
                cut_start = 0;
                opus.decode(&packet.data, decoded).is_ok()
            }
            Decoder::Symphonia(decoder) => match decoder.decode(&packet) {
                Ok(buffer) => {
                    if self.rate != buffer.spec().rate() {
                        self.rate = buffer.spec().rate();
                        self.held.clear();
                    }
                    self.channels = buffer.spec().channels().count();
                    decoded.resize(buffer.samples_interleaved(), 0.0);
                    buffer.copy_to_slice_interleaved(&mut decoded[..]);
                    cut_start = cut_start.max(pts.min(0).unsigned_abs());
                    true
                }
                Err(Fault::ResetRequired) => {
                    decoder.reset();
                    false
                }
                Err(_) => false,
            },
        };
        if !done {
            self.silence += self.last_frames;
        }
        if self.silence > 0 && (done || self.silence > self.rate as usize) {
            out.append(&mut self.held);
            out.extend(std::iter::repeat_n(0.0, std::mem::take(&mut self.silence)));
        }
        if !done {
            return false;
        }
        self.good_packets += 1;
        let frames = decoded.len() / self.channels.max(1);
        self.last_frames = frames;
        cut_start = self.samples(cut_start).min(frames as u64);
        cut_end = self.samples(cut_end);
        let delay = self.delay.min(frames as u64);
        self.delay -= delay;
        let start = delay.max(cut_start) as usize;
        let end = (frames as u64).saturating_sub(cut_end).max(start as u64) as usize;
        let mut mono = decoded.chunks_exact(self.channels.max(1)).map(|frame| mean(frame.iter().copied())).skip(start);
        if end > start || cut_end == 0 {
            out.append(&mut self.held);
        }
        out.extend(mono.by_ref().take(end - start));
        self.held.extend(mono);
        if self.held.len() > self.max_padding {
            out.append(&mut self.held);
        }
        true
    }

    /// A time in the packet's ticks in samples.
    fn samples(&self, ticks: u64) -> u64 {
        let (per_second, scale) = self.ticks;
        let samples = u128::from(ticks) * u128::from(self.rate) * u128::from(scale) / u128::from(per_second);
        u64::try_from(samples).unwrap_or(u64::MAX)
    }
}

impl Decoder {
    fn new(params: &AudioCodecParameters) -> Result<Self> {
        if params.codec == codecs::CODEC_ID_OPUS {
            return Ok(Self::Opus(Box::new(Opus::new(params.extra_data.as_deref())?)));
        }
        match get_codecs().make_audio_decoder(params, &AudioDecoderOptions::default()) {
            Ok(decoder) => Ok(Self::Symphonia(decoder)),
            Err(fault) if get_codecs().get_audio_decoder(params.codec).is_some() => {
                Err(Error::UnsupportedAudio(words(&fault)))
            }
            Err(_) => {
                let name = match params.codec {
                    codecs::CODEC_ID_AC3 => "AC-3",
                    codecs::CODEC_ID_EAC3 => "E-AC-3",
                    codecs::CODEC_ID_AC4 => "AC-4",
                    codecs::CODEC_ID_DCA => "DTS",
                    codecs::CODEC_ID_TRUEHD => "TrueHD",
                    codecs::CODEC_ID_WMA => "WMA",
                    codecs::CODEC_ID_SPEEX => "Speex",
                    codecs::CODEC_ID_WAVPACK => "WavPack",
                    codecs::CODEC_ID_TTA => "TTA",
                    _ => "that is not known",
                };
                Err(Error::UnsupportedAudio(format!(
                    "an audio codec ({name}); PCM, ADPCM, MP3, AAC, ALAC, FLAC, Vorbis and Opus are read"
                )))
            }
        }
    }
}

/// A prober for one format alone: damaged files of one format must not be searched for another.
fn probe_of(format: Format) -> Probe {
    let mut probe = Probe::new_with_options(&ProbeOptions { max_probe_depth: 16, ..Default::default() });
    match format {
        Format::Wav => probe.register_format::<formats::WavReader<'_>>(),
        Format::Tagged | Format::Frames => {
            probe.register_format::<formats::AdtsReader<'_>>();
            probe.register_format::<formats::MpaReader<'_>>();
        }
        Format::Flac => probe.register_format::<formats::FlacReader<'_>>(),
        Format::Ogg => probe.register_format::<formats::OggReader<'_>>(),
        Format::Mp4 => probe.register_format::<formats::IsoMp4Reader<'_>>(),
        Format::Aiff => probe.register_format::<formats::AiffReader<'_>>(),
        Format::Caf => probe.register_format::<formats::CafReader<'_>>(),
        Format::Matroska => probe.register_format::<formats::MkvReader<'_>>(),
    }
    probe
}

fn open_error(fault: Fault, format: Format, seekable: bool) -> Error {
    let name = format.container().unwrap_or("audio");
    match fault {
        Fault::IoError(error) if error.kind() != ErrorKind::UnexpectedEof => Error::AudioIo(error),
        Fault::Unsupported(text) if text.contains("moov") && seekable => {
            Error::DamagedAudio("the MP4 file has no index (moov); it is cut off, or was never finished".into())
        }
        Fault::IoError(_) if format == Format::Caf && !seekable => {
            Error::UnsupportedAudio("a CAF stream; pass it as a file, not through a pipe".into())
        }
        Fault::IoError(_) => Error::DamagedAudio(format!("the {name} file ends before its audio data")),
        Fault::Unsupported(text) if text.contains("moov") => Error::UnsupportedAudio(
            "an MP4 stream with its index (moov) at the end; pass it as a file, not through a pipe".into(),
        ),
        Fault::Unsupported(text) if text.contains("no suitable format reader") => {
            Error::DamagedAudio(format!("a signature of {name}, but nothing of that format after it"))
        }
        Fault::Unsupported(_) => Error::UnsupportedAudio(words(&fault)),
        fault => Error::DamagedAudio(words(&fault)),
    }
}

fn words(fault: &Fault) -> String {
    match fault {
        Fault::Unsupported(text) | Fault::DecodeError(text) | Fault::LimitError(text) => (*text).into(),
        fault => fault.to_string(),
    }
}

/// A codec's name as people write it.
fn codec_name(short: &str) -> String {
    match short {
        "vorbis" => "Vorbis".into(),
        "mp1" | "mp2" | "mp3" | "aac" | "alac" | "flac" => short.to_uppercase(),
        short => short.replace('_', " "),
    }
}
