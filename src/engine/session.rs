//! One stream of audio: what was pushed, how far it is processed, what came out.
//!
//! Audio is worked through in whole tokens of 80 ms. A session consists of segments: each is what the official code does
//! with one file (left padding, prompt, greedy decoding), and where a segment says EOS with audio left, the next begins
//! with the audio after the moment that the EOS speaks of.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::audio::SAMPLE_RATE;
use crate::audio::mel::{MelFilters, MelStream};
use crate::backend::{Backend, MAX_REWIND, Prediction, Span};
use crate::model::params::{FRAMES_PER_TOKEN, SAMPLES_PER_TOKEN};
use crate::model::{Delay, Tokenizer, Utf8Joiner};
use crate::{Error, Result};

use super::draft::{Acceptance, DueSpan, Share};
use super::event::{Event, Token, TokenKind, alternatives};
use super::frontend::{Ahead, Frontend, Input, Slices};

/// Silence behind the audio, in tokens, besides the delay: the official `+ 1 + 10`.
const RIGHT_PAD: usize = 11;
/// Tokens whose audio is kept so that a stream that was lost with its device can be fed again: 15 s, which is what the
/// encoder looks back on.
pub(super) const REPLAY: usize = 188;
/// Candidates looked at to find alternatives among them that are text.
const N_CANDIDATES: usize = 16;

/// How a session is to work.
#[derive(Debug, Clone)]
pub struct SessionOptions {
    /// The model's delay; what the model directory says when absent.
    pub delay: Option<Delay>,
    /// How much audio is gathered before it is worked on, at most a minute. Changes latency, never the text.
    pub interval: Duration,
    /// List alternatives whose probability is at least `1 - cutoff` of the chosen token's; 0 to 1.
    pub alternatives: Option<f32>,
    /// Say how probable each token was. Costs the GPU a copy of all logits for each token.
    pub probabilities: bool,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { delay: None, interval: Duration::from_secs(2), alternatives: None, probabilities: false }
    }
}

impl SessionOptions {
    /// How many of the likeliest tokens a prediction has to list.
    fn n_top(&self) -> usize {
        match (self.alternatives, self.probabilities) {
            (Some(_), _) => N_CANDIDATES,
            (None, true) => 2, // probabilities come with lists only
            (None, false) => 1,
        }
    }
}

/// What all sessions of an engine share.
pub(super) struct Shared {
    pub tokenizer: Tokenizer,
    pub filters: Arc<MelFilters>,
}

/// A run of the model from clean state.
pub(super) struct Segment<S> {
    /// Absent once the segment has ended with audio left, so that the next may have its memory.
    stream: Option<S>,
    frontend: Frontend,
    /// Tokens of the next span: the prompt, then always the last generated one; then drafts.
    inputs: Vec<u32>,
    /// How many of these are no drafts.
    n_certain: usize,
    /// How many make the span under way.
    n_span: usize,
    /// What the model may say after them, as far as it was asked: its own answers behind a wrong draft.
    guesses: Vec<u32>,
    /// Audio embeddings made, and those the decoder has used.
    n_encoded: usize,
    n_decoded: usize,
    n_generated: u64,
    /// The last of them, at most [`REPLAY`].
    recent: VecDeque<u32>,
}

impl<S> Segment<S> {
    /// A segment from sample `start` on, whose first tokens are `said` already, on a stream that has done the first `n_done`
    /// positions of the silence before it.
    pub fn new(shared: &Shared, stream: S, n_done: usize, start: u64, delay: Delay, said: &[u32]) -> Self {
        let Tokenizer { special, left_pad, .. } = shared.tokenizer;
        let mut inputs = vec![special.bos];
        inputs.resize(1 + left_pad + delay.tokens(), special.streaming_pad);
        inputs.extend(said);
        inputs.drain(..n_done);
        let n_certain = inputs.len();
        let mel = MelStream::new(shared.filters.clone(), (left_pad - n_done) * SAMPLES_PER_TOKEN);
        Self {
            stream: Some(stream),
            frontend: Frontend::new(mel, start, delay.tokens() + RIGHT_PAD),
            inputs,
            n_certain,
            n_span: 0,
            guesses: Vec::new(),
            n_encoded: n_done,
            n_decoded: n_done,
            n_generated: said.len() as u64,
            recent: said.iter().copied().collect(),
        }
    }

