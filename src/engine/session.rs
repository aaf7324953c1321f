//! One stream of audio: what was pushed, how far it is processed, what came out.
//!
//! Audio is worked through in whole tokens of 80 ms. A session consists of segments: each is what the official code does
//! with one file (left padding, prompt, greedy decoding), and where a segment says EOS with audio left, the next begins
//! with the audio after the moment that the EOS speaks of.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::audio::mel::{MelFilters, MelStream};
use crate::audio::{SAMPLE_RATE, check_samples};
use crate::backend::{Backend, MAX_REWIND, Prediction, Span};
use crate::model::params::{FRAMES_PER_TOKEN, SAMPLES_PER_TOKEN};
use crate::model::{Delay, Tokenizer, Utf8Joiner};
use crate::{Error, Result};

use super::draft::{Acceptance, Share};

/// Silence behind the audio, in tokens, besides the delay: the official `+ 1 + 10`.
const RIGHT_PAD: usize = 11;
/// Longest interval.
const MAX_INTERVAL: usize = 60 * SAMPLE_RATE as usize;
/// Longest stretch of audio that one encoder call takes of a stream, where the interval is not longer: where much audio is
/// there, calls begin at the interval and grow fourfold up to this.
pub(super) const MAX_SLICE: usize = 30 * SAMPLE_RATE as usize;
/// The stretch that calls take of each of many streams: what an EOS inside it makes useless is not much, and together they
/// are work enough.
const BULK_SLICE: usize = 5 * SAMPLE_RATE as usize;
/// Embeddings made ahead of need for one of many streams, which leave each other no room for drafts.
const BULK_LOOKAHEAD: usize = 32;
/// Tokens whose audio is kept so that a stream that was lost with its device can be fed again: 15 s, which is what the
/// encoder looks back on.
pub(super) const REPLAY: usize = 188;
/// Candidates looked at to find alternatives among them that are text.
const N_CANDIDATES: usize = 16;
/// Alternatives listed, the chosen token included.
const N_ALTERNATIVES: usize = 3;

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

/// What a session has to say, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The model generated a token.
    Token(Token),
    /// The model said EOS with audio left; it starts afresh with the audio from this moment on.
    Restart { time_ms: u64 },
    /// All audio is transcribed. `text` is U+FFFD where the last character never became whole, else empty.
    End { text: String },
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub id: u32,
    pub kind: TokenKind,
    /// The moment in the audio that the token speaks of: its position less padding and delay, on a grid of 80 ms.
    pub time_ms: u64,
    /// Text that became complete with this token; empty for parts of characters and special tokens (but an EOS ends
    /// an unfinished character with U+FFFD).
    pub text: String,
    /// What the model gave this token, 0 to 1, where it was asked for.
    pub probability: Option<f32>,
    /// Likely texts for this place, best (this token's) first; empty where they weren't asked for, the token is special,
    /// it is only part of a character, or no other text comes near.
    pub alternatives: Vec<Alternative>,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Some bytes of text.
    Text,
    /// Nothing yet.
    Blank,
    /// A word, or a group of words, ended here; its text follows.
    WordEnd,
    /// EOS and everything else.
    Control,
}

/// A text that the model thought likely.
#[derive(Debug, Clone, PartialEq)]
pub struct Alternative {
    pub id: u32,
    pub text: String,
    pub probability: f32,
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
        Self {
            stream: Some(stream),
            frontend: Frontend {
                mel: MelStream::new(shared.filters.clone(), (left_pad - n_done) * SAMPLES_PER_TOKEN),
                start,
                n_fed: 0,
                right_pad: delay.tokens() + RIGHT_PAD,
                padded: false,
                slice: 0,
                log_mel: Vec::new(),
            },
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
        self.frontend.start + (self.n_generated + 1) * SAMPLES_PER_TOKEN as u64
    }

    /// Index in the session of the sample that a replay begins with.
    fn replay_start(&self) -> u64 {
        self.frontend.start + (self.n_generated - self.recent.len() as u64) * SAMPLES_PER_TOKEN as u64
    }
}

/// The way of a segment's samples to the encoder.
struct Frontend {
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
    /// Index in the session of the first sample not taken yet.
    fn fed_to(&self) -> u64 {
        self.start + self.n_fed as u64
    }

    /// Whether no more frames will come of what there is.
    fn is_dry(&self) -> bool {
        self.padded && self.log_mel.is_empty() && self.mel.available() < FRAMES_PER_TOKEN
    }

