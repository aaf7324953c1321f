//! Decoding, resampling and errors of the audio input, through its public interface.
//!
//! The files in `tests/audio` (made by `make.sh` there) and the WAV files made here hold one signal, [`sweep`], so what
//! is decoded can be compared with what it should be.

use std::f64::consts::PI;
use std::fs::File;
use std::io::{Cursor, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use voxtral::Error;
use voxtral::audio::{AudioReader, Channel};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/audio").join(name)
}

fn bytes_of(name: &str) -> Vec<u8> {
    std::fs::read(fixture(name)).unwrap()
}

/// From 200 Hz to 6 kHz in one second, at half of full scale.
fn sweep(seconds: f64) -> f64 {
    0.5 * (2.0 * PI * (200.0 * seconds + 2900.0 * seconds * seconds)).sin()
}

/// All samples, and the error if one came.
fn drain(mut reader: AudioReader) -> (Vec<f32>, Option<Error>) {
    let mut samples = Vec::new();
    loop {
        let before = samples.len();
        match reader.read(&mut samples) {
            Ok(0) => return (samples, None),
            Ok(n) => assert_eq!(samples.len(), before + n),
            Err(error) => {
                assert_eq!(samples.len(), before, "samples came with an error");
                assert_eq!(reader.read(&mut samples).unwrap(), 0, "an error is final");
                return (samples, Some(error));
            }
        }
    }
}

fn decode_stream(bytes: impl Into<Vec<u8>>) -> Result<(Vec<f32>, Option<Error>), Error> {
    AudioReader::from_stream(Cursor::new(bytes.into()), Channel::Mix).map(drain)
}

fn decode_file(name: &str) -> Vec<f32> {
    let (samples, error) = drain(AudioReader::open(&fixture(name)).unwrap());
    assert!(error.is_none(), "{name}: {error:?}");
    samples
}

/// Signal-to-noise ratio in dB against the sweep, which starts after `delay` seconds; without 10 ms at its start and
/// 20 ms at its end, `seconds`.
fn snr(got: &[f32], seconds: f64, delay: f64) -> f64 {
    let (mut signal, mut noise) = (0.0, 0.0);
    for (i, &got) in got.iter().enumerate() {
        let time = i as f64 / 16_000.0 - delay;
        if (0.01..seconds - 0.02).contains(&time) {
            let want = sweep(time);
            signal += want * want;
            noise += (want - f64::from(got)).powi(2);
        }
    }
    assert!(signal > 0.0, "nothing to compare");
    10.0 * (signal / noise).log10()
}

#[derive(Clone)]
struct Chunk(&'static [u8; 4], Vec<u8>);

fn riff(chunks: &[Chunk]) -> Vec<u8> {
    let mut bytes = b"RIFF\0\0\0\0WAVE".to_vec();
    for Chunk(name, body) in chunks {
        bytes.extend_from_slice(*name);
        bytes.extend((body.len() as u32).to_le_bytes());
        bytes.extend(body);
        bytes.extend(&[0][..body.len() % 2]);
    }
    let len = bytes.len() as u32 - 8;
    bytes[4..8].copy_from_slice(&len.to_le_bytes());
    bytes
}

fn format_chunk(tag: u16, channels: u16, rate: u32, bits: u16) -> Chunk {
    let frame = channels * bits.div_ceil(8);
    let mut body = Vec::new();
    body.extend(tag.to_le_bytes());
    body.extend(channels.to_le_bytes());
    body.extend(rate.to_le_bytes());
    body.extend(rate.wrapping_mul(frame.into()).to_le_bytes());
    body.extend(frame.to_le_bytes());
    body.extend(bits.to_le_bytes());
    Chunk(b"fmt ", body)
}

fn wav(tag: u16, channels: u16, rate: u32, bits: u16, data: impl Into<Vec<u8>>) -> Vec<u8> {
    riff(&[format_chunk(tag, channels, rate, bits), Chunk(b"data", data.into())])
}

fn le_bytes(samples: &[i16]) -> Vec<u8> {
    samples.iter().flat_map(|sample| sample.to_le_bytes()).collect()
}

fn floats(samples: impl IntoIterator<Item = f64>) -> Vec<u8> {
    samples.into_iter().flat_map(|sample| (sample as f32).to_le_bytes()).collect()
}

/// 16-bit mono samples that differ.
fn ramp(n: usize) -> Vec<i16> {
    (0..n).map(|i| (i as i16).wrapping_mul(37)).collect()
}

fn as_floats(samples: &[i16]) -> Vec<f32> {
    samples.iter().map(|&sample| f32::from(sample) / 32_768.0).collect()
}

/// Gives 1, 2, 3, .. 7, 1, .. bytes at a time.
struct Dribble(Cursor<Vec<u8>>, usize);

impl Read for Dribble {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.1 = self.1 % 7 + 1;
        let len = buffer.len().min(self.1);
        self.0.read(&mut buffer[..len])
    }
}

