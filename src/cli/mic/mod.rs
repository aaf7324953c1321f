//! Live capture: what a microphone hears, without long silence, and bounded however slow the rest is.
//!
//! Samples come from a [`CaptureSource`], which blocks until there are some. Silence beyond 0.6 s is left out, as
//! voxtral.c does, and what was heard before it is worked on at once. Who cannot keep up loses audio, with a warning that
//! says how much, but never the stream.

#[cfg(microphone)]
mod device;
#[cfg(not(microphone))]
mod missing;

use voxtral::audio::{AudioReader, SAMPLE_RATE};

#[cfg(microphone)]
pub use self::device::{names, open};
#[cfg(not(microphone))]
pub use self::missing::{names, open};

/// Samples that are judged together: 10 ms.
const WINDOW: usize = SAMPLE_RATE as usize / 100;
/// Windows with less than this root mean square, some -54 dB of full scale, are silent.
const SILENCE: f32 = 0.002;
/// Silent windows in a row that are kept: pauses between words, and the model's delay.
const N_KEPT: usize = 60;
/// Samples waiting that mean that the rest cannot keep up, and how many of them are kept then: 5 s and 1 s.
const MAX_BACKLOG: usize = 5 * SAMPLE_RATE as usize;
const KEPT_BACKLOG: usize = SAMPLE_RATE as usize;

/// Where live samples come from.
pub trait CaptureSource {
    /// Appends mono samples at 16 kHz, waiting until there are some; how many. 0 is the end.
    ///
    /// # Errors
    /// When the device fails or goes away.
    fn read(&mut self, samples: &mut Vec<f32>) -> voxtral::Result<usize>;
}

impl CaptureSource for AudioReader {
    fn read(&mut self, samples: &mut Vec<f32>) -> voxtral::Result<usize> {
        self.read(samples)
    }
}

/// What became of samples that were offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    Taken,
    /// Not now.
    Busy,
    /// Nobody listens any more.
    Closed,
}

/// Offers what a source captures to `take`, which gets samples and whether silence follows them, until either ends.
///
/// # Errors
/// The source's; what it captured before has been offered.
pub fn capture(
    mut source: impl CaptureSource,
    mut take: impl FnMut(&mut Vec<f32>, bool) -> Offer,
) -> voxtral::Result<()> {
    let mut trimmer = Trimmer::default();
    let mut captured = Vec::new();
    let mut backlog = Backlog::default();
    loop {
        captured.clear();
        let read = source.read(&mut captured);
        let pauses = trimmer.push(&captured, &mut backlog.samples);
        backlog.pauses |= pauses;
        if matches!(read, Ok(0) | Err(_)) {
            trimmer.finish(&mut backlog.samples);
        }
        match backlog.offer(&mut take) {
            Offer::Closed => return Ok(()),
            Offer::Taken | Offer::Busy => {}
        }
        if read? == 0 {
            tracing::debug!(seconds = seconds(trimmer.n_skipped), "silence left out");
            return Ok(());
        }
    }
}

fn seconds(n_samples: usize) -> f64 {
    n_samples as f64 / f64::from(SAMPLE_RATE)
}

/// Leaves out long silence.
#[derive(Debug, Default)]
struct Trimmer {
    /// Samples that don't fill a window yet.
    rest: Vec<f32>,
    n_silent: usize,
    n_skipped: usize,
}

impl Trimmer {
    /// Appends what is to be heard of these samples to `heard`; whether a long silence began.
    fn push(&mut self, samples: &[f32], heard: &mut Vec<f32>) -> bool {
        self.rest.extend_from_slice(samples);
        let mut pauses = false;
        let (windows, rest) = self.rest.as_chunks::<WINDOW>();
        for window in windows {
            let energy: f32 = window.iter().map(|x| x * x).sum();
            let is_silent = (energy / WINDOW as f32).sqrt() <= SILENCE;
            self.n_silent = if is_silent { self.n_silent + 1 } else { 0 };
            if self.n_silent <= N_KEPT {
                heard.extend_from_slice(window);
            } else {
                pauses |= self.n_silent == N_KEPT + 1;
                self.n_skipped += WINDOW;
            }
        }
        let n_rest = rest.len();
        self.rest.drain(..self.rest.len() - n_rest);
        pauses
    }

    /// Appends what is left at the end.
    fn finish(&mut self, heard: &mut Vec<f32>) {
        heard.append(&mut self.rest);
    }
}

/// Samples that nobody took yet.
#[derive(Debug, Default)]
struct Backlog {
    samples: Vec<f32>,
    pauses: bool,
    /// Whether the user knows that it is too much.
    has_warned: bool,
}

impl Backlog {
    fn offer(&mut self, take: &mut impl FnMut(&mut Vec<f32>, bool) -> Offer) -> Offer {
        if self.samples.is_empty() && !self.pauses {
            return Offer::Taken;
        }
        let offer = take(&mut self.samples, self.pauses);
        if offer == Offer::Taken {
            self.samples.clear();
            self.pauses = false;
            self.has_warned = false;
        } else if self.samples.len() > MAX_BACKLOG {
            let n_lost = self.samples.len() - KEPT_BACKLOG;
            self.samples.drain(..n_lost);
            if !self.has_warned {
                tracing::warn!("can't keep up: {:.1} s of audio left out", seconds(n_lost));
                self.has_warned = true;
            }
        }
        offer
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, Instant};

