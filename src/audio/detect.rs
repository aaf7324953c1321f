//! Which format the first bytes of a file or stream are in.
//!
//! In: the first bytes. Out: a [`Format`], or words for what they are instead. Formats with a signature need
//! [`SIGNATURE_LEN`] bytes. MPEG audio and ADTS have none, only frame headers that random bytes imitate once in a few
//! thousand, so they count as found when several frames follow one another without a gap.

use crate::Error;

/// Bytes that [`by_signature`] wants to see.
pub(super) const SIGNATURE_LEN: usize = 12;

/// Bytes that [`frames_start`] wants to see.
pub(super) const SCAN_LEN: usize = 64 * 1024;

/// Bytes that [`is_speex`] wants to see.
pub(super) const OGG_HEADER_LEN: usize = 27 + 255 + 8;

/// Whether the first packet of an Ogg file is the header of Speex.
pub(super) fn is_speex(head: &[u8]) -> bool {
    let packet = head.get(26).and_then(|&segments| head.get(27 + usize::from(segments)..));
    packet.is_some_and(|packet| packet.starts_with(b"Speex   "))
}

/// Bytes that [`id3_len`] wants to see.
pub(super) const ID3_HEADER_LEN: usize = 10;

/// Frames in a row that prove an MPEG stream that starts after something else, like the end of a cut frame.
const PROOF_FRAMES: usize = 4;

/// Frames in a row that prove an MPEG stream at the very first byte.
const PROOF_FRAMES_AT_START: usize = 2;

/// Bytes that tell the length of a frame.
const FRAME_HEADER_LEN: usize = 6;

/// MPEG-TS: the first byte of every packet, the length of packets, and how many in a row prove a stream.
const TS_SYNC: u8 = 0x47;
const TS_PACKET_LEN: usize = 188;
const TS_PACKETS: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    /// RIFF, RF64, BW64 or RIFX, with a WAVE inside.
    Wav,
    /// An ID3v2 tag: MPEG audio, ADTS or FLAC after it.
    Tagged,
    /// MPEG audio layer 1, 2 or 3, or AAC in ADTS, without a tag.
    Frames,
    Flac,
    Ogg,
    Mp4,
    Aiff,
    Caf,
    Matroska,
}

impl Format {
    /// The container's name for messages; of bare streams, the codec's name says it all.
    pub(super) fn container(self) -> Option<&'static str> {
        match self {
            Self::Wav => Some("WAV"),
            Self::Ogg => Some("Ogg"),
            Self::Mp4 => Some("MP4"),
            Self::Aiff => Some("AIFF"),
            Self::Caf => Some("CAF"),
            Self::Matroska => Some("Matroska"),
            Self::Tagged | Self::Frames | Self::Flac => None,
        }
    }
}

/// The format that these first bytes announce.
pub(super) fn by_signature(head: &[u8]) -> Option<Format> {
    let at = |offset: usize, bytes: &[u8]| head.get(offset..).is_some_and(|rest| rest.starts_with(bytes));
    let any = |offset: usize, kinds: &[&[u8]]| kinds.iter().any(|kind| at(offset, kind));
    if any(0, &[b"RIFF", b"RIFX", b"RF64", b"BW64"]) && at(8, b"WAVE") {
        Some(Format::Wav)
    } else if at(0, b"ID3") && head.get(3).is_some_and(|&version| version < 0x10) {
        Some(Format::Tagged)
    } else if at(0, b"fLaC") {
        Some(Format::Flac)
    } else if at(0, b"OggS") {
        Some(Format::Ogg)
    } else if at(4, b"ftyp") {
        Some(Format::Mp4)
    } else if at(0, b"FORM") && any(8, &[b"AIFF", b"AIFC"]) {
        Some(Format::Aiff)
    } else if at(0, b"caff") {
        Some(Format::Caf)
    } else if at(0, &[0x1a, 0x45, 0xdf, 0xa3]) {
        Some(Format::Matroska)
    } else {
        None
    }
}

/// The bytes of an ID3v2 tag after its first [`ID3_HEADER_LEN`] bytes.
pub(super) fn id3_len(header: &[u8; ID3_HEADER_LEN]) -> Option<u64> {
    let [b'I', b'D', b'3', _, _, flags, size @ ..] = header else { return None };
    let footer = if flags & 0x10 != 0 { 10 } else { 0 };
    Some(size.iter().fold(0, |len, byte| len << 7 | u64::from(byte & 0x7f)) + footer)
}