/// The error's text, from opening or from reading.
fn failure(result: Result<(Vec<f32>, Option<Error>), Error>) -> String {
    match result {
        Ok((_, Some(error))) | Err(error) => error.to_string(),
        Ok((samples, None)) => panic!("no error, {} samples", samples.len()),
    }
}

fn decode_bytes_as_file(bytes: &[u8]) -> Result<(Vec<f32>, Option<Error>), Error> {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), bytes).unwrap();
    AudioReader::open(file.path()).map(drain)
}

/// Name, seconds of sweep, seconds of delay before it, samples in all, smallest SNR in dB.
const FIXTURES: [(&str, f64, f64, usize, f64); 22] = [
    ("tagged.mp3", 1.0, 0.0, 16_000, 24.0),
    // Without a header that tells them, the delays of encoder (576) and decoder (529) stay.
    ("bare.mp3", 1.0, 1105.0 / 16e3, 17_280, 24.0),
    ("sweep.mp2", 0.5, 481.0 / 16e3, 8064, 28.0),
    ("sweep.aac", 0.5, 1024.0 / 44.1e3, 8545, 35.0),
    ("sweep.flac", 0.125, 0.0, 2000, 85.0),
    ("stereo.flac", 0.05, 0.0, 800, 85.0),
    ("flac.ogg", 0.125, 0.0, 2000, 85.0),
    ("vorbis.ogg", 1.0, 0.0, 16_000, 22.0),
    ("mono.opus", 1.0, 0.0, 16_000, 30.0),
    ("stereo.opus", 0.5, 0.0, 8000, 25.0),
    ("opus.webm", 1.0, 0.0, 16_216, 30.0),
    ("opus.mp4", 0.5, 0.0, 8000, 30.0),
    ("end.m4a", 0.4, 0.0, 6400, 16.0),
    ("start.m4a", 0.5, 0.0, 8000, 25.0),
    ("alac.m4a", 0.125, 0.0, 2000, 85.0),
    ("sweep.aiff", 0.125, 0.0, 2000, 85.0),
    ("sweep.caf", 0.125, 0.0, 2000, 85.0),
    ("sweep.mkv", 0.125, 0.0, 2000, 85.0),
    ("mulaw.wav", 0.25, 0.0, 4000, 35.0),
    ("alaw.wav", 0.25, 0.0, 4000, 35.0),
    ("adpcm_ima.wav", 0.5, 0.0, 8164, 20.0),
    ("adpcm_ms.wav", 0.5, 0.0, 8144, 20.0),
];

#[test]
fn every_format_decodes_to_the_signal_in_time() {
    for (name, seconds, delay, n, bound) in FIXTURES {
        let samples = decode_file(name);
        let snr = snr(&samples, seconds, delay);
        println!("{name} {} {snr:.1}", samples.len());
        assert_eq!(samples.len(), n, "{name}");
        assert!(snr > bound, "{name}: SNR {snr:.1} dB");
    }
}

#[test]
fn a_stream_gives_the_same_samples_as_a_file() {
    for (name, ..) in FIXTURES {
        let want = decode_file(name);
        let redirected = AudioReader::from_file(File::open(fixture(name)).unwrap(), Channel::Mix);
        let piped = AudioReader::from_stream(Dribble(Cursor::new(bytes_of(name)), 0), Channel::Mix);
        for reader in [redirected, piped] {
            let (got, error) = drain(reader.unwrap());
            assert!(error.is_none(), "{name}: {error:?}");
            assert!(got == want, "{name}: {} samples, not {}", got.len(), want.len());
        }
    }
}

