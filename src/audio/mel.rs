//! Samples to log-mel frames, incrementally.
//!
//! Frame `k` is centred on sample `160 k` of the stream and sees samples `160 k - 200 .. 160 k + 200`, those before the
//! stream being zeros. A frame depends on its samples alone, so the frames are the same however the samples arrive.
//! Formulas: model-independent ones of Slaney's Auditory Toolbox for the filters, and the clamps of the official feature
//! extractor for the logarithm.

use std::sync::Arc;

use rayon::prelude::*;
use realfft::num_complex::Complex32;
use realfft::{RealFftPlanner, RealToComplex};

use super::SAMPLE_RATE;

/// Samples of one frame, and of the FFT.
pub const WINDOW: usize = 400;
/// Samples between frames.
pub const HOP: usize = 160;

const N_BINS: usize = WINDOW / 2 + 1;
/// Samples transformed to frames before the consumed ones are dropped from the buffer.
const COMPACT_AT: usize = 1 << 14;
/// Frames that one thread computes at a time; fewer are not worth a second thread.
const FRAMES_PER_TASK: usize = 128;

/// What all streams of a model share: the window, the filters, the FFT plan.
pub struct MelFilters {
    n_mels: usize,
    /// Logarithms (base 10) below this are raised to it.
    log_floor: f32,
    hann: [f32; WINDOW],
    /// Non-zero part of each triangular filter: first FFT bin and weights.
    filters: Vec<(usize, Vec<f32>)>,
    fft: Arc<dyn RealToComplex<f32>>,
}

impl std::fmt::Debug for MelFilters {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MelFilters({})", self.n_mels)
    }
}

impl MelFilters {
    /// `n_mels` triangles from 0 Hz to 8 kHz, on Slaney's scale and with his area normalisation.
    pub fn new(n_mels: usize, log_mel_max: f32) -> Self {
        let log_step = 6.4f64.ln() / 27.0;
        let to_mel = |hz: f64| if hz < 1000.0 { 3.0 * hz / 200.0 } else { 15.0 + (hz / 1000.0).ln() / log_step };
        let to_hz = |mel: f64| if mel < 15.0 { 200.0 * mel / 3.0 } else { 1000.0 * ((mel - 15.0) * log_step).exp() };
        let nyquist = f64::from(SAMPLE_RATE) / 2.0;
        let corner = |i: usize| to_hz(to_mel(nyquist) * i as f64 / (n_mels + 1) as f64);
        let filters = (0..n_mels)
            .map(|i| {
                let (low, centre, high) = (corner(i), corner(i + 1), corner(i + 2));
                let weight = |bin: usize| {
                    let hz = nyquist * bin as f64 / (N_BINS - 1) as f64;
                    let triangle = ((hz - low) / (centre - low)).min((high - hz) / (high - centre)).max(0.0);
                    (triangle * 2.0 / (high - low)) as f32
                };
                let first = (0..N_BINS).find(|&bin| weight(bin) > 0.0).unwrap_or(0);
                (first, (first..N_BINS).map(weight).take_while(|&w| w > 0.0).collect())
            })
            .collect();
        Self {
            n_mels,
            log_floor: log_mel_max - 8.0,
            hann: std::array::from_fn(|i| {
                let phase = std::f64::consts::TAU * i as f64 / WINDOW as f64;
                (0.5 - 0.5 * phase.cos()) as f32
            }),
            filters,
            fft: RealFftPlanner::new().plan_fft_forward(WINDOW),
        }
    }

    /// Mel bins of a frame.
    pub fn n_mels(&self) -> usize {
        self.n_mels
    }

    /// The frames that begin at every [`HOP`]th of these samples, `[n_frames, n_mels]`.
    fn frames(&self, samples: &[f32], out: &mut [f32], work: &mut Work) {
        for (frame, out) in samples.windows(WINDOW).step_by(HOP).zip(out.chunks_exact_mut(self.n_mels)) {
            for ((x, &sample), &window) in work.input.iter_mut().zip(frame).zip(&self.hann) {
                *x = sample * window;
            }
            self.fft
                .process_with_scratch(&mut work.input, &mut work.spectrum, &mut work.scratch)
                .expect("buffers come from this plan");
            for (out, (first, weights)) in out.iter_mut().zip(&self.filters) {
                let bins = &work.spectrum[*first..];
                let energy: f32 = bins.iter().zip(weights).map(|(c, &w)| c.norm_sqr() * w).sum();
                let log = energy.max(1e-10).log10().max(self.log_floor);
                *out = (log + 4.0) / 4.0;
            }
        }
    }
}

