//! Opus packets, decoded by ropus straight to 16 kHz.
//!
//! In: an Opus identification header and packets, from whatever container. Out: interleaved samples at 16 kHz. The
//! header's output gain is applied here; its pre-skip is for the caller to drop.

use ropus::{Channels, DecodeMode, Decoder};

use super::SAMPLE_RATE;
use crate::{Error, Result};

/// The rate of every time in an Opus container, RFC 7845 §4.
pub(super) const CLOCK_RATE: u32 = 48_000;

/// 120 ms, the longest packet.
const MAX_PACKET_FRAMES: usize = SAMPLE_RATE as usize * 120 / 1000;

pub(super) struct Opus {
    decoder: Decoder,
    channels: usize,
    /// Samples at the start that are no sound, at 16 kHz.
    pub(super) pre_skip: u64,
    /// Length of the last packet, which stands in for that of a lost one.
    last_frames: usize,
}

impl Opus {
    /// Reads an identification header (RFC 7845 §5.1). MP4 stores the same fields with the other byte order and
    /// version 0. A container without a header gives no pre-skip; two channels hold any packet.
    pub(super) fn new(header: Option<&[u8]>) -> Result<Self> {
        let (mut channels, mut pre_skip, mut gain) = (2, 0, 0);
        if let Some(&[version, n, skip_0, skip_1, _, _, _, _, gain_0, gain_1, family, ..]) =
            header.and_then(|header| header.strip_prefix(b"OpusHead"))
        {
            channels = n;
            (pre_skip, gain) = match version {
                0 => (u16::from_be_bytes([skip_0, skip_1]), i16::from_be_bytes([gain_0, gain_1])),
                _ => (u16::from_le_bytes([skip_0, skip_1]), i16::from_le_bytes([gain_0, gain_1])),
            };
            if !(1..=2).contains(&channels) || family > 1 {
                return Err(Error::UnsupportedAudio(format!(
                    "Opus with {channels} channels in mapping family {family}; mono and stereo are read"
                )));
            }
        }
        let layout = if channels == 1 { Channels::Mono } else { Channels::Stereo };
        let failed = |error: &dyn std::fmt::Display| Error::Backend(format!("Opus decoder: {error}"));
        let mut decoder = Decoder::new(SAMPLE_RATE, layout).map_err(|error| failed(&error))?;
        decoder.set_gain(gain.into()).map_err(|error| failed(&error))?;
        Ok(Self {
            decoder,
            channels: channels.into(),
            pre_skip: u64::from(pre_skip) * u64::from(SAMPLE_RATE) / u64::from(CLOCK_RATE),
            last_frames: SAMPLE_RATE as usize / 50,
        })
    }

    pub(super) fn channels(&self) -> usize {
        self.channels
    }

    /// Replaces `out` by the packet's interleaved samples. An empty packet says that one was lost, and is concealed.
    pub(super) fn decode(&mut self, packet: &[u8], out: &mut Vec<f32>) -> std::result::Result<(), &'static str> {
        let room = if packet.is_empty() { self.last_frames } else { MAX_PACKET_FRAMES };
        out.clear();
        out.resize(room * self.channels, 0.0);
        let decoded = self.decoder.decode_float(packet, out, DecodeMode::Normal);
        let frames = decoded.map_err(|_| "not an Opus packet")?;
        out.truncate(frames * self.channels);
        self.last_frames = frames.max(1);
        Ok(())
    }
}
