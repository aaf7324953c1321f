//! Sessions over a backend: samples in, tokens and text out.
//!
//! [`Engine`] owns the backend; a [`Session`] owns all state of one stream. [`Engine::advance`] does, for any number of
//! sessions, the work that their samples allow, in rounds: an encoder call with the new frames of those that have nothing
//! to decode, then a decoder pass with the next span of all. What a session says depends on its samples, the model and
//! the delay alone.
//!
//! ```no_run
//! use voxtral::backend::{BackendOptions, cpu::Cpu};
//! use voxtral::{Engine, Event, Model, SessionOptions};
//!
//! # fn main() -> voxtral::Result<()> {
//! let model = Model::open("samples/tiny-model".as_ref())?;
//! let mut engine = Engine::<Cpu>::load(model, &BackendOptions::default())?;
//! let mut session = engine.open(&SessionOptions::default())?;
//! session.push(&[0.0; 16_000])?; // mono, 16 kHz
//! session.finish();
//! engine.advance(&mut [&mut session])?;
//! while let Some(event) = session.next_event() {
//!     if let Event::Token(token) = event {
//!         print!("{}", token.text);
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod draft;
mod event;
mod frontend;
mod guard;
mod opening;
pub mod scheduler;
mod session;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

pub use draft::Draft;
use draft::{PassCosts, allot};
pub use event::{Alternative, Event, Token, TokenKind};
pub use guard::{Gap, GapGuard, LevelFeed, SecondLook};
use opening::Opening;
use session::{Segment, Shared};
pub use session::{Session, SessionOptions};

use rayon::prelude::*;

use crate::audio::mel::MelFilters;
use crate::backend::{Backend, BackendOptions, EncodeChunk, MAX_REWIND, Prediction};
use crate::model::params::{FRAMES_PER_TOKEN, Params};
use crate::model::{Delay, Model, Tokenizer};
use crate::{Error, Result};

/// One in so many sessions is to want frames before those that do get them.
const GATHER: usize = 4;
/// Rounds that they wait, at most.
const PATIENCE: usize = 8;

/// What an engine has done so far.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stats {
    /// Time that the engine waited for samples to become mel frames; most of that is done while the decoder works.
    pub mel: Duration,
    /// Mel frames encoded, the audio embeddings made of them, and the time that took.
    pub n_frames: u64,
    pub n_embeddings: u64,
    pub encoder: Duration,
    /// Tokens generated, how many of them are text, the decoder passes that took, and their time.
    pub n_tokens: u64,
    pub n_text_tokens: u64,
    pub n_passes: u64,
    pub decoder: Duration,
    /// Positions that were guessed, and how many of the guesses were right.
    pub n_drafts: u64,
    pub n_right: u64,
    /// The part of the passes and their time that went to prompts.
    pub n_prefills: u64,
    pub prefill: Duration,
}

impl Stats {
    fn record_pass(&mut self, time: Duration, with_prompt: bool) {
        self.decoder += time;
        self.n_passes += 1;
        if with_prompt {
            self.prefill += time;
            self.n_prefills += 1;
        }
    }
}

impl std::ops::Add for Stats {
    type Output = Self;

    /// What two engines have done.
    fn add(self, other: Self) -> Self {
        Self {
            mel: self.mel + other.mel,
            n_frames: self.n_frames + other.n_frames,
            n_embeddings: self.n_embeddings + other.n_embeddings,
            encoder: self.encoder + other.encoder,
            n_tokens: self.n_tokens + other.n_tokens,
            n_text_tokens: self.n_text_tokens + other.n_text_tokens,
            n_passes: self.n_passes + other.n_passes,
            decoder: self.decoder + other.decoder,
            n_drafts: self.n_drafts + other.n_drafts,
            n_right: self.n_right + other.n_right,
            n_prefills: self.n_prefills + other.n_prefills,
            prefill: self.prefill + other.prefill,
        }
    }
}

impl std::ops::Sub for Stats {
    type Output = Self;

    /// What was done between two readings.
    fn sub(self, before: Self) -> Self {
        Self {
            mel: self.mel - before.mel,
            n_frames: self.n_frames - before.n_frames,
            n_embeddings: self.n_embeddings - before.n_embeddings,
            encoder: self.encoder - before.encoder,
            n_tokens: self.n_tokens - before.n_tokens,
            n_text_tokens: self.n_text_tokens - before.n_text_tokens,
            n_passes: self.n_passes - before.n_passes,
            decoder: self.decoder - before.decoder,
            n_drafts: self.n_drafts - before.n_drafts,
            n_right: self.n_right - before.n_right,
            n_prefills: self.n_prefills - before.n_prefills,
            prefill: self.prefill - before.prefill,
        }
    }
}

