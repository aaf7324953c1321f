//! Decoding, resampling and errors of the audio input, through its public interface.
//!
//! The files in `tests/audio` (made by `make.sh` there) and the WAV files made here hold one signal, [`sweep`], so what
//! is decoded can be compared with what it should be.

use std::f64::consts::PI;
use std::io::{Cursor, Read};
use std::path::{Path, PathBuf};

use voxtral::Error;
use voxtral::audio::AudioReader;

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

fn sweep_at(rate: u32, n: usize) -> Vec<f64> {
    (0..n).map(|i| sweep(i as f64 / f64::from(rate))).collect()
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
    AudioReader::from_stream(Cursor::new(bytes.into())).map(drain)
}

fn decode_file(name: &str) -> Vec<f32> {
    let (samples, error) = drain(AudioReader::open(&fixture(name)).unwrap());
    assert!(error.is_none(), "{name}: {error:?}");
    samples
}

/// Signal-to-noise ratio in dB of `got` from sample `got_start`, against the sweep from time 0, without the last 50 ms.
fn snr(got: &[f32], lag: i64) -> f64 {
    let (mut signal, mut noise) = (0.0, 0.0);
    for i in 100..got.len().min(16_000) as i64 - 800 {
        let want = sweep(i as f64 / 16_000.0);
        let Some(&got) = got.get((i + lag) as usize) else { break };
        signal += want * want;
        noise += (want - f64::from(got)).powi(2);
    }
    10.0 * (signal / noise).log10()
}

#[test]
fn measure() {
    let mut names: Vec<_> =
        std::fs::read_dir(fixture("")).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    for name in names {
        match AudioReader::open(&fixture(&name)) {
            Err(e) => println!("{name:18} ERR {e}"),
            Ok(r) => {
                let (d, desc) = (r.duration(), r.description().to_owned());
                let (s, e) = drain(r);
                let best = (-100..3000).max_by(|a, b| snr(&s, *a).total_cmp(&snr(&s, *b))).unwrap();
                println!(
                    "{name:18} {desc}; {d:?}; n={} snr0={:.1} best lag {best} snr {:.1} {e:?}",
                    s.len(),
                    snr(&s, 0),
                    snr(&s, best)
                );
                let st = decode_stream(bytes_of(&name));
                match st {
                    Err(e) => println!("    stream ERR {e}"),
                    Ok((s2, e)) => println!("    stream same={} n={} {e:?}", s2 == s, s2.len()),
                }
            }
        }
    }
}

#[test]
fn fuzz() {
    let mut seed = 1_u64;
    let mut random = move |below: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    let dir = tempfile::tempdir().unwrap();
    let mut names: Vec<_> = std::fs::read_dir(fixture(""))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n != "make.sh")
        .collect();
    names.sort();
    for name in names {
        let original = bytes_of(&name);
        for round in 0..40 {
            let mut bytes = original.clone();
            if round % 2 == 0 {
                bytes.truncate(random(original.len()));
            }
            if round % 4 != 0 && !bytes.is_empty() {
                for _ in 0..1 + random(8) {
                    let at = if round % 3 == 0 { random(bytes.len().min(200)) } else { random(bytes.len()) };
                    bytes[at] = random(256) as u8;
                }
            }
            let path = dir.path().join("damaged");
            std::fs::write(&path, &bytes).unwrap();
            let t = std::time::Instant::now();
            let r = std::panic::catch_unwind(|| AudioReader::open(&path).map(drain));
            let r2 = std::panic::catch_unwind(|| decode_stream(bytes.clone()));
            if r.is_err() || r2.is_err() {
                std::fs::write(format!("/tmp/fuzz/{name}.{round}"), &bytes).unwrap();
                println!("PANIC {name} {round}");
            }
            if t.elapsed().as_millis() > 300 {
                std::fs::write(format!("/tmp/fuzz/slow-{name}.{round}"), &bytes).unwrap();
                println!("SLOW {name} {round} {:?}", t.elapsed());
            }
            if round % 4 == 0
                && let Ok(r) = r
                && let Ok(r2) = r2
            {
                let show = |r: Result<(Vec<f32>, Option<Error>), Error>| match r {
                    Err(e) => format!("ERR {e}"),
                    Ok((s, e)) => format!("{} {:?}", s.len(), e.map(|e| e.to_string())),
                };
                if round < 12 {
                    println!("{name} cut {}/{}: {} | {}", bytes.len(), original.len(), show(r), show(r2));
                }
            }
        }
    }
}
