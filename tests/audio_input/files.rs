//! Files that are no audio, or damaged.

use super::*;

#[test]
fn content_decides_not_the_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("speech.wav");
    std::fs::copy(fixture("tagged.mp3"), &path).unwrap();
    assert_eq!(AudioReader::open(&path).unwrap().description(), "MP3, 16000 Hz, 1 channel");
}

#[test]
fn paths_that_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    for path in [dir.path(), &dir.path().join("missing.wav")] {
        let error = AudioReader::open(path).unwrap_err();
        assert!(matches!(&error, Error::Io { path: named, .. } if named == path), "{error}");
    }
}

#[test]
fn files_that_are_no_audio() {
    let mut random = noise(7);
    let random: Vec<u8> = (0..200_000).map(|_| random() as u8).collect();
    let utf16: Vec<u8> =
        std::iter::once(0xfeff).chain("words ".encode_utf16().cycle().take(3000)).flat_map(u16::to_le_bytes).collect();
    for (bytes, text) in [
        (vec![], "an empty file"),
        (vec![7], "only 1 bytes: 07"),
        ("Ein Gedicht, übermütig.\n".repeat(3000).into_bytes(), "text"),
        (b"RIFF\0\0\0\0AVI LIST".to_vec(), "a RIFF file of type \"AVI \""),
        (random, "starts with "),
        (utf16, "starts with ff fe"),
        (vec![0xff; 100_000], "starts with ff ff"),
        (vec![0; 100_000], "starts with 00 00"),
        ([&b"ID3\x03\0\0\0\0\0\x02ab"[..], &b"just text ".repeat(100)].concat(), "text"),
    ] {
        let error = failure(decode_bytes_as_file(&bytes));
        assert!(error.starts_with("not a known audio format (") && error.contains(text), "{error} should say {text}");
    }
}

/// Pseudo-random numbers below 2^31.
fn noise(mut state: u64) -> impl FnMut() -> usize {
    move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize
    }
}

#[test]
fn random_bytes_are_not_taken_for_mp3() {
    let mut random = noise(1);
    for _ in 0..200 {
        let bytes: Vec<u8> = (0..64 * 1024).map(|_| random() as u8).collect();
        assert!(matches!(decode_bytes_as_file(&bytes), Err(Error::UnknownAudio(_))));
    }
}

#[test]
fn mp3_after_something_else_is_found() {
    let want = decode_file("bare.mp3");
    for before in [vec![0; 2000], vec![0x41; 333]] {
        let (got, error) = decode_bytes_as_file(&[before, bytes_of("bare.mp3")].concat()).unwrap();
        assert!(error.is_none());
        assert_eq!(got, want);
    }
}

/// The frame count at the start of the first file must not hide the second.
#[test]
fn joined_mp3_files_are_heard_to_the_end() {
    let bytes = [bytes_of("tagged.mp3"), bytes_of("tagged.mp3")].concat();
    let (samples, _) = decode_bytes_as_file(&bytes).unwrap();
    assert!(samples.len() > 32_000, "{} samples", samples.len());
}

#[test]
fn tracks_that_cannot_be_read_say_why() {
    for (name, text) in [("silent.mp4", "no audio track"), ("ac3.mkv", "AC-3"), ("surround.opus", "6 channels")] {
        let error = AudioReader::open(&fixture(name)).unwrap_err();
        assert!(matches!(error, Error::UnsupportedAudio(_)) && error.to_string().contains(text), "{name}: {error}");
    }
}

#[test]
fn cut_files_give_what_is_there_and_an_error() {
    for (name, part, least) in [
        ("start.m4a", 0.6, 1000),
        ("sweep.aiff", 0.5, 900),
        ("sweep.mkv", 0.9, 1000),
        ("opus.webm", 0.5, 4000),
        ("tagged.mp3", 0.5, 6000),
        ("mulaw.wav", 0.5, 1900),
        ("adpcm_ima.wav", 0.6, 4000),
    ] {
        let mut bytes = bytes_of(name);
        let whole = decode_file(name);
        bytes.truncate((bytes.len() as f64 * part) as usize);
        let (samples, error) = decode_bytes_as_file(&bytes).unwrap();
        assert!(matches!(error, Some(Error::DamagedAudio(_))), "{name}: {error:?}");
        assert!(samples.len() >= least && samples.len() < whole.len(), "{name}: {} samples", samples.len());
        let same = samples.len().saturating_sub(700);
        // Close, not equal: what comes after the cut is in the same Fourier transform.
        assert!(samples[..same].iter().zip(&whole).all(|(a, b)| (a - b).abs() < 1e-5), "{name}");
    }
    let error = failure(decode_bytes_as_file(&bytes_of("end.m4a")[..3000]));
    assert!(error.contains("no index (moov)"), "{error}");
    let error = failure(decode_bytes_as_file(&bytes_of("stereo.flac")[..12_000]));
    assert!(error.contains("its header promises 0.05 s"), "{error}");
}