/// Buffers of the FFT.
struct Work {
    input: Vec<f32>,
    spectrum: Vec<Complex32>,
    scratch: Vec<Complex32>,
}

impl Work {
    fn new(filters: &MelFilters) -> Self {
        let fft = &filters.fft;
        Self { input: fft.make_input_vec(), spectrum: fft.make_output_vec(), scratch: fft.make_scratch_vec() }
    }
}

/// One stream's way from samples to frames.
pub struct MelStream {
    filters: Arc<MelFilters>,
    /// Samples from the start of the next frame on; the first `start` ones are consumed.
    samples: Vec<f32>,
    start: usize,
    work: Work,
}

impl MelStream {
    /// A stream that begins with `left_pad` zero samples.
    pub fn new(filters: Arc<MelFilters>, left_pad: usize) -> Self {
        Self { samples: vec![0.0; WINDOW / 2 + left_pad], start: 0, work: Work::new(&filters), filters }
    }

    /// Takes more samples.
    pub fn push(&mut self, samples: &[f32]) {
        self.samples.extend_from_slice(samples);
    }

    /// Takes `n` zero samples.
    pub fn push_silence(&mut self, n: usize) {
        self.samples.resize(self.samples.len() + n, 0.0);
    }

    /// Frames that can be computed now.
    pub fn available(&self) -> usize {
        let samples = self.samples.len() - self.start;
        if samples < WINDOW { 0 } else { (samples - WINDOW) / HOP + 1 }
    }

    /// Appends the next `n_frames` frames, `[n_frames, n_mels]`; no more than [`available`](Self::available).
    pub fn take(&mut self, n_frames: usize, out: &mut Vec<f32>) {
        assert!(n_frames <= self.available(), "frames taken that are not there");
        let (filters, n_mels, first) = (&self.filters, self.filters.n_mels, out.len());
        out.resize(first + n_frames * n_mels, 0.0);
        let (samples, out) = (&self.samples[self.start..], &mut out[first..]);
        if n_frames <= FRAMES_PER_TASK {
            filters.frames(samples, out, &mut self.work);
        } else {
            out.par_chunks_mut(FRAMES_PER_TASK * n_mels).enumerate().for_each_init(
                || Work::new(filters),
                |work, (i, out)| filters.frames(&samples[i * FRAMES_PER_TASK * HOP..], out, work),
            );
        }
        self.start += n_frames * HOP;
        if self.start >= COMPACT_AT {
            self.samples.drain(..self.start);
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(stream: &mut MelStream) -> Vec<f32> {
        let mut out = Vec::new();
        stream.take(stream.available(), &mut out);
        out
    }

    fn noise(n: usize) -> Vec<f32> {
        (0..n as u32).map(|i| (i.wrapping_mul(0x9E37_79B9) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    #[test]
    fn silence_is_exactly_minus_0_625() {
        let mut stream = MelStream::new(Arc::new(MelFilters::new(128, 1.5)), 1280);
        stream.push(&[0.0; 4000]);
        let mel = frames(&mut stream);
        assert!(mel.len() > 128 * 20 && mel.iter().all(|&x| x == -0.625));
    }

    #[test]
    fn frames_do_not_depend_on_how_samples_arrive() {
        let (filters, samples) = (Arc::new(MelFilters::new(128, 1.5)), noise(50_000));
        let mut whole = MelStream::new(filters.clone(), 320);
        whole.push(&samples);
        let expected = frames(&mut whole);
        for portion in [1, 159, 160, 401, 7777] {
            let (mut stream, mut got) = (MelStream::new(filters.clone(), 320), Vec::new());
            for part in samples.chunks(portion) {
                stream.push(part);
                stream.take(stream.available() / 2, &mut got);
            }
            got.extend(frames(&mut stream));
            assert_eq!(got, expected, "portions of {portion}");
        }
    }

    #[test]
    fn a_sine_peaks_in_its_filter() {
        let mut stream = MelStream::new(Arc::new(MelFilters::new(128, 1.5)), 0);
        let sine: Vec<f32> = (0..8000).map(|i| (i as f32 * std::f32::consts::TAU * 1000.0 / 16_000.0).sin()).collect();
        stream.push(&sine);
        let mel = frames(&mut stream);
        let frame = &mel[20 * 128..21 * 128];
        let peak = (0..128).max_by(|&a, &b| frame[a].total_cmp(&frame[b])).unwrap();
        // 1 kHz is mel 15 of 45.245..., and there are 129 steps
        assert!((41..=43).contains(&peak), "{peak}");
    }
}
