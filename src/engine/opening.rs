//! What all segments of a delay have in common: they begin with the same silence and the same inputs, so those positions are
//! worked out once and streams begin as copies of what that left.

use std::time::Instant;

use super::Stats;
use super::session::Shared;
use crate::Result;
use crate::audio::mel::MelStream;
use crate::backend::{Backend, EncodeChunk, Span};
use crate::model::params::{FRAMES_PER_TOKEN, SAMPLES_PER_TOKEN};
use crate::model::{Delay, Tokenizer};

/// Streams that are opened without a copy, after one that could not be made.
const PATIENCE: u64 = 64;

/// Opens streams.
pub(super) struct Opening<B: Backend> {
    delay: Option<Delay>,
    /// Streams to open before one is a copy. The first is none: it may stay the only one.
    n_plain: u64,
    /// A stream that has heard the silence.
    heard: Option<B::Stream>,
}

impl<B: Backend> Default for Opening<B> {
    fn default() -> Self {
        Self { delay: None, n_plain: 1, heard: None }
    }
}

impl<B: Backend> Opening<B> {
    /// A stream for a new segment, and how many positions of it are done. What work that takes is counted.
    ///
    /// # Errors
    /// When the backend cannot open one.
    pub fn open(
        &mut self,
        backend: &mut B,
        shared: &Shared,
        delay: Delay,
        stats: &mut Stats,
    ) -> Result<(B::Stream, usize)> {
        if self.delay != Some(delay) {
            *self = Self { delay: Some(delay), ..Self::default() };
        }
        self.tidy(backend);
        if self.n_plain == 0 && n_silent(&shared.tokenizer) > 0 {
            match self.copy(backend, shared, delay, stats) {
                Ok(stream) => return Ok((stream, n_silent(&shared.tokenizer))),
                // what there is goes to streams that are used
                Err(error) => {
                    tracing::debug!(%error, "a stream begins without what others have in common with it");
                    self.give_up();
                }
            }
        }
        let stream = backend.open(delay)?;
        self.n_plain = self.n_plain.saturating_sub(1);
        Ok((stream, 0))
    }

    /// Frees what copies are made of, for a while: others need the memory. Whether there was any.
    pub fn give_up(&mut self) -> bool {
        self.n_plain = PATIENCE;
        self.heard.take().is_some()
    }

    /// Frees what no more copies can be made of.
    pub fn tidy(&mut self, backend: &B) {
        self.heard.take_if(|stream| !backend.can_fork(stream));
    }

    fn copy(&mut self, backend: &mut B, shared: &Shared, delay: Delay, stats: &mut Stats) -> Result<B::Stream> {
        let heard = match self.heard.take() {
            Some(heard) => heard,
            None => hear(backend, shared, delay, stats)?,
        };
        backend.fork(self.heard.insert(heard))
    }
}

/// Positions whose frames are of silence alone: a token's frames reach a little into the next one.
fn n_silent(tokenizer: &Tokenizer) -> usize {
    tokenizer.left_pad.saturating_sub(1)
}

/// A stream that has heard the silence.
fn hear<B: Backend>(backend: &mut B, shared: &Shared, delay: Delay, stats: &mut Stats) -> Result<B::Stream> {
    let Tokenizer { special, left_pad, .. } = shared.tokenizer;
    let n = n_silent(&shared.tokenizer);
    let mut stream = backend.open(delay)?;
    let mut log_mel = Vec::new();
    MelStream::new(shared.filters.clone(), left_pad * SAMPLES_PER_TOKEN).take(n * FRAMES_PER_TOKEN, &mut log_mel);
    let start = Instant::now();
    backend.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: &log_mel }])?;
    stats.encoder += start.elapsed();
    stats.n_frames += (n * FRAMES_PER_TOKEN) as u64;
    stats.n_embeddings += n as u64;
    let mut inputs = vec![special.bos];
    inputs.resize(n, special.streaming_pad);
    let nothing = Vec::new();
    let start = Instant::now();
    backend.decode(&mut [Span {
        stream: &mut stream,
        inputs: &inputs,
        predict_from: n,
        drafts_from: n,
        n_top: 1,
        predictions: nothing,
    }])?;
    stats.record_pass(start.elapsed(), true);
    Ok(stream)
}