    /// Makes the frames of the next encoder call, if there are none yet and the audio for them is there; whether there
    /// are any then. Samples before `keep_from` are not needed any more.
    fn prepare(&mut self, input: &mut Input, keep_from: u64) -> bool {
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
struct Input {
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
    /// Samples from which on more are left where they are.
    fn most_waiting(&self) -> usize {
        let slices = if self.slices == Slices::Bulk { 2 * BULK_SLICE } else { MAX_SLICE };
        slices.max(self.interval)
    }

    /// Embeddings to make ahead of need, of so many at most.
    fn lookahead(&self, most: usize) -> usize {
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

impl Ahead<'_> {
    pub fn prepare(self) {
        self.frontend.prepare(self.input, self.keep_from);
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

/// A span that could be decoded now.
#[derive(Debug, Clone, Copy)]
pub(super) struct DueSpan {
    /// Inputs that are certain, and the most drafts that can follow them.
    pub n_certain: usize,
    pub max_drafts: usize,
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
        let interval = options.interval.as_secs_f64() * f64::from(SAMPLE_RATE);
        if let Some(cutoff) = options.alternatives.filter(|c| !(0.0..=1.0).contains(c)) {
            return Err(Error::InvalidOption(format!("alternatives cutoff {cutoff}: expected 0 to 1")));
        }
        Ok(Self {
            shared,
            segment,
            delay,
            input: Input {
                samples: VecDeque::new(),
                samples_start: 0,
                n_pushed: 0,
                interval: (interval as usize).clamp(1, MAX_INTERVAL),
                slices: Slices::default(),
                flush_to: 0,
                finished: false,
            },
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
        let input = &mut self.input;
        if input.finished {
            return Err(Error::InvalidOption("samples pushed into a finished session".into()));
        }
        let checked = check_samples(samples, input.n_pushed);
        let n_good = match checked {
            Err(Error::InvalidSample { index, .. }) => (index - input.n_pushed) as usize,
            _ => samples.len(),
        };
        input.samples.extend(&samples[..n_good]);
        input.n_pushed += n_good as u64;
        checked
    }

    /// Lets the next [`advance`](super::Engine::advance) work on all samples pushed so far, without waiting for an
    /// interval's worth. Words of the last `delay` need the audio behind them and come later, so the text is the same.
    pub fn flush(&mut self) {
        self.input.flush_to = self.input.n_pushed;
    }

    /// Declares the audio complete.
    pub fn finish(&mut self) {
        self.input.finished = true;
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
        self.input.n_pushed
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
        if self.input.finished && self.input.n_pushed == 0 {
            self.end();
            return false;
        }
        let keep_from = self.segment.replay_start();
        self.segment.frontend.prepare(&mut self.input, keep_from)
    }

    /// The stream and the prepared frames.
    pub(super) fn due_frames(&mut self) -> Option<(&mut B::Stream, &[f32])> {
        let frames = self.segment.frontend.log_mel.as_slice();
        Some((self.segment.stream.as_mut()?, frames))
    }

    /// Notes that the due frames were encoded.
    pub(super) fn encoded(&mut self) {
        let log_mel = &mut self.segment.frontend.log_mel;
        self.segment.n_encoded += log_mel.len() / (self.shared.filters.n_mels() * FRAMES_PER_TOKEN);
        log_mel.clear();
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
        Some(DueSpan { n_certain: segment.n_certain, max_drafts: n_ahead.min(MAX_REWIND - 1) })
    }

    /// That span, or the first inputs of a prompt, and the frames that will be wanted soon. Drafts are the model's own
    /// guesses, and blanks beyond them.
    pub(super) fn span(&mut self, share: Share, lookahead: usize) -> (Span<'_, B::Stream>, Option<Ahead<'_>>) {
        let (keep_from, lookahead) = (self.segment.replay_start(), self.input.lookahead(lookahead));
        let segment = &mut self.segment;
        let soon = segment.n_ahead() < Some(2 * lookahead) && segment.frontend.log_mel.is_empty();
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
        (span, soon.then_some(Ahead { frontend: &mut segment.frontend, input: &mut self.input, keep_from }))
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
        if moment < self.input.n_pushed {
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
        self.input.flush_to = self.input.flush_to.max(self.segment.frontend.fed_to());
        self.due_restart = None;
        self.events.push_back(Event::Restart { time_ms: to_ms(segment.frontend.start) });
        self.segment = segment;
    }

    /// Where the session goes on after its stream was lost: the sample to feed a new one from, and the tokens said since.
    pub(super) fn replay_point(&self) -> (u64, Vec<u32>) {
        (self.segment.replay_start(), self.segment.recent.iter().copied().collect())
    }

    /// Goes on with a segment that begins at the [`replay_point`](Self::replay_point). What has been said stays said: the
    /// new stream is fed the same tokens.
    pub(super) fn replay(&mut self, segment: Segment<B::Stream>) {
        self.input.flush_to = self.input.flush_to.max(self.segment.frontend.fed_to());
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
        self.input.slices = slices;
    }

    /// Drops samples that have not been worked on.
    pub(super) fn forget_waiting(&mut self) {
        let (fed_to, input) = (self.segment.frontend.fed_to(), &mut self.input);
        input.samples.truncate((fed_to - input.samples_start) as usize);
        input.n_pushed = fed_to;
    }

    /// Whether all audio pushed so far leaves room for more: what is pushed beyond this waits in memory.
    pub fn wants_samples(&self) -> bool {
        let pending = self.input.n_pushed - self.segment.frontend.fed_to();
        !self.input.finished && pending < self.input.most_waiting() as u64
    }

    /// Samples that are kept.
    #[cfg(test)]
    pub(super) fn n_kept(&self) -> usize {
        self.input.samples.len()
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

/// The chosen token and the likeliest other texts within the cutoff; nothing if there are none.
fn alternatives(tokenizer: &Tokenizer, prediction: &Prediction, cutoff: f32) -> Vec<Alternative> {
    let Some(&(_, best)) = prediction.top.first() else { return Vec::new() };
    let near = |&(id, p): &(u32, f32)| {
        let bytes = tokenizer.bytes(id).filter(|_| 1.0 - p / best <= cutoff)?;
        // parts of characters are no texts
        Some(Alternative { id, text: String::from_utf8(bytes.to_vec()).ok()?, probability: p })
    };
    let list: Vec<_> = prediction.top.iter().filter_map(near).take(N_ALTERNATIVES).collect();
    if list.len() > 1 { list } else { Vec::new() }
}