#[test]
fn a_redirected_file_is_read_from_where_it_is() {
    let samples = ramp(500);
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[&[7; 100][..], &le_bytes(&samples)].concat()).unwrap();
    for (start, want) in [(100, &samples[..]), (300, &samples[100..])] {
        let mut file = file.try_clone().unwrap();
        file.seek(SeekFrom::Start(start)).unwrap();
        let (got, error) = drain(AudioReader::from_file(file, Channel::Mix).unwrap());
        assert!(error.is_none());
        assert_eq!(got, as_floats(want));
    }
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[&[7; 100][..], &bytes_of("end.m4a")].concat()).unwrap();
    file.seek(SeekFrom::Start(100)).unwrap();
    assert!(drain(AudioReader::from_file(file, Channel::Mix).unwrap()).0 == decode_file("end.m4a"));
}

#[test]
fn formats_that_cannot_be_read_are_not_taken_for_raw_samples() {
    let mut transport = [&[0x47, 0x40, 0x11, 0x10][..], &[0; 184]].concat().repeat(100);
    transport[400..2000].iter_mut().filter(|byte| **byte == 0).for_each(|byte| *byte = 0xfe);
    for (bytes, text) in [
        (b".snd\0\0\0\x18\xff\xff\xff\xff\0\0\0\x03".to_vec(), "an AU file"),
        (vec![0x0b, 0x77, 0xb1, 0xe7, 0x8c, 0x40, 0x2f, 0x84, 0x29, 0xf3, 0xfe, 0x75, 0x7c], "an AC-3 file"),
        (b"riff\x2e\x91\xcf\x11\xa5\xd6\x28\xdb\x04\xc1\0\0".to_vec(), "a Wave64 file"),
        (b"RIFF\0\0\0\0AVI LIST".to_vec(), "a RIFF file of type"),
        (b"#!AMR\n\x04\x04\x04\x04\x04\x04\x04".to_vec(), "an AMR file"),
        (transport.clone(), "MPEG-TS is not supported"),
    ] {
        for error in [failure(decode_stream(bytes.clone())), failure(decode_bytes_as_file(&bytes))] {
            assert!(error.contains(text), "{error} should say {text}");
        }
    }
    // ADTS inside does not make it ADTS.
    let adts = bytes_of("sweep.aac");
    for (packet, part) in transport.chunks_exact_mut(188).skip(1).zip(adts.chunks_exact(184)) {
        packet[4..].copy_from_slice(part);
    }
    assert!(failure(decode_bytes_as_file(&transport)).contains("MPEG-TS is not supported"));
    // Raw samples that begin like it, and like MPEG audio.
    for start in [&[0x47, 0x40][..], &[0xff, 0xfb, 0x90, 0x64]] {
        for n in [10, 188, 3000] {
            let bytes = [start, &vec![1; n]].concat();
            assert_eq!(decode_stream(bytes.clone()).unwrap().0.len(), bytes.len() / 2);
        }
    }
}

#[test]
fn speex_is_named() {
    let mut bytes = b"OggS\0\x02".to_vec();
    bytes.resize(26, 0);
    bytes.extend([1, 80]);
    bytes.extend(b"Speex   1.2.1");
    bytes.resize(28 + 80, 0);
    for error in [failure(decode_bytes_as_file(&bytes)), failure(decode_stream(bytes))] {
        assert!(error.starts_with("unsupported audio: an audio codec (Speex)"), "{error}");
    }
}

#[test]
fn descriptions_and_durations() {
    let about = |name| {
        let reader = AudioReader::open(&fixture(name)).unwrap();
        (reader.description().to_owned(), reader.duration())
    };
    assert_eq!(about("extensible.wav").0, "WAV, 44100 Hz, 2 channels, 24-bit");
    assert_eq!(about("tagged.mp3"), ("MP3, 16000 Hz, 1 channel".into(), Some(1.0)));
    assert_eq!(about("stereo.opus").0, "Ogg (Opus), 48000 Hz, 2 channels");
    assert_eq!(about("alac.m4a"), ("MP4 (ALAC), 16000 Hz, 1 channel".into(), Some(0.125)));
    assert_eq!(about("mulaw.wav"), ("WAV (pcm mulaw), 16000 Hz, 1 channel".into(), Some(0.25)));
    assert_eq!(about("bare.mp3").1, None);
}

#[test]
fn the_reader_can_go_to_another_thread() {
    fn sendable<T: Send>() {}
    sendable::<AudioReader>();
}

// WAV

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

// Streams