    use super::*;

    const SPEECH: f32 = 0.1;

    /// A file that takes as long as its audio, divided by `speed`, and may break.
    struct Paced {
        samples: Vec<f32>,
        position: usize,
        start: Instant,
        speed: f64,
        piece: usize,
        breaks: bool,
    }

    impl Paced {
        fn new(samples: Vec<f32>, speed: f64, piece: usize) -> Self {
            Self { samples, position: 0, start: Instant::now(), speed, piece, breaks: false }
        }
    }

    impl CaptureSource for Paced {
        fn read(&mut self, samples: &mut Vec<f32>) -> voxtral::Result<usize> {
            let end = (self.position + self.piece).min(self.samples.len());
            let due = Duration::from_secs_f64(seconds(end) / self.speed);
            std::thread::sleep(due.saturating_sub(self.start.elapsed()));
            samples.extend(&self.samples[self.position..end]);
            let n = end - self.position;
            self.position = end;
            match (n, self.breaks) {
                (0, true) => Err(voxtral::Error::AudioIo(std::io::ErrorKind::NotConnected.into())),
                _ => Ok(n),
            }
        }
    }

    fn recording(name: &str) -> Vec<f32> {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("samples").join(name);
        let mut reader = AudioReader::open(&path).unwrap();
        let mut samples = Vec::new();
        while reader.read(&mut samples).unwrap() > 0 {}
        samples
    }

    /// Everything taken from a source, and after how many samples of it there were pauses.
    fn take_all(source: impl CaptureSource) -> (voxtral::Result<()>, Vec<f32>, Vec<usize>) {
        let (mut heard, mut pauses) = (Vec::new(), Vec::new());
        let result = capture(source, |samples, pause| {
            heard.append(samples);
            if pause {
                pauses.push(heard.len());
            }
            Offer::Taken
        });
        (result, heard, pauses)
    }

    #[test]
    fn speech_passes_unchanged_in_real_time() {
        let samples: Vec<f32> = recording("kal_computer.wav")[8000..24_000].to_vec();
        let loudest = samples.chunks(WINDOW).map(|w| w.iter().map(|x| x * x).sum::<f32>()).fold(0.0, f32::max);
        assert!(loudest > 0.1, "speech");
        let start = Instant::now();
        let (result, heard, _) = take_all(Paced::new(samples.clone(), 1.0, 777));
        assert!(result.is_ok() && start.elapsed() >= Duration::from_secs(1));
        assert_eq!(heard, samples);
    }

    #[test]
    fn long_silence_is_left_out_whatever_the_pieces() {
        let second = SAMPLE_RATE as usize;
        let mut samples = vec![SPEECH; second];
        samples.extend(vec![0.0; 3 * second]);
        samples.extend(vec![SPEECH; second / 2]);
        samples.extend(vec![SILENCE / 2.0; second / 2]); // a pause between words
        samples.extend(vec![SPEECH; 100]);
        let kept = second + N_KEPT * WINDOW;
        for piece in [1, 159, 160, 161, 4800, 1 << 20] {
            let (result, heard, pauses) = take_all(Paced::new(samples.clone(), f64::INFINITY, piece));
            assert!(result.is_ok());
            assert_eq!(heard.len(), kept + second + 100, "{piece}");
            assert_eq!(&heard[kept..kept + 10], [SPEECH; 10]);
            let expected = if piece == 1 << 20 { heard.len() } else { kept };
            assert!(pauses.len() == 1 && pauses[0] >= kept && pauses[0] <= expected.max(kept + piece), "{pauses:?}");
        }
    }

    #[test]
    fn who_cannot_keep_up_loses_the_oldest_and_goes_on() {
        let samples: Vec<f32> = (0..20 * SAMPLE_RATE as usize).map(|i| 1.0 + i as f32).collect();
        let mut heard = Vec::new();
        let mut n_busy = 0;
        let result = capture(Paced::new(samples.clone(), f64::INFINITY, 16_000), |samples, _| {
            assert!(samples.len() <= MAX_BACKLOG + 16_000);
            n_busy += 1;
            if (5..=15).contains(&n_busy) {
                return Offer::Busy;
            }
            heard.append(samples);
            Offer::Taken
        });
        assert!(result.is_ok());
        assert_eq!(heard[..64_000], samples[..64_000]);
        assert!(heard.len() < samples.len() && heard.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!(heard.last(), samples.last());
    }

    #[test]
    fn an_unplugged_device_is_an_error_after_what_it_heard() {
        let source = Paced { breaks: true, ..Paced::new(vec![SPEECH; 1000], f64::INFINITY, 300) };
        let (result, heard, _) = take_all(source);
        assert_eq!(heard.len(), 1000);
        assert!(matches!(result, Err(voxtral::Error::AudioIo(_))));
    }

    #[test]
    fn capture_ends_when_nobody_listens() {
        let mut n = 0;
        let result = capture(Paced::new(vec![SPEECH; 10_000], f64::INFINITY, 100), |_, _| {
            n += 1;
            Offer::Closed
        });
        assert!(result.is_ok() && n <= 2);
    }
}