    /// Embeddings that wait beyond those of the next step, if there are enough for that.
    fn n_ahead(&self) -> Option<usize> {
        (self.n_encoded - self.n_decoded).checked_sub(self.n_certain)
    }

    /// Index in the session of the sample that the next generated token speaks of: what came before it has ended.
    fn next_moment(&self) -> u64 {
        self.frontend.start() + (self.n_generated + 1) * SAMPLES_PER_TOKEN as u64
    }

    /// Index in the session of the sample that a replay begins with.
    fn replay_start(&self) -> u64 {
        self.frontend.start() + (self.n_generated - self.recent.len() as u64) * SAMPLES_PER_TOKEN as u64
    }
}

/// One stream being transcribed.
pub struct Session<B: Backend> {
    shared: Arc<Shared>,
    segment: Segment<B::Stream>,
    delay: Delay,
    input: Input,
    cutoff: Option<f32>,
    n_top: usize,
    ended: bool,
    text: Utf8Joiner,
    events: VecDeque<Event>,
    /// The sample to start again from: the model said EOS with audio left.
    due_restart: Option<u64>,
    pub(super) acceptance: Acceptance,
}

/// What came of a span.
#[derive(Debug, Default)]
pub(super) struct Confirmed {
    pub n_drafts: usize,
    /// Drafts that were right.
    pub n_right: usize,
    pub n_tokens: u64,
    pub n_text_tokens: u64,
}

impl<B: Backend> Session<B> {
    pub(super) fn new(
        shared: Arc<Shared>,
        segment: Segment<B::Stream>,
        delay: Delay,
        options: &SessionOptions,
    ) -> Result<Self> {
        if let Some(cutoff) = options.alternatives.filter(|c| !(0.0..=1.0).contains(c)) {
            return Err(Error::InvalidOption(format!("alternatives cutoff {cutoff}: expected 0 to 1")));
        }
        Ok(Self {
            shared,
            segment,
            delay,
            input: Input::new(options.interval),
            cutoff: options.alternatives,
            n_top: options.n_top(),
            ended: false,
            text: Utf8Joiner::default(),
            events: VecDeque::new(),
            due_restart: None,
            acceptance: Acceptance::default(),
        })
    }

    /// Appends mono samples at 16 kHz, in -1..1.
    ///
    /// # Errors
    /// [`Error::InvalidSample`] for samples that are no sound (the ones before are taken), [`Error::InvalidOption`]
    /// after [`finish`](Self::finish).
    pub fn push(&mut self, samples: &[f32]) -> Result<()> {
        self.input.push(samples)
    }

    /// Lets the next [`advance`](super::Engine::advance) work on all samples pushed so far, without waiting for an
    /// interval's worth. Words of the last `delay` need the audio behind them and come later, so the text is the same.
    pub fn flush(&mut self) {
        self.input.flush(self.input.n_pushed());
    }

    /// Declares the audio complete.
    pub fn finish(&mut self) {
        self.input.finish();
    }

    /// The next thing the session has to say.
    pub fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// Whether all audio is transcribed; events may be waiting.
    pub fn is_ended(&self) -> bool {
        self.ended
    }

    /// Samples pushed so far.
    pub fn n_samples(&self) -> u64 {
        self.input.n_pushed()
    }

    /// The model's delay in this session.
    pub fn delay(&self) -> Delay {
        self.delay
    }

    /// Whether frames to encode are wanted, if the audio for them is there: so many embeddings are made ahead of need.
    pub(super) fn wants_frames(&self, lookahead: usize) -> bool {
        !self.ended && self.due_restart.is_none() && self.segment.n_ahead() < Some(self.input.lookahead(lookahead))
    }

    /// Makes these frames; whether there are any. The same until [`encoded`](Self::encoded).
    pub(super) fn prepare_frames(&mut self) -> bool {
        if self.input.is_empty() {
            self.end();
            return false;
        }
        let keep_from = self.segment.replay_start();
        self.segment.frontend.prepare(&mut self.input, keep_from)
    }