#[test]
fn a_stream_without_a_known_header_is_raw() {
    let samples = ramp(20_000);
    for bytes in [le_bytes(&samples), [&[0xff, 0xfb, 0x90, 0x64][..], &le_bytes(&samples)].concat()] {
        let (got, error) = decode_stream(bytes.clone()).unwrap();
        assert!(error.is_none());
        assert_eq!(got[got.len() - 20_000..], as_floats(&samples));
        assert_eq!(got.len(), bytes.len() / 2);
    }
    for (bytes, n) in [(vec![], 0), (vec![1], 0), (vec![1, 2, 3], 1)] {
        let (got, error) = decode_stream(bytes).unwrap();
        assert!(error.is_none());
        assert_eq!(got.len(), n);
    }
    let mut raw = AudioReader::raw(Cursor::new(b"RIFF\0\0\0\0WAVE".to_vec()));
    let mut got = Vec::new();
    assert_eq!(raw.read(&mut got).unwrap(), 6);
    assert_eq!(raw.description(), "raw, 16000 Hz, 1 channel, 16-bit");
}

/// A live stream: what has arrived is returned, without waiting for more.
#[test]
fn raw_samples_come_as_soon_as_they_arrive() {
    struct Live(Vec<Vec<u8>>);
    impl Read for Live {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let Some(next) = (!self.0.is_empty()).then(|| self.0.remove(0)) else { return Ok(0) };
            if next.is_empty() {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            buffer[..next.len()].copy_from_slice(&next);
            Ok(next.len())
        }
    }
    let mut reader = AudioReader::raw(Live(vec![vec![0, 64], vec![0], vec![], vec![32, 0, 16, 7], vec![1, 1]]));
    let mut samples = Vec::new();
    let counts: Vec<_> = (0..4).map(|_| reader.read(&mut samples).unwrap()).collect();
    assert_eq!(counts, [1, 2, 1, 0]);
    assert_eq!(samples, [0.5, 0.25, 0.125, f32::from(0x0107_i16) / 32_768.0]);
}

#[test]
fn a_read_returns_at_most_a_second() {
    for bytes in [wav(1, 1, 8000, 8, vec![128; 80_000]), wav(1, 2, 48_000, 16, vec![0; 480_000]), vec![0; 160_000]] {
        let mut reader = AudioReader::from_stream(Cursor::new(bytes), Channel::Mix).unwrap();
        let mut samples = Vec::new();
        while let n @ 1.. = reader.read(&mut samples).unwrap() {
            assert!(n <= 20_000, "{n} samples at once");
        }
    }
}

#[test]
fn a_failing_stream_is_an_error_after_its_samples() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("unplugged"))
        }
    }
    let samples = ramp(3000);
    let mut endless = wav(1, 1, 16_000, 16, le_bytes(&samples));
    endless[40..44].fill(0xff);
    for bytes in [le_bytes(&samples), endless] {
        let (got, error) = drain(AudioReader::from_stream(Cursor::new(bytes).chain(Failing), Channel::Mix).unwrap());
        assert_eq!(got, as_floats(&samples));
        assert_eq!(error.unwrap().to_string(), "cannot read audio: unplugged");
    }
    let cut = bytes_of("tagged.mp3")[..6000].to_vec();
    let (got, error) = drain(AudioReader::from_stream(Cursor::new(cut).chain(Failing), Channel::Mix).unwrap());
    assert!(got.len() > 8000);
    assert!(matches!(error, Some(Error::AudioIo(_))), "{error:?}");
}

// Files

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

// Resampling

fn resampled(rate: u32, seconds: f64, signal: impl Fn(f64) -> f64) -> Vec<f32> {
    let n = (f64::from(rate) * seconds) as usize;
    let data = floats((0..n).map(|i| signal(i as f64 / f64::from(rate))));
    let (samples, error) = decode_stream(wav(3, 1, rate, 32, data)).unwrap();
    assert!(error.is_none());
    samples
}

fn level_db(samples: &[f32]) -> f64 {
    let power = samples.iter().map(|&sample| f64::from(sample).powi(2)).sum::<f64>() / samples.len() as f64;
    10.0 * power.log10()
}

#[test]
fn the_pass_band_is_flat_and_in_time() {
    for rate in [44_100, 48_000, 22_050, 96_000, 8000, 11_025, 12_345, 32_000] {
        for hz in [300.0, 3000.0, 7000.0].into_iter().filter(|hz| *hz < f64::from(rate) * 0.44) {
            let tone = |time: f64| 0.5 * (2.0 * PI * hz * time).sin();
            let samples = resampled(rate, 1.0, tone);
            assert_eq!(samples.len(), 16_000, "{rate} Hz");
            let level = level_db(&samples[1600..14_400]) - 10.0 * 0.125_f64.log10();
            assert!(level.abs() < 0.1, "{hz} Hz from {rate} Hz is off by {level:.3} dB");
            let error =
                (1600..14_400).map(|i| (f64::from(samples[i]) - tone(i as f64 / 16e3)).abs()).fold(0.0, f64::max);
            assert!(error < 0.01, "{hz} Hz from {rate} Hz is off by {error:.4}");
        }
    }
}