#[test]
fn bad_packets_are_counted_and_time_goes_on() {
    let mut bytes = bytes_of("opus.webm");
    // A simple block: its ID, its length in one or two bytes, track 1, time, flags. Then an Opus packet, which can be
    // wrong in few ways; one is to consist of no frames.
    let packet = (bytes.len() / 2..)
        .find_map(|at| {
            let len = if bytes[at + 1] & 0x80 != 0 { 1 } else { 2 };
            (bytes[at] == 0xa3 && bytes[at + 1 + len] == 0x81).then_some(at + len + 5)
        })
        .unwrap();
    bytes[packet] |= 3;
    bytes[packet + 1] = 0;
    let (samples, error) = decode_bytes_as_file(&bytes).unwrap();
    assert_eq!(error.unwrap().to_string(), "damaged audio: 1 packet could not be decoded");
    assert_eq!(samples.len(), 16_216);
    assert!(snr(&samples[9600..], 1.0, -0.6) > 15.0);
}

#[test]
fn damaged_files_neither_panic_nor_hang() {
    let mut random = noise(3);
    for (name, ..) in
        FIXTURES.iter().chain(&[("surround.opus", 0.0, 0.0, 0, 0.0), ("extensible.wav", 0.0, 0.0, 0, 0.0)])
    {
        let original = bytes_of(name);
        for round in 0..16 {
            let mut bytes = original.clone();
            if round % 2 == 0 {
                bytes.truncate(1 + random() % original.len());
            }
            // Half of the damage goes where the headers are.
            let reach = if round % 3 == 0 { bytes.len().min(200) } else { bytes.len() };
            for _ in 0..round % 4 * 4 {
                let at = random() % reach;
                bytes[at] = random() as u8;
            }
            let file = decode_bytes_as_file(&bytes);
            let stream = decode_stream(bytes);
            for (samples, _) in file.into_iter().chain(stream) {
                assert!(samples.len() < 10_000_000, "{name}: {} samples", samples.len());
            }
        }
    }
}

/// Header fields and samples for which the arithmetic of symphonia 0.6.1 overflows.
#[test]
fn damage_that_decoders_panic_on_is_an_error() {
    let mut caf = bytes_of("sweep.caf");
    caf[36..40].fill(0xff); // bytes per packet
    let mut aiff = bytes_of("sweep.aiff");
    let comm = aiff.windows(4).position(|name| name == b"COMM").unwrap();
    aiff[comm + 8..comm + 10].copy_from_slice(&[0, 26]); // channels
    aiff[comm + 14..comm + 16].copy_from_slice(&[0xff, 0xf8]); // bits per sample
    for bytes in [caf, aiff] {
        let error = failure(decode_bytes_as_file(&bytes));
        assert!(!error.is_empty());
    }
    let mut adpcm = bytes_of("adpcm_ms.wav");
    let end = adpcm.len() - 2100;
    adpcm[200..end].fill(0x88); // steps that triple with every sample
    let (samples, _) = decode_bytes_as_file(&adpcm).unwrap();
    assert!(samples.len() > 4000 && samples.iter().all(|sample| sample.is_finite()));
}

/// A Core Audio file of 64-bit floats, with this many bytes and frames per packet.
fn caf(bytes_per_packet: u32, frames_per_packet: u32, channels: u32) -> Vec<u8> {
    let mut bytes = b"caff\0\x01\0\0desc".to_vec();
    bytes.extend(32_u64.to_be_bytes());
    bytes.extend(16_000_f64.to_be_bytes());
    bytes.extend(b"lpcm\0\0\0\x01");
    bytes.extend([bytes_per_packet, frames_per_packet, channels, 64].map(u32::to_be_bytes).as_flattened());
    bytes.extend(b"data");
    bytes.extend(8004_u64.to_be_bytes());
    bytes.extend(vec![0; 8004]);
    bytes
}

#[test]
fn claimed_packet_sizes_are_not_allocated() {
    assert_eq!(decode_bytes_as_file(&caf(8, 1, 1)).unwrap().0.len(), 1000);
    for (bytes, frames, channels) in [(8, u32::MAX, 1), (8, 0x7fff_ffff, 2), (64, 1 << 22, 2), (8 << 20, 1 << 23, 1)] {
        let error = decode_bytes_as_file(&caf(bytes, frames, channels)).unwrap_err();
        assert!(matches!(&error, Error::DamagedAudio(text) if text.contains("samples per packet")), "{error}");
    }
}