    /// The stream and the prepared frames.
    pub(super) fn due_frames(&mut self) -> Option<(&mut B::Stream, &[f32])> {
        let frames = self.segment.frontend.frames();
        Some((self.segment.stream.as_mut()?, frames))
    }

    /// Notes that the due frames were encoded.
    pub(super) fn encoded(&mut self) {
        let segment = &mut self.segment;
        segment.n_encoded += segment.frontend.frames().len() / (self.shared.filters.n_mels() * FRAMES_PER_TOKEN);
        segment.frontend.encoded();
    }

    /// What could be decoded next, if its audio is encoded.
    pub(super) fn due_span(&mut self) -> Option<DueSpan> {
        if self.ended || self.due_restart.is_some() {
            return None;
        }
        let segment = &self.segment;
        let Some(n_ahead) = segment.n_ahead() else {
            if segment.frontend.is_dry() {
                self.end();
            }
            return None;
        };
        Some(DueSpan {
            n_certain: segment.n_certain,
            max_drafts: n_ahead.min(MAX_REWIND.saturating_sub(segment.n_certain)),
        })
    }

    /// That span, or the first inputs of a prompt, and the frames that will be wanted soon. Drafts are the model's own
    /// guesses, and blanks beyond them.
    pub(super) fn span(&mut self, share: Share, lookahead: usize) -> (Span<'_, B::Stream>, Option<Ahead<'_>>) {
        let (keep_from, lookahead) = (self.segment.replay_start(), self.input.lookahead(lookahead));
        let segment = &mut self.segment;
        let soon = segment.n_ahead() < Some(2 * lookahead) && segment.frontend.frames().is_empty();
        let (n, n_drafts) = (segment.n_certain, share.n_drafts);
        let whole = share.n_certain == n;
        segment.n_span = if whole { n + n_drafts } else { share.n_certain };
        segment.inputs.truncate(n);
        segment.inputs.extend(segment.guesses.iter().take(n_drafts));
        segment.inputs.resize(n + n_drafts, self.shared.tokenizer.special.streaming_pad);
        let span = Span {
            stream: segment.stream.as_mut().expect("due for a span"),
            inputs: &segment.inputs[..segment.n_span],
            predict_from: if whole { n - 1 } else { segment.n_span },
            drafts_from: n,
            n_top: self.n_top,
            predictions: Vec::with_capacity(1 + n_drafts),
        };
        (span, soon.then_some(Ahead::new(&mut segment.frontend, &mut self.input, keep_from)))
    }

    /// Takes the model's predictions after the span: those that follow right drafts only are what it says, the others
    /// are its next guesses. None at all came if the stream was lost.
    pub(super) fn confirm(&mut self, predictions: Vec<Prediction>) -> Confirmed {
        let segment = &mut self.segment;
        if segment.n_span < segment.n_certain {
            segment.inputs.drain(..segment.n_span);
            segment.n_certain -= segment.n_span;
            segment.n_decoded += segment.n_span;
            return Confirmed::default();
        }
        let drafts = &segment.inputs[segment.n_certain..];
        let n_drafts = drafts.len();
        if predictions.len() != 1 + n_drafts {
            segment.inputs.truncate(segment.n_certain);
            return Confirmed::default();
        }
        let n_right = drafts.iter().zip(&predictions).take_while(|(draft, said)| **draft == said.id).count();
        segment.n_decoded += segment.n_certain + n_right;
        segment.guesses.clear();
        segment.guesses.extend(predictions[n_right + 1..].iter().map(|p| p.id));
        segment.inputs.clear();
        segment.inputs.push(predictions[n_right].id);
        segment.n_certain = 1;
        let mut confirmed = Confirmed { n_drafts, n_right, ..Confirmed::default() };
        for prediction in predictions.into_iter().take(1 + n_right) {
            confirmed.n_tokens += 1;
            confirmed.n_text_tokens += u64::from(self.shared.tokenizer.is_text(prediction.id));
            self.due_restart = self.accept(prediction);
            if self.due_restart.is_some() {
                self.segment.stream = None;
            }
            if self.segment.stream.is_none() {
                break;
            }
        }
        confirmed
    }