/// A loaded model on a device.
pub struct Engine<B: Backend> {
    backend: B,
    shared: Arc<Shared>,
    opening: Opening<B>,
    stats: Stats,
    draft: Draft,
    costs: PassCosts,
    hurried: bool,
    /// Steps that have waited for room in a pass so far.
    n_waited: usize,
    /// Rounds for which frames have waited for those of other sessions.
    n_put_off: usize,
}

impl<B: Backend> Engine<B> {
    /// Loads a model's weights onto a backend.
    pub fn load(model: Model, options: &BackendOptions) -> Result<Self> {
        let backend = B::load(&model.weights, options)?;
        Ok(Self::new(backend, model.tokenizer, &model.params))
    }

    /// An engine over a backend that is ready.
    pub fn new(backend: B, tokenizer: Tokenizer, params: &Params) -> Self {
        let filters = Arc::new(MelFilters::new(params.n_mels, params.log_mel_max));
        let shared = Arc::new(Shared { tokenizer, filters });
        let (stats, draft, costs) = (Stats::default(), Draft::default(), PassCosts::default());
        let opening = Opening::default();
        Self { backend, shared, opening, stats, draft, costs, hurried: false, n_waited: 0, n_put_off: 0 }
    }

    /// How far ahead tokens are guessed from now on. Never changes what is said.
    pub fn set_draft(&mut self, draft: Draft) {
        self.draft = draft;
    }

    /// Whether passes are to stay short from now on, because somebody waits for the next.
    pub fn set_hurried(&mut self, hurried: bool) {
        self.hurried = hurried;
    }

    /// The delay of sessions that don't ask for one.
    pub fn default_delay(&self) -> Delay {
        self.shared.tokenizer.delay
    }

    /// What it runs on.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// The same, to measure it beside the engine's work.
    pub fn backend_mut(&mut self) -> &mut B {
        &mut self.backend
    }

    /// Bytes of weights that one decoder pass reads.
    pub fn decoder_bytes(&self) -> u64 {
        self.backend.decoder_bytes()
    }

    /// What was done so far, over all sessions.
    pub fn stats(&self) -> Stats {
        self.stats
    }

    /// Opens a session. It is independent of all others.
    pub fn open(&mut self, options: &SessionOptions) -> Result<Session<B>> {
        let delay = options.delay.unwrap_or(self.shared.tokenizer.delay);
        let segment = self.segment(0, delay, &[])?;
        Session::new(self.shared.clone(), segment, delay, options)
    }

    /// Does all work that the samples of these sessions allow, and leaves the results in them as events.
    ///
    /// # Errors
    /// When the backend fails. The sessions keep the events from before.
    pub fn advance(&mut self, sessions: &mut [&mut Session<B>]) -> Result<()> {
        while self.step(sessions)? {}
        Ok(())
    }

    /// Does the next round of that work: one encoder call for the sessions that have nothing to decode, and one decoder
    /// pass. `false` when there was nothing to do.
    ///
    /// # Errors
    /// As for [`advance`](Self::advance).
    pub fn step(&mut self, sessions: &mut [&mut Session<B>]) -> Result<bool> {
        let restarted = self.restart(sessions);
        let mut encoded = self.encode(sessions, !self.hurried)?;
        self.recover(sessions)?;
        let decoded = self.decode(sessions)?;
        self.recover(sessions)?;
        if !encoded && !decoded {
            encoded = self.encode(sessions, false)?;
            self.recover(sessions)?;
        }
        // what others are doing may be what makes room for a new segment
        if encoded || decoded { Ok(true) } else { restarted }
    }

    /// Gives those sessions a clean segment whose last one ended with audio left; whether there were any.
    fn restart(&mut self, sessions: &mut [&mut Session<B>]) -> Result<bool> {
        let mut any = false;
        for session in sessions.iter_mut() {
            if let Some(start) = session.due_restart() {
                session.restart(self.segment(start, session.delay(), &[])?);
                any = true;
            }
        }
        Ok(any)
    }

    /// Gives those sessions a new stream whose own was lost with its device.
    fn recover(&mut self, sessions: &mut [&mut Session<B>]) -> Result<()> {
        self.opening.tidy(&self.backend);
        for session in sessions.iter_mut().filter(|s| !s.is_ended()) {
            if !session.stream().is_some_and(|stream| self.backend.is_lost(stream)) {
                continue;
            }
            let (start, said) = session.replay_point();
            session.replay(self.segment(start, session.delay(), &said)?);
        }
        Ok(())
    }

