//! The decoding of one track's packets to mono samples.
//!
//! In: packets from symphonia's demuxers. Out: samples of one channel or the mean of all, without the encoder's delay and
//! padding where the container tells them. A packet that can't be decoded becomes silence of the last packet's length.

use symphonia::core::codecs::CodecParameters;
use symphonia::core::codecs::audio::{AudioCodecParameters, AudioDecoder, AudioDecoderOptions, well_known as codecs};
use symphonia::core::errors::Error as Fault;
use symphonia::core::formats::{FormatReader, Track};
use symphonia::core::packet::Packet;
use symphonia::core::units::Duration;
use symphonia::default::get_codecs;

use super::detect::Format;
use super::mp4::Edit;
use super::opus::Opus;
use super::{Channel, SAMPLE_RATE};
use crate::{Error, Result};

/// Seconds that an edit list may cut from the start; what is more is an edit, and its audio is kept.
const MAX_EDIT_START: f64 = 1.0;

/// Samples of all channels that a header may promise per packet: decoders allocate them before they see one. The
/// longest packets of real codecs are thousands of times shorter.
const MAX_PACKET_SAMPLES: u64 = 1 << 22;

/// The decoding of one track; chained Ogg files start a new one in the middle.
pub(super) struct Stream {
    pub(super) track: u32,
    pub(super) decoder: Decoder,
    pub(super) rate: u32,
    pub(super) channels: usize,
    channel: Channel,
    /// Ticks per second of packet times, as a fraction.
    ticks: (u64, u64),
    /// Samples still to be dropped from the start.
    delay: u64,
    /// Samples before the padding, where an edit list tells.
    left: u64,
    /// What the container calls padding: dropped, unless more audio or more of it than there may be comes after.
    held: Vec<f32>,
    max_padding: usize,
    last_frames: usize,
    /// Samples of silence for packets that could not be decoded, due when one comes that can.
    silence: usize,
    pub(super) good_packets: u64,
    /// Seconds, where the header is to be believed.
    pub(super) promised: Option<f64>,
}

pub(super) enum Decoder {
    Symphonia(Box<dyn AudioDecoder>),
    Opus(Box<Opus>),
}

impl Stream {
    /// Picks the first audio track that can be decoded.
    pub(super) fn open(reader: &dyn FormatReader, format: Format, channel: Channel) -> Result<Self> {
        let mut refused = None;
        for track in reader.tracks() {
            let Some(CodecParameters::Audio(params)) = &track.codec_params else { continue };
            match Decoder::new(params) {
                Ok(decoder) => return Ok(Self::new(decoder, track, params, format, channel)),
                Err(error) => refused = refused.or(Some(error)),
            }
        }
        let unknown = reader.tracks().is_empty() || reader.tracks().iter().any(|track| track.codec_params.is_none());
        let text = if unknown { "no audio track of a known codec" } else { "no audio track" };
        Err(refused.unwrap_or_else(|| Error::UnsupportedAudio(text.into())))
    }

