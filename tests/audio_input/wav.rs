//! WAV files, of every width and with every mistake.

use super::*;

#[test]
fn wav_samples_of_every_width_are_exact() {
    let values = [-1.0, -0.5, 0.0, 0.25, 0.5];
    let scaled = |scale: f64| values.map(|value: f64| (value * scale) as i64);
    let bytes_8: Vec<u8> = scaled(128.0).iter().map(|v| (v + 128) as u8).collect();
    let bytes_16: Vec<u8> = scaled(32_768.0).iter().flat_map(|v| (*v as i16).to_le_bytes()).collect();
    let bytes_24: Vec<u8> = scaled(8_388_608.0).iter().flat_map(|v| v.to_le_bytes()[..3].to_vec()).collect();
    let bytes_32: Vec<u8> = scaled(2_147_483_648.0).iter().flat_map(|v| (*v as i32).to_le_bytes()).collect();
    let bytes_float = floats(values);
    let bytes_double: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
    for (tag, bits, bytes) in [
        (1, 8, bytes_8),
        (1, 16, bytes_16),
        (1, 24, bytes_24),
        (1, 32, bytes_32),
        (3, 32, bytes_float),
        (3, 64, bytes_double),
    ] {
        let (samples, error) = decode_stream(wav(tag, 1, 16_000, bits, bytes)).unwrap();
        assert!(error.is_none(), "{bits} bits: {error:?}");
        assert_eq!(samples, values.map(|value| value as f32), "{bits} bits");
    }
}

#[test]
fn floats_beyond_full_scale_pass() {
    let (samples, error) = decode_stream(wav(3, 1, 16_000, 32, floats([3.5, -128.0]))).unwrap();
    assert!(error.is_none());
    assert_eq!(samples, [3.5, -128.0]);
}

#[test]
fn samples_that_are_no_sound_end_the_audio_at_any_rate() {
    for rate in [16_000, 44_100, 8000] {
        for bad in [f64::NAN, f64::INFINITY, 1e30, -200.0] {
            for at in [0, 1, 20_000, 44_099] {
                let mut data = vec![0.25; 44_100];
                data[at] = bad;
                let (samples, error) = decode_stream(wav(3, 1, rate, 32, floats(data))).unwrap();
                let found = matches!(error, Some(Error::InvalidSample { index, .. }) if index == at as u64);
                assert!(found, "{rate} Hz, {bad} at {at}: {error:?}");
                assert_eq!(samples.len(), (at * 16_000).div_ceil(rate as usize), "{rate} Hz, {bad} at {at}");
                assert!(samples.iter().all(|sample| sample.is_finite() && sample.abs() < 0.5));
            }
        }
    }
}

#[test]
fn channels_are_averaged() {
    let frames = [[1000, 3000, 2000, -2000, 0, 2000], [6, 12, 18, 24, 30, 36]];
    let (samples, _) = decode_stream(wav(1, 6, 16_000, 16, le_bytes(frames.as_flattened()))).unwrap();
    assert_eq!(samples, as_floats(&[1000, 21]));
    // Opposite channels cancel before the resampler sees them.
    let frames: Vec<i16> = ramp(4410).iter().flat_map(|&v| [v, v.saturating_neg()]).collect();
    let (samples, _) = decode_stream(wav(1, 2, 44_100, 16, le_bytes(&frames))).unwrap();
    assert!(samples.iter().all(|sample| sample.abs() < 1e-4));
}

#[test]
fn extensible_wav_of_another_program() {
    let samples = decode_file("extensible.wav");
    assert_eq!(samples.len(), 401);
    for (i, &sample) in samples.iter().enumerate().skip(30).take(340) {
        let want = sweep(i as f64 / 16e3);
        assert!((f64::from(sample) - want).abs() < 1e-3, "sample {i} is {sample}, not {want}");
    }
}

#[test]
fn chunks_around_the_data_are_no_audio() {
    let samples = ramp(101);
    let format = || format_chunk(1, 1, 16_000, 16);
    let junk = |len| Chunk(b"JUNK", vec![0x55; len]);
    let bytes = riff(&[junk(33), format(), junk(70_000), Chunk(b"data", le_bytes(&samples)), junk(1001)]);
    for odd in [false, true] {
        let mut bytes = bytes.clone();
        if odd {
            // A chunk of 33 bytes padded to 34, then garbage that only a reader out of step would see.
            bytes.extend([1, 2, 3]);
        }
        let (got, error) = decode_stream(bytes).unwrap();
        assert!(error.is_none());
        assert_eq!(got, as_floats(&samples));
    }
    // 8-bit data of odd length.
    let bytes = riff(&[format_chunk(1, 1, 16_000, 8), Chunk(b"data", vec![128; 7]), junk(10)]);
    assert_eq!(decode_stream(bytes).unwrap().0, [0.0; 7]);
}

