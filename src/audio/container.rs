//! Every format but plain WAV: symphonia takes the container apart, [`super::track`] decodes what is in it.
//!
//! In: bytes in a format that [`super::detect`] found. Out: mono samples at the track's rate, and at the end an error
//! if the file ended before its header says, or packets could not be decoded.

use std::io::ErrorKind;

use symphonia::core::errors::Error as Fault;
use symphonia::core::formats::probe::{Hint, Probe, ProbeOptions};
use symphonia::core::formats::{FormatOptions, FormatReader};
use symphonia::core::io::{MediaSource, MediaSourceStream};
use symphonia::core::meta::MetadataOptions;
use symphonia::default::formats;

use super::Channel;
use super::detect::Format;
use super::mp4::Edit;
use super::opus::CLOCK_RATE;
use super::resample::check_rate;
use super::track::{Decoder, Stream, guarded, words};
use super::wav::ends_early;
use crate::{Error, Result};

/// Whether all bytes that the header promises were read.
pub(super) type Complete = Box<dyn Fn() -> bool + Send>;

pub(super) struct Container {
    reader: Box<dyn FormatReader>,
    format: Format,
    channel: Channel,
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

impl Container {
    /// Opens the first audio track with a codec that is known, and decodes its first packet. `complete` is asked when
    /// the bytes have ended at a place where more could follow.
    pub(super) fn open(
        source: Box<dyn MediaSource>,
        format: Format,
        edits: &[Edit],
        complete: Complete,
        channel: Channel,
    ) -> Result<Self> {
        let seekable = source.is_seekable();
        let stream = MediaSourceStream::new(source, Default::default());
        let probe = probe_of(format);
        let reader =
            guarded(|| probe.probe(&Hint::new(), stream, FormatOptions::default(), MetadataOptions::default()))
                .map_err(|fault| open_error(fault, format, seekable))?;
        let mut stream = Stream::open(reader.as_ref(), format, channel)?;
        if let Some(edit) = edits.iter().find(|edit| edit.track == stream.track) {
            stream.cut_to(edit);
        }
        let duration = stream.promised.or_else(|| {
            let info = reader.media_info();
            info.time_base?.calc_duration(info.duration?).map(|time| time.as_secs_f64())
        });
        let mut container = Self {
            reader,
            format,
            channel,
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

    /// How many channels it has now.
    pub(super) fn channels(&self) -> usize {
        self.stream.channels
    }

    /// Of the samples that the last [`Self::read`] returned.
    pub(super) fn rate(&self) -> u32 {
        self.stream.rate
    }

    /// Appends the samples of some packets; 0 at the end.
    pub(super) fn read(&mut self, out: &mut Vec<f32>) -> Result<usize> {
        if !self.ready.is_empty() {
            let n = self.ready.len();
            out.append(&mut self.ready);
            return Ok(n);
        }
        let before = out.len();
        while out.len() == before {
            let packet = match guarded(|| self.reader.next_packet()) {
                Ok(Some(packet)) => packet,
                Ok(None) => return self.end(None),
                Err(Fault::ResetRequired) => {
                    self.stream = Stream::open(self.reader.as_ref(), self.format, self.channel)?;
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

/// A codec's name as people write it.
fn codec_name(short: &str) -> String {
    match short {
        "vorbis" => "Vorbis".into(),
        "mp1" | "mp2" | "mp3" | "aac" | "alac" | "flac" => short.to_uppercase(),
        short => short.replace('_', " "),
    }
}