#[test]
fn what_16_khz_cannot_hold_is_gone() {
    for (rate, hz) in [(48_000, 9000.0), (48_000, 12_000.0), (48_000, 20_000.0), (44_100, 9000.0), (96_000, 30_000.0)] {
        let samples = resampled(rate, 1.0, |time| 0.5 * (2.0 * PI * hz * time).sin());
        let level = level_db(&samples[1600..14_400]) + 9.03;
        assert!(level < -80.0, "{hz} Hz at {rate} Hz leaves an alias of {level:.1} dB");
    }
}

#[test]
fn the_length_is_exact_at_any_rate() {
    for rate in [1000, 7919, 8000, 12_345, 44_100, 44_101, 48_000, 767_999, 768_000] {
        for n in [1, 100, 5000_u64] {
            let (samples, _) = decode_stream(wav(3, 1, rate, 32, floats((0..n).map(|_| 0.1)))).unwrap();
            assert_eq!(samples.len() as u64, (n * 16_000).div_ceil(rate.into()), "{n} samples at {rate} Hz");
        }
    }
}

#[test]
fn arrival_does_not_change_the_samples() {
    for rate in [16_000, 44_100, 8000] {
        let bytes = wav(1, 2, rate, 24, (0..60_000).map(|i| (i * 7 % 251) as u8).collect::<Vec<_>>());
        let (want, _) = decode_stream(bytes.clone()).unwrap();
        let (got, _) = drain(AudioReader::from_stream(Dribble(Cursor::new(bytes), 0), Channel::Mix).unwrap());
        assert!(got == want, "{rate} Hz");
    }
}

#[test]
fn one_channel_is_heard_alone() {
    // left and right hold different noise, in three sample formats
    for (bits, format) in
        [(16, hound::SampleFormat::Int), (24, hound::SampleFormat::Int), (32, hound::SampleFormat::Float)]
    {
        let wav = |columns: &[usize]| {
            let spec = hound::WavSpec {
                channels: columns.len() as u16,
                sample_rate: 44_100,
                bits_per_sample: bits,
                sample_format: format,
            };
            let mut bytes = Cursor::new(Vec::new());
            let mut writer = hound::WavWriter::new(&mut bytes, spec).unwrap();
            for i in 0..20_000i32 {
                for &column in columns {
                    let value = (i * (7919 + 1000 * column as i32)) % 20_000;
                    match format {
                        hound::SampleFormat::Int => writer.write_sample(value).unwrap(),
                        hound::SampleFormat::Float => writer.write_sample(value as f32 / 32_768.0).unwrap(),
                    }
                }
            }
            writer.finalize().unwrap();
            bytes.into_inner()
        };
        let read = |bytes: Vec<u8>, channel| drain(AudioReader::from_stream(Cursor::new(bytes), channel).unwrap()).0;
        for i in [0, 1, 2] {
            let alone = read(wav(&[i]), Channel::Mix);
            assert!(alone.iter().any(|x| x.abs() > 0.01 || bits == 24));
            assert_eq!(read(wav(&[0, 1, 2]), Channel::Only(i)), alone);
        }
        let error = AudioReader::from_stream(Cursor::new(wav(&[0, 1])), Channel::Only(2)).unwrap_err().to_string();
        assert!(error.contains("channel 3 of audio with 2 channels"), "{error}");
    }
    for name in ["stereo.flac", "stereo.opus"] {
        let read = |channel| drain(AudioReader::open_channel(&fixture(name), channel).unwrap()).0;
        let [mix, left, right] = [Channel::Mix, Channel::Only(0), Channel::Only(1)].map(read);
        assert_eq!((mix.len(), mix.len()), (left.len(), right.len()));
        let mean = left.iter().zip(&right).map(|(l, r)| (l + r) / 2.0);
        assert!(mix.iter().zip(mean).all(|(mix, mean)| (mix - mean).abs() < 1e-5), "{name}");
        assert!(AudioReader::open_channel(&fixture(name), Channel::Only(2)).is_err());
    }
}
