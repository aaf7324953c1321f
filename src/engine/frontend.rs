//! From the samples of a session to the frames of encoder calls: how much at a time, and how far ahead.

use std::collections::VecDeque;
use std::time::Duration;

use crate::audio::mel::MelStream;
use crate::audio::{SAMPLE_RATE, check_samples};
use crate::model::params::{FRAMES_PER_TOKEN, SAMPLES_PER_TOKEN};
use crate::{Error, Result};

/// Longest interval.
const MAX_INTERVAL: usize = 60 * SAMPLE_RATE as usize;
/// Longest stretch of audio that one encoder call takes of a stream, where the interval is not longer: where much audio is
/// there, calls begin at the interval and grow fourfold up to this.
const MAX_SLICE: usize = 30 * SAMPLE_RATE as usize;
/// The stretch that calls take of each of many streams: what an EOS inside it makes useless is not much, and together they
/// are work enough.
const BULK_SLICE: usize = 5 * SAMPLE_RATE as usize;
/// Embeddings made ahead of need for one of many streams, which leave each other no room for drafts.
const BULK_LOOKAHEAD: usize = 32;

/// The way of a segment's samples to the encoder.
pub(super) struct Frontend {
    mel: MelStream,
    /// Index of the segment's first sample in the session.
    start: u64,
    /// Samples taken from the session so far.
    n_fed: usize,
    /// Silence behind the audio, in tokens, and whether it has been added.
    right_pad: usize,
    padded: bool,
    /// Most samples to take at once.
    slice: usize,
    /// Frames of the next encoder call, kept until it succeeds.
    log_mel: Vec<f32>,
}

impl Frontend {
    /// For a segment that begins with sample `start` of its session, and ends with so many tokens of silence.
    pub fn new(mel: MelStream, start: u64, right_pad: usize) -> Self {
        Self { mel, start, n_fed: 0, right_pad, padded: false, slice: 0, log_mel: Vec::new() }
    }

    /// Index in the session of the segment's first sample.
    pub fn start(&self) -> u64 {
        self.start
    }

    /// Frames of the next encoder call; none until they are made.
    pub fn frames(&self) -> &[f32] {
        &self.log_mel
    }

    /// Forgets those frames: they are encoded.
    pub fn encoded(&mut self) {
        self.log_mel.clear();
    }

    /// Index in the session of the first sample not taken yet.
    pub fn fed_to(&self) -> u64 {
        self.start + self.n_fed as u64
    }

    /// Whether no more frames will come of what there is.
    pub fn is_dry(&self) -> bool {
        self.padded && self.log_mel.is_empty() && self.mel.available() < FRAMES_PER_TOKEN
    }

    /// Makes the frames of the next encoder call, if there are none yet and the audio for them is there; whether there
    /// are any then. Samples before `keep_from` are not needed any more.
    pub fn prepare(&mut self, input: &mut Input, keep_from: u64) -> bool {
        while self.log_mel.is_empty() {
            let n_tokens = self.mel.available() / FRAMES_PER_TOKEN;
            self.mel.take(n_tokens * FRAMES_PER_TOKEN, &mut self.log_mel);
            if n_tokens == 0 && !self.feed(input, keep_from) {
                return false;
            }
        }
        true
    }

    /// Takes the next slice of audio, and after the last the silence behind it; whether there was any to take.
    fn feed(&mut self, input: &mut Input, keep_from: u64) -> bool {
        let pending = (input.n_pushed - self.fed_to()) as usize;
        let gathered = if input.slices == Slices::Bulk { input.interval.max(BULK_SLICE) } else { input.interval };
        let mut fed = false;
        if pending > 0 && (input.finished || pending >= gathered || self.fed_to() < input.flush_to) {
            self.slice = match input.slices {
                Slices::Short => input.interval,
                Slices::Growing => (4 * self.slice).min(MAX_SLICE).max(input.interval),
                Slices::Bulk => gathered,
            };
            let n = pending.min(self.slice.max(SAMPLES_PER_TOKEN));
            let first = (self.fed_to() - input.samples_start) as usize;
            let (front, back) = input.samples.as_slices();
            let split = front.len();
            self.mel.push(&front[first.min(split)..(first + n).min(split)]);
            self.mel.push(&back[first.saturating_sub(split)..(first + n).saturating_sub(split)]);
            self.n_fed += n;
            fed = true;
        }
        if input.finished && !self.padded && self.fed_to() == input.n_pushed {
            let to_whole = self.n_fed.next_multiple_of(SAMPLES_PER_TOKEN) - self.n_fed;
            self.mel.push_silence(to_whole + self.right_pad * SAMPLES_PER_TOKEN);
            self.padded = true;
            fed = true;
        }
        input.forget(keep_from.min(self.fed_to()));
        fed
    }
}