/// Bytes that [`matroska_len`] wants to see.
pub(super) const MATROSKA_HEADER_LEN: usize = 256;

/// The length of a Matroska file, from its EBML header and the head of its segment; `None` if the file doesn't say.
pub(super) fn matroska_len(head: &[u8]) -> Option<u64> {
    let (len, rest) = ebml_size(head.get(4..)?)?;
    let segment = rest.get(usize::try_from(len?).ok()?..)?.strip_prefix(&[0x18, 0x53, 0x80, 0x67])?;
    let (len, rest) = ebml_size(segment)?;
    len?.checked_add((head.len() - rest.len()) as u64)
}

/// An EBML size (RFC 8794 §4), if it is known, and the bytes after it.
fn ebml_size(bytes: &[u8]) -> Option<(Option<u64>, &[u8])> {
    let extra = bytes.first()?.leading_zeros() as usize;
    let (size, rest) = bytes.split_at_checked(extra + 1)?;
    let mask = 1_u64.checked_shl(7 * (extra as u32 + 1))? - 1;
    let size = size.iter().fold(0, |size, &byte| size << 8 | u64::from(byte)) & mask;
    Some(((size != mask).then_some(size), rest))
}

/// Where a run of MPEG audio or ADTS frames starts. `whole`: the file has no bytes after `head`.
pub(super) fn frames_start(head: &[u8], whole: bool) -> Option<usize> {
    (0..head.len().saturating_sub(3)).find(|&start| {
        let wanted = if start == 0 { PROOF_FRAMES_AT_START } else { PROOF_FRAMES };
        frames_in_a_row(&head[start..], wanted, whole) >= wanted
    })
}

/// Counts frames of one kind, each starting where the one before it ends, up to `wanted`.
fn frames_in_a_row(bytes: &[u8], wanted: usize, whole: bool) -> usize {
    let mut kind = None;
    let mut position = 0;
    for count in 0..wanted {
        let Some(frame) = bytes.get(position..).and_then(frame_header) else {
            return count;
        };
        if *kind.get_or_insert(frame.kind) != frame.kind {
            return count;
        }
        position += frame.len;
        // The last frame of a file must be there in full, otherwise its header alone counts.
        if position > bytes.len() && whole {
            return count;
        }
    }
    wanted
}

/// What a stream without a signature is, as far as its first bytes tell.
pub(super) enum Start {
    /// MPEG audio or ADTS.
    Frames,
    /// Of a format that is known, and can't be read.
    Refused(Error),
    /// None of these.
    Unknown,
    /// This many bytes from the start are needed to tell.
    Needs(usize),
}

/// Judges the first bytes of a stream, [`SIGNATURE_LEN`] of them or all. Nearly always that is enough.
pub(super) fn judge_start(head: &[u8]) -> Start {
    if let Some(error) = unsupported(head) {
        return Start::Refused(error);
    }
    let mut kind = None;
    let mut position = 0;
    for _ in 0..PROOF_FRAMES {
        let Some(bytes) = head.get(position..position + FRAME_HEADER_LEN) else {
            return Start::Needs(position + FRAME_HEADER_LEN);
        };
        match frame_header(bytes) {
            Some(frame) if *kind.get_or_insert(frame.kind) == frame.kind => position += frame.len,
            _ if position > 0 || head[0] != TS_SYNC => return Start::Unknown,
            _ => return transport_start(head),
        }
    }
    Start::Frames
}

/// Judges the first bytes of what may be MPEG-TS.
fn transport_start(head: &[u8]) -> Start {
    for position in (0..TS_PACKETS).map(|i| i * TS_PACKET_LEN) {
        match head.get(position) {
            Some(&TS_SYNC) => {}
            Some(_) => return Start::Unknown,
            None => return Start::Needs(position + 1),
        }
    }
    Start::Refused(transport_error())
}

fn transport_error() -> Error {
    Error::UnsupportedAudio("MPEG-TS is not supported".into())
}

/// The error for first bytes that are known to be no audio that can be read.
pub(super) fn unsupported(head: &[u8]) -> Option<Error> {
    if (0..TS_PACKETS).all(|i| head.get(i * TS_PACKET_LEN) == Some(&TS_SYNC)) {
        return Some(transport_error());
    }
    known(head).map(Error::UnknownAudio)
}

struct Frame {
    /// The bits that stay the same for a whole stream.
    kind: [u8; 2],
    len: usize,
}