    /// Takes what the model says next. Returns the sample to start again from, if it was an EOS with
    /// audio left.
    fn accept(&mut self, prediction: Prediction) -> Option<u64> {
        let tokenizer = &self.shared.tokenizer;
        let moment = self.segment.next_moment();
        let id = prediction.id;
        let (text, alternatives) = match tokenizer.bytes(id) {
            Some(bytes) => {
                let whole = !self.text.is_pending() && std::str::from_utf8(bytes).is_ok();
                let text = self.text.push(bytes);
                let alternatives = self.cutoff.filter(|_| whole).map(|c| alternatives(tokenizer, &prediction, c));
                (text, alternatives.unwrap_or_default())
            }
            None if id == tokenizer.special.eos => (self.text.finish(), Vec::new()),
            None => (String::new(), Vec::new()),
        };
        let kind = match id {
            _ if tokenizer.is_text(id) => TokenKind::Text,
            _ if id == tokenizer.special.streaming_pad => TokenKind::Blank,
            _ if id == tokenizer.special.streaming_word => TokenKind::WordEnd,
            _ => TokenKind::Control,
        };
        let probability = prediction.top.first().map(|&(_, probability)| probability);
        let token = Token { id, kind, time_ms: to_ms(moment), text, probability, alternatives };
        self.events.push_back(Event::Token(token));
        self.segment.n_generated += 1;
        if self.segment.recent.len() == REPLAY {
            self.segment.recent.pop_front();
        }
        self.segment.recent.push_back(id);
        if id != tokenizer.special.eos {
            return None;
        }
        if moment < self.input.n_pushed() {
            return Some(moment);
        }
        self.end();
        None
    }

    /// The sample that a clean segment is to begin with, if the last one has ended.
    pub(super) fn due_restart(&self) -> Option<u64> {
        self.due_restart
    }

    /// Goes on with a clean segment; what had been heard of its audio is worked on at once.
    pub(super) fn restart(&mut self, segment: Segment<B::Stream>) {
        self.input.flush(self.segment.frontend.fed_to());
        self.due_restart = None;
        self.events.push_back(Event::Restart { time_ms: to_ms(segment.frontend.start()) });
        self.segment = segment;
    }

    /// Where the session goes on after its stream was lost: the sample to feed a new one from, and the tokens said since.
    pub(super) fn replay_point(&self) -> (u64, Vec<u32>) {
        (self.segment.replay_start(), self.segment.recent.iter().copied().collect())
    }

    /// Goes on with a segment that begins at the [`replay_point`](Self::replay_point). What has been said stays said: the
    /// new stream is fed the same tokens.
    pub(super) fn replay(&mut self, segment: Segment<B::Stream>) {
        self.input.flush(self.segment.frontend.fed_to());
        self.segment = segment;
    }

    /// The stream being worked on.
    pub(super) fn stream(&self) -> Option<&B::Stream> {
        self.segment.stream.as_ref()
    }

    /// The same, to change it, and the position it is at between calls.
    pub(super) fn stream_and_position(&mut self) -> Option<(&mut B::Stream, u64)> {
        Some((self.segment.stream.as_mut()?, self.segment.n_decoded as u64))
    }

    /// How much audio is to be worked on at once from now on.
    pub(super) fn set_slices(&mut self, slices: Slices) {
        self.input.set_slices(slices);
    }

    /// Drops samples that have not been worked on.
    pub(super) fn forget_waiting(&mut self) {
        self.input.truncate(self.segment.frontend.fed_to());
    }

    /// Whether all audio pushed so far leaves room for more: what is pushed beyond this waits in memory.
    pub fn wants_samples(&self) -> bool {
        self.input.wants_samples(self.segment.frontend.fed_to())
    }

    /// Samples that are kept.
    #[cfg(test)]
    pub(super) fn n_kept(&self) -> usize {
        self.input.n_kept()
    }

    /// The guesses that the next drafts are taken from.
    #[cfg(test)]
    pub(super) fn guesses(&mut self) -> &mut Vec<u32> {
        &mut self.segment.guesses
    }

    fn end(&mut self) {
        self.ended = true;
        self.segment.stream = None;
        let text = self.text.finish();
        self.events.push_back(Event::End { text });
    }
}

fn to_ms(sample: u64) -> u64 {
    sample * 1000 / u64::from(SAMPLE_RATE)
}