/// Samples of a session, and how they are to be worked on.
pub(super) struct Input {
    /// From `samples_start` on: those not taken yet, and those that a restart or a replay would begin with.
    samples: VecDeque<f32>,
    samples_start: u64,
    n_pushed: u64,
    interval: usize,
    slices: Slices,
    /// Samples before this index are worked on without waiting for an interval's worth.
    flush_to: u64,
    finished: bool,
}

impl Input {
    /// No samples yet. They are gathered for this long, a minute at most, before they are worked on.
    pub fn new(interval: Duration) -> Self {
        let interval = interval.as_secs_f64() * f64::from(SAMPLE_RATE);
        Self {
            samples: VecDeque::new(),
            samples_start: 0,
            n_pushed: 0,
            interval: (interval as usize).clamp(1, MAX_INTERVAL),
            slices: Slices::default(),
            flush_to: 0,
            finished: false,
        }
    }

    /// Appends samples.
    ///
    /// # Errors
    /// As for [`Session::push`](super::Session::push).
    pub fn push(&mut self, samples: &[f32]) -> Result<()> {
        if self.finished {
            return Err(Error::InvalidOption("samples pushed into a finished session".into()));
        }
        let checked = check_samples(samples, self.n_pushed);
        let n_good = match checked {
            Err(Error::InvalidSample { index, .. }) => (index - self.n_pushed) as usize,
            _ => samples.len(),
        };
        self.samples.extend(&samples[..n_good]);
        self.n_pushed += n_good as u64;
        checked
    }

    pub fn n_pushed(&self) -> u64 {
        self.n_pushed
    }

    /// Has samples before this index worked on without waiting for an interval's worth.
    pub fn flush(&mut self, to: u64) {
        self.flush_to = self.flush_to.max(to);
    }

    /// No more samples will come.
    pub fn finish(&mut self) {
        self.finished = true;
    }

    /// Whether there were no samples at all.
    pub fn is_empty(&self) -> bool {
        self.finished && self.n_pushed == 0
    }

    pub fn set_slices(&mut self, slices: Slices) {
        self.slices = slices;
    }

    /// Drops samples from this index on.
    pub fn truncate(&mut self, end: u64) {
        self.samples.truncate((end - self.samples_start) as usize);
        self.n_pushed = end;
    }

    /// Whether more samples are wanted, where those before this index are worked on: others wait in memory.
    pub fn wants_samples(&self, fed_to: u64) -> bool {
        let slices = if self.slices == Slices::Bulk { 2 * BULK_SLICE } else { MAX_SLICE };
        !self.finished && self.n_pushed - fed_to < slices.max(self.interval) as u64
    }

    /// Samples that are kept.
    #[cfg(test)]
    pub fn n_kept(&self) -> usize {
        self.samples.len()
    }

    /// Embeddings to make ahead of need, of so many at most.
    pub fn lookahead(&self, most: usize) -> usize {
        if self.slices == Slices::Bulk { BULK_LOOKAHEAD.min(most) } else { most }
    }

    /// Drops samples before this index.
    fn forget(&mut self, keep_from: u64) {
        if keep_from > self.samples_start {
            self.samples.drain(..(keep_from - self.samples_start) as usize);
            self.samples_start = keep_from;
        }
    }
}

/// Frames that can be made while the backend is at work on the same session.
pub(super) struct Ahead<'a> {
    frontend: &'a mut Frontend,
    input: &'a mut Input,
    keep_from: u64,
}

impl<'a> Ahead<'a> {
    pub fn new(frontend: &'a mut Frontend, input: &'a mut Input, keep_from: u64) -> Self {
        Self { frontend, input, keep_from }
    }

    pub fn prepare(self) {
        self.frontend.prepare(self.input, self.keep_from);
    }
}

/// How much audio is worked on at once, where much is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Slices {
    /// An interval's worth: somebody waits for other work.
    Short,
    /// From an interval's worth on always four times as much: first words come soon, and long audio goes fast.
    #[default]
    Growing,
    /// [`BULK_SLICE`], or all there is: nobody waits for first words.
    Bulk,
}
