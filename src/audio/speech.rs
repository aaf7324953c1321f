//! Whether a stretch of audio is speech, by what its voice does: for deciding whether silence of the model is a fault.
//!
//! In: samples. Out: how much of it sounds like somebody talking. Speech differs from music and from most noise in that
//! its pitch is hardly ever still and hardly ever jumps: it glides, in short voiced stretches with others between, and
//! its level falls and rises by the syllable. On the shipped recordings and a historical one, 47 to 92 % of the steps of
//! 10 ms in voiced stretches are glides (medians over windows of 2 s); of synthetic music, vibrato included, at most
//! 21 %. This takes some 3 million products for a second of audio, so it is for stretches that are in doubt.

/// Half of the sample rate of its input.
const RATE: usize = 8000;
/// Frames begin every 10 ms and are 40 ms long.
const HOP: usize = RATE / 100;
const FRAME: usize = RATE / 25;
/// Periods looked for: pitches of 400 to 73 Hz.
const MIN_LAG: usize = 20;
const MAX_LAG: usize = 110;
/// Normalised autocorrelation from which a frame is voiced.
const VOICED: f32 = 0.7;
/// A step of the pitch from one frame to the next is a glide from 0.2 % on, and a jump from 8 % on.
const GLIDE: std::ops::Range<f32> = 0.002..0.08;
/// Frames this much above the quietest tenth, and above this level in dBFS, are not silence.
const ABOVE_FLOOR_DB: f32 = 9.0;
const SILENCE_DB: f32 = -60.0;
/// A window is 2 s long; one begins every second.
const WINDOW: usize = 200;
const STEP: usize = 100;

/// One frame of audio.
#[derive(Debug, Clone, Copy)]
struct Frame {
    /// Level in dBFS.
    level: f32,
    /// The period in samples, where it has one.
    period: Option<f32>,
}

/// How many milliseconds of 16 kHz audio sound like speech, to the second. Less than two seconds are too few to tell.
pub fn speech_ms(samples: &[f32]) -> u64 {
    let frames = frames(&halved(samples));
    let mut is_speech = vec![false; frames.len() / STEP + 1];
    for (i, start) in (0..(frames.len() + 1).saturating_sub(WINDOW)).step_by(STEP).enumerate() {
        if sounds_like_speech(&frames[start..start + WINDOW]) {
            is_speech[i] = true;
            is_speech[i + 1] = true;
        }
    }
    1000 * is_speech.into_iter().filter(|&second| second).count() as u64
}

/// Every second sample of a smoothed signal.
fn halved(samples: &[f32]) -> Vec<f32> {
    samples.windows(3).step_by(2).map(|x| 0.25 * x[0] + 0.5 * x[1] + 0.25 * x[2]).collect()
}

fn frames(signal: &[f32]) -> Vec<Frame> {
    let starts = (0..signal.len().saturating_sub(FRAME + MAX_LAG)).step_by(HOP);
    let level = |start: usize| {
        let power: f32 = signal[start..start + FRAME].iter().map(|x| x * x).sum();
        10.0 * (power / FRAME as f32 + 1e-10).log10()
    };
    let levels: Vec<f32> = starts.clone().map(level).collect();
    let threshold = (percentile(&levels, 10) + ABOVE_FLOOR_DB).max(SILENCE_DB);
    let frame = |(start, level)| {
        let period = if level > threshold { period(&signal[start..start + FRAME + MAX_LAG + 1]) } else { None };
        Frame { level, period }
    };
    starts.zip(levels).map(frame).collect()
}

/// The period of a signal in samples; none if it has no clear one.
fn period(signal: &[f32]) -> Option<f32> {
    let frame = &signal[..FRAME];
    let power = |start: usize| -> f32 { signal[start..start + FRAME].iter().map(|x| x * x).sum() };
    let own = power(0);
    let mut shifted = power(MIN_LAG);
    let mut correlations = [0.0; MAX_LAG - MIN_LAG + 1];
    for (i, correlation) in correlations.iter_mut().enumerate() {
        let lag = MIN_LAG + i;
        let product: f32 = frame.iter().zip(&signal[lag..]).map(|(a, b)| a * b).sum();
        *correlation = product / (own * shifted).sqrt().max(1e-12);
        if lag < MAX_LAG {
            shifted += signal[lag + FRAME] * signal[lag + FRAME] - signal[lag] * signal[lag];
            shifted = shifted.max(0.0);
        }
    }
    let best = correlations.iter().copied().fold(0.0, f32::max);
    if best <= VOICED {
        return None;
    }
    // multiples of the period correlate as well: the first peak that is nearly as high
    let peak = (1..correlations.len() - 1).find(|&i| {
        let [a, b, c] = [correlations[i - 1], correlations[i], correlations[i + 1]];
        b >= a && b >= c && b > 0.9 * best
    })?;
    let [a, b, c] = [correlations[peak - 1], correlations[peak], correlations[peak + 1]];
    let curvature = a - 2.0 * b + c;
    let offset = if curvature < -1e-9 { 0.5 * (a - c) / curvature } else { 0.0 };
    Some((MIN_LAG + peak) as f32 + offset)
}

fn sounds_like_speech(window: &[Frame]) -> bool {
    let levels: Vec<f32> = window.iter().map(|frame| frame.level).collect();
    let depth = percentile(&levels, 90) - percentile(&levels, 15);
    let n_voiced = window.iter().filter(|frame| frame.period.is_some()).count();
    let (mut n_steps, mut n_glides, mut n_turns) = (0, 0, 0);
    for pair in window.windows(2) {
        match (pair[0].period, pair[1].period) {
            (Some(a), Some(b)) => {
                n_steps += 1;
                n_glides += usize::from(GLIDE.contains(&(b / a).ln().abs()));
            }
            (None, None) => {}
            _ => n_turns += 1,
        }
    }
    depth >= 9.0 && n_voiced >= window.len() / 10 && n_turns >= 4 && 100 * n_glides >= 35 * n_steps
}

