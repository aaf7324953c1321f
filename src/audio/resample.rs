//! Band-limited resampling of mono samples to 16 kHz.
//!
//! In: samples at one rate, in pieces of any size. Out: samples at 16 kHz, number 0 at the time of input number 0,
//! `ceil(inputs * 16000 / rate)` in all. The result does not depend on the sizes of the pieces, because the resampler
//! always works on blocks of one size. Input at 16 kHz passes through unchanged.

use rubato::audioadapter_buffers::direct::InterleavedSlice;
use rubato::{Fft, FixedSync, Resampler as _};

use super::SAMPLE_RATE;
use crate::{Error, Result};

/// Rates that are accepted, in Hz.
pub(super) const RATES: std::ops::RangeInclusive<u32> = 1_000..=768_000;

/// Smallest blocks, in samples. The filter is as long as a block, so these set where the pass band ends: some 400
/// samples at the lower of the two rates are flat within 0.1 dB up to 90 % of its band.
const MIN_BLOCK_IN: u64 = 512;
const MIN_BLOCK_OUT: u64 = 384;

/// Longest smallest block, in samples, that is doubled to be even.
const MAX_EVEN_UNIT: u64 = 8192;

/// Resampler of one stream.
pub(super) struct Resampler {
    rate: u32,
    /// `None`: the input has the output's rate.
    inner: Option<Blocks>,
}

struct Blocks {
    fft: Fft<f32>,
    /// Input that does not fill a block yet.
    waiting: Vec<f32>,
    block_out: Vec<f32>,
    /// Output still to be dropped: the filter's delay.
    skip: usize,
    n_in: u64,
    n_out: u64,
}

impl Resampler {
    /// For input that has the output's rate already.
    pub(super) fn passing() -> Self {
        Self { rate: SAMPLE_RATE, inner: None }
    }

    /// Fails when `rate` is outside [`RATES`].
    pub(super) fn new(rate: u32) -> Result<Self> {
        check_rate(rate)?;
        Ok(Self { rate, inner: (rate != SAMPLE_RATE).then(|| Blocks::new(rate)).transpose()? })
    }

    pub(super) fn rate(&self) -> u32 {
        self.rate
    }

    /// Takes `input` and appends the output that is ready.
    pub(super) fn push(&mut self, input: &[f32], out: &mut Vec<f32>) -> Result<()> {
        match &mut self.inner {
            Some(blocks) => blocks.push(input, out),
            None => {
                out.extend_from_slice(input);
                Ok(())
            }
        }
    }

    /// Appends the rest of the output. The resampler is then as new.
    pub(super) fn finish(&mut self, out: &mut Vec<f32>) -> Result<()> {
        match &mut self.inner {
            Some(blocks) => blocks.finish(self.rate, out),
            None => Ok(()),
        }
    }
}

pub(super) fn check_rate(rate: u32) -> Result<()> {
    if RATES.contains(&rate) {
        return Ok(());
    }
    let (low, high) = (RATES.start(), RATES.end());
    Err(Error::UnsupportedAudio(format!("a sample rate of {rate} Hz; {low} to {high} Hz are read")))
}

impl Blocks {
    fn new(rate: u32) -> Result<Self> {
        // Blocks are multiples of the smallest pair with the exact ratio. Rates that share no factor with 16000 make that
        // pair a second long, which still costs little.
        let shared = u64::from(gcd(rate, SAMPLE_RATE));
        let (unit_in, unit_out) = (u64::from(rate) / shared, u64::from(SAMPLE_RATE) / shared);
        let units = MIN_BLOCK_IN.div_ceil(unit_in).max(MIN_BLOCK_OUT.div_ceil(unit_out));
        // The delay is half a block: exact if that is a whole number of samples, else half a sample off.
        let block = unit_in * if unit_in <= MAX_EVEN_UNIT { units.next_multiple_of(2) } else { units };
        let fft = Fft::new(rate as usize, SAMPLE_RATE as usize, block as usize, 1, FixedSync::Both)
            .map_err(|error| Error::UnsupportedAudio(format!("a sample rate of {rate} Hz: {error}")))?;
        Ok(Self {
            waiting: Vec::with_capacity(fft.input_frames_next()),
            block_out: vec![0.0; fft.output_frames_next()],
            skip: fft.output_delay(),
            n_in: 0,
            n_out: 0,
            fft,
        })
    }

    fn push(&mut self, mut input: &[f32], out: &mut Vec<f32>) -> Result<()> {
        self.n_in += input.len() as u64;
        let block_in = self.fft.input_frames_next();
        while !input.is_empty() {
            let (now, later) = input.split_at(input.len().min(block_in - self.waiting.len()));
            self.waiting.extend_from_slice(now);
            input = later;
            if self.waiting.len() == block_in {
                self.block(u64::MAX, out)?;
            }
        }
        Ok(())
    }

    fn finish(&mut self, rate: u32, out: &mut Vec<f32>) -> Result<()> {
        let total = (u128::from(self.n_in) * u128::from(SAMPLE_RATE)).div_ceil(u128::from(rate)) as u64;
        while self.n_out < total {
            self.waiting.resize(self.fft.input_frames_next(), 0.0);
            self.block(total, out)?;
        }
        self.fft.reset();
        self.waiting.clear();
        (self.skip, self.n_in, self.n_out) = (self.fft.output_delay(), 0, 0);
        Ok(())
    }

    /// Resamples the full block in `waiting`, keeping the whole output within `total` samples.
    fn block(&mut self, total: u64, out: &mut Vec<f32>) -> Result<()> {
        let failed = |error: &dyn std::fmt::Display| Error::Backend(format!("resampling: {error}"));
        let n_out = self.block_out.len();
        let input = InterleavedSlice::new(&self.waiting, 1, self.waiting.len()).map_err(|error| failed(&error))?;
        let mut output = InterleavedSlice::new_mut(&mut self.block_out, 1, n_out).map_err(|error| failed(&error))?;
        self.fft.process_into_buffer(&input, &mut output, None).map_err(|error| failed(&error))?;
        self.waiting.clear();
        let skipped = self.skip.min(n_out);
        self.skip -= skipped;
        let wanted = usize::try_from(total - self.n_out).unwrap_or(usize::MAX);
        let kept = &self.block_out[skipped..];
        let kept = &kept[..kept.len().min(wanted)];
        self.n_out += kept.len() as u64;
        out.extend_from_slice(kept);
        Ok(())
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}