/// Lengths as in ISO 11172-3 §2.4.3.1 (MPEG audio) and ISO 13818-7 §6.2 (ADTS).
fn frame_header(bytes: &[u8]) -> Option<Frame> {
    let &[sync, b1, b2, b3, ..] = bytes else { return None };
    if sync != 0xff || b1 & 0xe0 != 0xe0 {
        return None;
    }
    if b1 & 0xf6 == 0xf0 {
        let &[_, _, _, _, b4, b5, ..] = bytes else { return None };
        let len = usize::from(b3 & 3) << 11 | usize::from(b4) << 3 | usize::from(b5 >> 5);
        let rate_index = b2 >> 2 & 15;
        return (len > 7 && rate_index < 13).then_some(Frame { kind: [b1, b2 & 0xfd], len });
    }
    const KBPS: [[u16; 14]; 5] = [
        [32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448],
        [32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384],
        [32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320],
        [32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256],
        [8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160],
    ];
    let (version, layer) = (b1 >> 3 & 3, 4 - (b1 >> 1 & 3));
    let bit_rate_index = usize::from(b2 >> 4);
    let rate: usize = [44_100, 48_000, 32_000].get(usize::from(b2 >> 2 & 3)).copied()?;
    if version == 1 || layer == 4 || !(1..=14).contains(&bit_rate_index) {
        return None;
    }
    let mpeg1 = version == 3;
    let rate = match version {
        3 => rate,
        2 => rate / 2,
        _ => rate / 4,
    };
    let table = match (mpeg1, layer) {
        (true, _) => usize::from(layer) - 1,
        (false, 1) => 3,
        (false, _) => 4,
    };
    let bit_rate = usize::from(KBPS[table][bit_rate_index - 1]) * 1000;
    let padding = usize::from(b2 >> 1 & 1);
    let len = match (layer, mpeg1) {
        (1, _) => (12 * bit_rate / rate + padding) * 4,
        (3, false) => 72 * bit_rate / rate + padding,
        _ => 144 * bit_rate / rate + padding,
    };
    Some(Frame { kind: [b1 & 0xfe, b2 & 0x0c], len })
}

/// The name of a format that can't be read, from its signature.
fn known(head: &[u8]) -> Option<String> {
    const KNOWN: [(&[u8], &str); 9] = [
        (&[0x30, 0x26, 0xb2, 0x75], "a WMA or other ASF file"),
        (b"#!AMR", "an AMR file"),
        (b".snd", "an AU file"),
        (b"wvpk", "a WavPack file"),
        (b"MAC ", "a Monkey's Audio file"),
        (b"TTA1", "a TTA file"),
        (b"riff\x2e\x91\xcf\x11", "a Wave64 file"),
        (b"PK\x03\x04", "a ZIP archive"),
        (b"%PDF", "a PDF document"),
    ];
    if let Some((_, name)) = KNOWN.iter().find(|(bytes, _)| head.starts_with(bytes)) {
        return Some((*name).into());
    }
    if head.starts_with(b"RIFF") && head.len() >= SIGNATURE_LEN {
        return Some(format!("a RIFF file of type {:?}", String::from_utf8_lossy(&head[8..12])));
    }
    // ETSI TS 102 366 §4.3 and §E.1.2: the version is up to 8 for AC-3, after that sizes follow; 11 to 16 for E-AC-3.
    match head {
        [0x0b, 0x77, _, _, code, version, ..]
            if code >> 6 < 3 && version >> 3 <= 8 && code & 63 < 38 || (11..=16).contains(&(version >> 3)) =>
        {
            Some("an AC-3 file".into())
        }
        _ => None,
    }
}

/// What the first bytes of an unknown file look like, for the error message.
pub(super) fn describe_unknown(head: &[u8]) -> String {
    if head.is_empty() {
        return "an empty file".into();
    }
    if let Some(name) = known(head) {
        return name;
    }
    let text = match std::str::from_utf8(head) {
        Ok(text) => Some(text),
        // The cut at the end of `head` may split a character.
        Err(error) if error.error_len().is_none() => std::str::from_utf8(&head[..error.valid_up_to()]).ok(),
        Err(_) => None,
    };
    if text.is_some_and(|text| !text.is_empty() && !text.contains(|c: char| c.is_control() && !c.is_whitespace())) {
        return "text".into();
    }
    let hex: Vec<_> = head.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    if head.len() < SIGNATURE_LEN {
        return format!("only {} bytes: {}", head.len(), hex.join(" "));
    }
    format!("starts with {}", hex.join(" "))
}