/// The value that this many per cent are below of.
fn percentile(values: &[f32], percent: usize) -> f32 {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f32::total_cmp);
    sorted.get(sorted.len() * percent / 100).copied().unwrap_or(0.0)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::f32::consts::TAU;

    use super::*;

    const SAMPLE_RATE: usize = 16_000;

    pub(crate) fn recording(name: &str) -> Vec<f32> {
        let path = format!("{}/samples/{name}.wav", env!("CARGO_MANIFEST_DIR"));
        let mut wav = hound::WavReader::open(path).unwrap();
        wav.samples::<i16>().map(|sample| f32::from(sample.unwrap()) / 32768.0).collect()
    }

    fn noise(i: usize) -> f32 {
        let hash = (i as u32).wrapping_mul(0x9E37_79B9).rotate_left(13).wrapping_mul(0x85EB_CA6B);
        let hash = (hash ^ (hash >> 15)).wrapping_mul(0xC2B2_AE35);
        (hash >> 8) as f32 / (1 << 23) as f32 - 1.0
    }

    /// Twelve seconds of a function of time in seconds and of the sample's index.
    pub(crate) fn sound(f: impl Fn(f32, usize) -> f32) -> Vec<f32> {
        (0..12 * SAMPLE_RATE).map(|i| f(i as f32 / SAMPLE_RATE as f32, i)).collect()
    }

    fn tone(frequency: f32, t: f32) -> f32 {
        (1..8).map(|k| (TAU * frequency * k as f32 * t).sin() / k as f32).sum()
    }

    /// A melody of notes of 0.3 s that decay by this much a second.
    fn melody(t: f32, base: f32, decay: f32) -> f32 {
        let note = (t / 0.3) as usize;
        let frequency = base * 2f32.powf((note * 7 % 13) as f32 / 12.0);
        tone(frequency, t) * (-decay * (t % 0.3)).exp()
    }

    /// What music and noises sound like, roughly.
    pub(crate) fn not_speech() -> Vec<(&'static str, Vec<f32>)> {
        let drums = |t: f32, i: usize| {
            let since = t % 0.25;
            match (t / 0.25) as usize % 2 {
                0 => (TAU * (50.0 + 80.0 * (-30.0 * since).exp()) * since).sin() * (-12.0 * since).exp(),
                _ => noise(i) * (-18.0 * since).exp(),
            }
        };
        vec![
            ("silence", sound(|_, _| 0.0)),
            ("noise", sound(|_, i| 0.05 * noise(i))),
            ("waves", sound(|t, i| 0.05 * noise(i) * (1.0 + (TAU * 4.0 * t).sin()))),
            ("hum", sound(|t, _| 0.1 * (TAU * 100.0 * t).sin().signum())),
            ("beeps", sound(|t, _| if t % 0.5 < 0.25 { 0.2 * (TAU * 1000.0 * t).sin() } else { 0.0 })),
            ("telephone", sound(|t, _| if t % 2.0 < 1.0 { 0.1 * (tone(440.0, t) + tone(480.0, t)) } else { 0.0 })),
            ("clicks", sound(|t, i| 0.3 * noise(i) * (-100.0 * (t % 0.17)).exp())),
            ("plucked", sound(|t, _| 0.2 * melody(t, 220.0, 8.0))),
            ("low", sound(|t, _| 0.2 * melody(t, 110.0, 3.0))),
            ("chords", sound(|t, _| 0.1 * (melody(t, 220.0, 5.0) + melody(t, 277.2, 5.0) + melody(t, 329.6, 5.0)))),
            ("vibrato", sound(|t, _| 0.2 * melody(t + 0.0002 * (TAU * 5.5 * t).sin(), 330.0, 1.0))),
            ("drums", sound(|t, i| 0.3 * drums(t, i))),
            ("band", sound(|t, i| 0.2 * drums(t, i) + 0.1 * melody(t, 220.0, 2.0) + 0.1 * melody(t, 110.0, 8.0))),
        ]
    }

    #[test]
    fn speech_is_told_from_music_and_noise() {
        for name in ["awb_library", "espeak_us_garden", "hibari_intro", "kal_computer", "long_mixed", "slt_numbers"] {
            let samples = recording(name);
            let all = samples.len() as u64 / 16;
            let ms = speech_ms(&samples);
            assert!(ms >= 3000 && ms <= all, "{name}: {ms} of {all} ms");
            let noisy: Vec<_> = samples.iter().enumerate().map(|(i, x)| 0.3 * x + 0.005 * noise(i)).collect();
            assert!(speech_ms(&noisy) >= 2000, "{name} in noise: {} of {all} ms", speech_ms(&noisy));
        }
        assert_eq!(speech_ms(&recording("noise_only")), 0);
        for (name, samples) in not_speech() {
            assert_eq!(speech_ms(&samples), 0, "{name}");
        }
    }

    #[test]
    fn little_or_nothing_is_no_speech() {
        let speech = recording("hibari_intro");
        for n in [0, 1, 2, 319, 640, 16_000, 31_000] {
            assert_eq!(speech_ms(&speech[16_000..16_000 + n]), 0, "{n}");
        }
    }
}