    fn new(decoder: Decoder, track: &Track, params: &AudioCodecParameters, format: Format, channel: Channel) -> Self {
        let rate = match decoder {
            Decoder::Opus(_) => SAMPLE_RATE,
            Decoder::Symphonia(_) => params.sample_rate.unwrap_or(SAMPLE_RATE),
        };
        let mut stream = Self {
            track: track.id,
            rate,
            channels: 0,
            channel,
            ticks: track.time_base.map_or((1, 1), |base| (base.denom.get().into(), base.numer.get().into())),
            delay: 0,
            left: u64::MAX,
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

    /// Drops what an edit list leaves out, unless that is more than an encoder needs.
    pub(super) fn cut_to(&mut self, edit: &Edit) {
        let rate = f64::from(self.rate);
        if (0.0..=MAX_EDIT_START).contains(&edit.start) {
            self.delay = self.delay.max((edit.start * rate).round() as u64);
            if edit.len > 0.0 {
                self.left = (edit.len * rate).round() as u64;
                self.promised = self.promised.map(|promised| promised.min(edit.len));
            }
        }
    }

    /// Appends the mono samples of a packet. False if it could not be decoded.
    pub(super) fn decode(&mut self, mut packet: Packet, decoded: &mut Vec<f32>, out: &mut Vec<f32>) -> bool {
        // Decoders would cut what the packet says; what is cut at the end is decided here.
        let pts = packet.pts.get();
        let mut cut_start = packet.trim_start.get();
        let mut cut_end = std::mem::take(&mut packet.trim_end).get();
        packet.trim_start = Duration::ZERO;
        let decoder = &mut self.decoder;
        let done = match guarded(|| decoder.decode(&packet, decoded)) {
            Ok((rate, channels)) => {
                if rate != self.rate {
                    // As when the header tells the rate of a whole HE-AAC stream, and only half of it can be decoded.
                    let scaled = |n: u64| (u128::from(n) * u128::from(rate) / u128::from(self.rate.max(1))) as u64;
                    self.delay = scaled(self.delay);
                    self.left = if self.left == u64::MAX { u64::MAX } else { scaled(self.left) };
                    self.rate = rate;
                    self.held.clear();
                }
                self.channels = channels;
                true
            }
            Err(_) => false,
        };
        // Opus headers tell the delay in samples, so packet times, which Matroska rounds, don't matter.
        cut_start = match self.decoder {
            Decoder::Opus(_) => 0,
            Decoder::Symphonia(_) => cut_start.max(pts.min(0).unsigned_abs()),
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
        let end = end.min(start + usize::try_from(self.left).unwrap_or(usize::MAX).min(frames));
        self.left = if self.left == u64::MAX { u64::MAX } else { self.left - (end - start) as u64 };
        let channel = self.channel;
        let mut mono =
            decoded.chunks_exact(self.channels.max(1)).map(|frame| channel.of(frame.iter().copied())).skip(start);
        if end > start || frames == start {
            out.append(&mut self.held);
        }
        out.extend(mono.by_ref().take(end - start));
        self.held.extend(mono);
        if self.held.len() > self.max_padding {
            self.left = u64::MAX;
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
    /// Replaces `out` by the interleaved samples of a packet and returns their rate and number of channels.
    fn decode(&mut self, packet: &Packet, out: &mut Vec<f32>) -> std::result::Result<(u32, usize), Fault> {
        match self {
            Self::Opus(opus) => {
                opus.decode(&packet.data, out).map_err(Fault::DecodeError)?;
                Ok((SAMPLE_RATE, opus.channels()))
            }
            Self::Symphonia(decoder) => {
                let buffer = decoder.decode(packet)?;
                out.resize(buffer.samples_interleaved(), 0.0);
                buffer.copy_to_slice_interleaved(&mut out[..]);
                Ok((buffer.spec().rate(), buffer.spec().channels().count()))
            }
        }
    }

    fn new(params: &AudioCodecParameters) -> Result<Self> {
        if params.codec == codecs::CODEC_ID_OPUS {
            return Ok(Self::Opus(Box::new(Opus::new(params.extra_data.as_deref())?)));
        }
        let frames = params.max_frames_per_packet.max(params.frames_per_block).unwrap_or(0);
        let channels = params.channels.as_ref().map_or(1, |channels| channels.count().max(1));
        if frames.saturating_mul(channels as u64) > MAX_PACKET_SAMPLES {
            return Err(Error::DamagedAudio(format!("its header claims {frames} samples per packet")));
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
                Err(unsupported_codec(name))
            }
        }
    }
}

pub(super) fn unsupported_codec(name: &str) -> Error {
    Error::UnsupportedAudio(format!(
        "an audio codec ({name}); PCM, ADPCM, MP3, AAC, ALAC, FLAC, Vorbis and Opus are read"
    ))
}

/// Runs a demuxer or decoder, whose arithmetic may trust damaged data and panic.
pub(super) fn guarded<T>(run: impl FnOnce() -> std::result::Result<T, Fault>) -> std::result::Result<T, Fault> {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run))
        .unwrap_or(Err(Fault::DecodeError("the data make no sense")))
}

pub(super) fn words(fault: &Fault) -> String {
    match fault {
        Fault::Unsupported(text) | Fault::DecodeError(text) | Fault::LimitError(text) => (*text).into(),
        fault => fault.to_string(),
    }
}