    /// One encoder call with the frames that are due; whether there was one. If `patient`, those few of many sessions that
    /// want frames wait a little for others: calls for many at once are faster.
    fn encode(&mut self, sessions: &mut [&mut Session<B>], patient: bool) -> Result<bool> {
        let start = Instant::now();
        let enough = (sessions.len() / GATHER).max(1);
        let lookahead = self.lookahead();
        let mut due: Vec<_> = sessions.iter_mut().filter(|session| session.wants_frames(lookahead)).collect();
        if due.len() > 1 {
            due = due.into_par_iter().filter_map(|session| session.prepare_frames().then_some(session)).collect();
        } else {
            due.retain_mut(|session| session.prepare_frames());
        }
        self.stats.mel += start.elapsed();
        if due.is_empty() || due.len() < enough && patient && self.n_put_off < PATIENCE {
            self.n_put_off += usize::from(!due.is_empty());
            return Ok(false);
        }
        self.n_put_off = 0;
        let start = Instant::now();
        let mut n_frames = 0;
        let mut batch = Vec::with_capacity(due.len());
        for session in &mut due {
            if let Some((stream, log_mel)) = session.due_frames() {
                n_frames += log_mel.len() / self.shared.filters.n_mels();
                batch.push(EncodeChunk { stream, log_mel });
            }
        }
        if let Err(error) = self.backend.encode(&mut batch) {
            return self.after(error);
        }
        self.stats.encoder += start.elapsed();
        self.stats.n_frames += n_frames as u64;
        self.stats.n_embeddings += (n_frames / FRAMES_PER_TOKEN) as u64;
        due.iter_mut().for_each(|session| session.encoded());
        Ok(true)
    }

    /// Embeddings made ahead of need where there is audio for them, so that drafts have some.
    fn lookahead(&self) -> usize {
        let rows = self.backend.max_rows().min(MAX_REWIND);
        if let Draft::Fixed(n) = self.draft { rows.max(1 + n) } else { rows }
    }

    /// One decoder pass with the next span of each session that has one; whether there was any.
    fn decode(&mut self, sessions: &mut [&mut Session<B>]) -> Result<bool> {
        let due: Vec<_> =
            sessions.iter_mut().filter_map(|session| Some((session.due_span()?, &mut **session))).collect();
        if due.is_empty() {
            return Ok(false);
        }
        let spans: Vec<_> = due.iter().map(|(span, session)| (*span, session.acceptance)).collect();
        let shares = allot(self.draft, &self.costs, &spans, self.backend.max_rows(), self.hurried, &mut self.n_waited);
        let lookahead = self.lookahead();
        // what found no room waits
        let (mut due, shares): (Vec<_>, Vec<_>) =
            due.into_iter().zip(shares).filter(|(_, share)| share.n_certain > 0).unzip();
        let (mut batch, ahead): (Vec<_>, Vec<_>) =
            due.iter_mut().zip(shares).map(|((_, session), share)| session.span(share, lookahead)).unzip();
        let n_rows: usize = batch.iter().map(|span| span.inputs.len()).sum();
        let mut time = Duration::ZERO;
        // frames that will be wanted soon are made meanwhile
        let decoded = rayon::in_place_scope(|scope| {
            ahead.into_iter().flatten().for_each(|ahead| scope.spawn(|_| ahead.prepare()));
            let start = Instant::now();
            let decoded = self.backend.decode(&mut batch);
            time = start.elapsed();
            decoded
        });
        let predictions: Vec<Vec<Prediction>> = batch.into_iter().map(|span| span.predictions).collect();
        if let Err(error) = decoded {
            // those that got through before the failure are to do it again
            for (_, session) in due {
                if let Some((stream, position)) = session.stream_and_position() {
                    self.backend.rewind(stream, position);
                }
            }
            return self.after(error);
        }
        self.costs.record(n_rows, time);
        self.stats.record_pass(time, due.iter().any(|(span, _)| span.n_certain > 1));
        for ((_, session), predictions) in due.into_iter().zip(predictions) {
            let confirmed = session.confirm(predictions);
            session.acceptance.record(confirmed.n_drafts, confirmed.n_right);
            self.stats.n_tokens += confirmed.n_tokens;
            self.stats.n_text_tokens += confirmed.n_text_tokens;
            self.stats.n_drafts += confirmed.n_drafts as u64;
            self.stats.n_right += confirmed.n_right as u64;
            if confirmed.n_right < confirmed.n_drafts
                && let Some((stream, position)) = session.stream_and_position()
            {
                self.backend.rewind(stream, position);
            }
        }
        Ok(true)
    }

    /// What a failed call comes to: it is made again if there was memory to free.
    fn after(&mut self, error: Error) -> Result<bool> {
        if self.opening.give_up() { Ok(true) } else { Err(error) }
    }

    /// A clean state for the audio from sample `start` on, whose first tokens are `said` already.
    fn segment(&mut self, start: u64, delay: Delay, said: &[u32]) -> Result<Segment<B::Stream>> {
        let (stream, n_done) = self.opening.open(&mut self.backend, &self.shared, delay, &mut self.stats)?;
        Ok(Segment::new(&self.shared, stream, n_done, start, delay, said))
    }
}
