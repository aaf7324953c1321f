//! Decoding, resampling and errors of the audio input, through its public interface.
//!
//! The files in `tests/audio` (made by `make.sh` there) and the WAV files made here hold one signal, [`sweep`], so what
//! is decoded can be compared with what it should be.

mod files;
mod resampling;
mod streams;
mod wav;

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
