//! Resampling to 16 kHz, and channels.

use super::*;

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
