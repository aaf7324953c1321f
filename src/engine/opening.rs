//! What all segments of a delay have in common: they begin with the same silence and the same inputs, so those positions are
//! worked out once and streams begin as copies of what that left.

use super::session::Shared;
use crate::Result;
use crate::audio::mel::MelStream;
use crate::backend::{Backend, EncodeChunk, Span};
use crate::model::params::{FRAMES_PER_TOKEN, SAMPLES_PER_TOKEN};
use crate::model::{Delay, Tokenizer};

/// Opens streams.
pub(super) struct Opening<B: Backend> {
    delay: Option<Delay>,
    /// Streams opened with that delay. The first is no copy: it may stay the only one.
    n_opened: u64,
    /// A stream that has heard the silence.
    heard: Option<B::Stream>,
}

impl<B: Backend> Default for Opening<B> {
    fn default() -> Self {
        Self { delay: None, n_opened: 0, heard: None }
    }
}

impl<B: Backend> Opening<B> {
    /// A stream for a new segment, and how many positions of it are done.
    ///
    /// # Errors
    /// When the backend cannot open one.
    pub fn open(&mut self, backend: &mut B, shared: &Shared, delay: Delay) -> Result<(B::Stream, usize)> {
        if self.delay != Some(delay) {
            *self = Self { delay: Some(delay), ..Self::default() };
        }
        let n_opened = self.n_opened;
        self.n_opened += 1;
        self.heard = self.heard.take().filter(|stream| !backend.is_lost(stream));
        if n_opened > 0 && n_silent(&shared.tokenizer) > 0 {
            match self.copy(backend, shared, delay) {
                Ok(stream) => return Ok((stream, n_silent(&shared.tokenizer))),
                // what there is goes to streams that are used
                Err(error) => {
                    tracing::debug!(%error, "a stream begins without what others have in common with it");
                    self.heard = None;
                }
            }
        }
        Ok((backend.open(delay)?, 0))
    }

    fn copy(&mut self, backend: &mut B, shared: &Shared, delay: Delay) -> Result<B::Stream> {
        let heard = match self.heard.take() {
            Some(heard) => heard,
            None => hear(backend, shared, delay)?,
        };
        backend.fork(self.heard.insert(heard))
    }
}

/// Positions whose frames are of silence alone: a token's frames reach a little into the next one.
fn n_silent(tokenizer: &Tokenizer) -> usize {
    tokenizer.left_pad.saturating_sub(1)
}

/// A stream that has heard the silence.
fn hear<B: Backend>(backend: &mut B, shared: &Shared, delay: Delay) -> Result<B::Stream> {
    let Tokenizer { special, left_pad, .. } = shared.tokenizer;
    let n = n_silent(&shared.tokenizer);
    let mut stream = backend.open(delay)?;
    let mut log_mel = Vec::new();
    MelStream::new(shared.filters.clone(), left_pad * SAMPLES_PER_TOKEN).take(n * FRAMES_PER_TOKEN, &mut log_mel);
    backend.encode(&mut [EncodeChunk { stream: &mut stream, log_mel: &log_mel }])?;
    let mut inputs = vec![special.bos];
    inputs.resize(n, special.streaming_pad);
    let nothing = Vec::new();
    backend.decode(&mut [Span {
        stream: &mut stream,
        inputs: &inputs,
        predict_from: n,
        drafts_from: n,
        n_top: 1,
        predictions: nothing,
    }])?;
    Ok(stream)
}