#[test]
fn sizes_that_pipes_write_mean_up_to_the_end() {
    let samples = ramp(5000);
    let plain = wav(1, 1, 16_000, 16, le_bytes(&samples));
    for (riff_len, data_len) in
        [(0, 0), (u32::MAX, u32::MAX), (36, 0), (0x7fff_ffff, 0x7fff_f000), (u32::MAX - 8, u32::MAX - 44)]
    {
        let mut bytes = plain.clone();
        bytes[4..8].copy_from_slice(&u32::to_le_bytes(riff_len));
        bytes[40..44].copy_from_slice(&u32::to_le_bytes(data_len));
        let (got, error) = decode_stream(bytes).unwrap();
        assert!(error.is_none(), "{data_len:#x}: {error:?}");
        assert_eq!(got, as_floats(&samples), "{data_len:#x}");
    }
    // A correct size around audio data without one.
    let mut bytes = plain.clone();
    bytes[40..44].fill(0);
    let (got, error) = decode_stream(bytes).unwrap();
    assert!(error.is_none(), "{error:?}");
    assert_eq!(got, as_floats(&samples));
    // No audio, and lists after it.
    let list = |len| Chunk(b"LIST", vec![65; len]);
    for lists in [vec![list(64)], vec![list(3), list(70_000)], vec![list(2_000_000), list(1)]] {
        let chunks = [vec![format_chunk(1, 1, 16_000, 16), Chunk(b"data", vec![])], lists].concat();
        assert!(decode_stream(riff(&chunks)).unwrap().0.is_empty());
    }
}

#[test]
fn rf64_takes_its_size_from_ds64() {
    let samples = ramp(300);
    for (id, len, n) in [(b"RF64", 400, 200), (b"BW64", 400, 200), (b"RF64", 0, 300), (b"RF64", u64::MAX, 300)] {
        let mut sizes = vec![0; 28];
        sizes[8..16].copy_from_slice(&u64::to_le_bytes(len));
        let mut bytes =
            riff(&[Chunk(b"ds64", sizes), format_chunk(1, 1, 16_000, 16), Chunk(b"data", le_bytes(&samples))]);
        bytes[..4].copy_from_slice(id);
        bytes[4..8].copy_from_slice(&u32::MAX.to_le_bytes());
        let at = bytes.len() - 604;
        bytes[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let (got, error) = decode_stream(bytes).unwrap();
        assert!(error.is_none());
        assert_eq!(got, as_floats(&samples[..n]));
    }
}

#[test]
fn data_that_ends_early_is_delivered_and_reported() {
    let samples = ramp(16_000 * 3);
    let mut bytes = wav(1, 1, 16_000, 16, le_bytes(&samples));
    bytes.truncate(44 + 32_000 + 1);
    let (got, error) = decode_stream(bytes).unwrap();
    assert_eq!(got, as_floats(&samples[..16_000]));
    assert_eq!(error.unwrap().to_string(), "damaged audio: the audio ends after 1.00 s, its header promises 3.00 s");
}

#[test]
fn claimed_sizes_are_not_allocated() {
    for bytes in [
        riff(&[Chunk(b"fmt ", vec![])]),
        [&b"RIFF\xff\xff\xff\xffWAVEfmt \xf0\xff\xff\xff"[..], &[1; 100]].concat(),
        [&b"RIFF\xff\xff\xff\xffWAVEJUNK\xf0\xff\xff\xff"[..], &[1; 100]].concat(),
        b"RIFF\xff\xff\xff\xffWAVE".to_vec(),
    ] {
        let error = failure(decode_stream(bytes));
        assert_eq!(error, "damaged audio: the WAV file ends before its audio data");
    }
}

/// A header without end must not hang.
#[test]
fn endless_headers_end() {
    let bytes = Cursor::new(b"RIFF\0\0\0\0WAVE".to_vec()).chain(std::io::repeat(0));
    let error = AudioReader::from_stream(bytes, Channel::Mix).unwrap_err().to_string();
    assert!(error.contains("no audio data"), "{error}");
}

#[test]
fn wav_formats_that_cannot_be_read_say_why() {
    let data = vec![0; 64];
    for (bytes, text) in [
        (wav(1, 0, 16_000, 16, data.clone()), "0 channels"),
        (wav(1, 1, 0, 16, data.clone()), "a sample rate of 0 Hz; 1000 to 768000 Hz are read"),
        (wav(1, 1, 999, 16, data.clone()), "a sample rate of 999 Hz"),
        (wav(1, 1, 4_000_000_000, 16, data.clone()), "a sample rate of 4000000000 Hz"),
        (wav(1, 1, 16_000, 12, data.clone()), "WAV: "),
        (wav(1, 1, 16_000, 64, data.clone()), "integers of 8, 16, 24 and 32 bits"),
        (riff(&[Chunk(b"data", data.clone())]), "no fmt chunk"),
        (riff(&[Chunk(b"fmt ", vec![1; 8]), Chunk(b"data", data.clone())]), "8 bytes of 16"),
        ([b"RIFX", &wav(1, 1, 16_000, 16, data.clone())[4..]].concat(), "RIFX"),
        (wav(0x161, 1, 16_000, 16, data), "unsupported audio"),
    ] {
        let error = failure(decode_stream(bytes));
        assert!(error.contains(text), "{error} should say {text}");
    }
}

#[test]
fn header_fields_that_do_not_matter_may_be_wrong() {
    let samples = ramp(50);
    let mut bytes = wav(1, 1, 16_000, 16, le_bytes(&samples));
    bytes[28..32].copy_from_slice(&12_345_u32.to_le_bytes()); // bytes per second
    assert_eq!(decode_stream(bytes).unwrap().0, as_floats(&samples));
    let Chunk(name, mut format) = format_chunk(1, 1, 16_000, 16);
    format.extend([9; 8]);
    let bytes = riff(&[Chunk(name, format), Chunk(b"data", le_bytes(&samples))]);
    assert_eq!(decode_stream(bytes).unwrap().0, as_floats(&samples));
}
