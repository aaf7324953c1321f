//! A deterministic stand-in for the network, for tests of what is above it.
//!
//! Every prediction is a hash of all inputs of its stream up to that position, so any frame or token that is lost,
//! doubled or misplaced changes all that follows. Some predictions are EOS, and text tokens are often parts of
//! characters.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;

use super::{Backend, BackendOptions, EncodeChunk, MAX_REWIND, Prediction, Span, TraceSink};
use crate::model::params::FRAMES_PER_TOKEN;
use crate::model::{Delay, Weights};
use crate::{Error, Result};

/// The stand-in; `eos_in` is the chance of EOS, one in so many predictions, and `lost_at` are the calls that
/// lose all their streams, `fails_at` those that fail after half of their work.
pub(crate) struct Fake {
    pub n_mels: usize,
    pub eos_in: u64,
    pub lost_at: Vec<u64>,
    pub fails_at: Vec<u64>,
    /// Streams that there is memory for.
    pub max_streams: usize,
    /// Rows of a pass.
    pub max_rows: usize,
    streams: Arc<()>,
    /// Calls of `decode` so far, and of `encode` and `decode`.
    pub n_passes: usize,
    pub n_calls: u64,
}

#[derive(Clone)]
pub(crate) struct FakeStream {
    embeddings: Vec<u64>,
    /// Hash of everything up to each position.
    states: Vec<u64>,
    delay: Delay,
    lost: bool,
    /// Counts the streams that take memory.
    counted: Option<Arc<()>>,
}

fn hash(value: impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

impl Backend for Fake {
    type Stream = FakeStream;

    fn load(weights: &Weights, _: &BackendOptions) -> Result<Self> {
        Ok(Self::new(weights.params.n_mels, 50))
    }

    fn open(&mut self, delay: Delay) -> Result<FakeStream> {
        if Arc::strong_count(&self.streams) > self.max_streams {
            return Err(Error::Backend("no memory".into()));
        }
        let counted = Some(self.streams.clone());
        Ok(FakeStream { embeddings: Vec::new(), states: Vec::new(), delay, lost: false, counted })
    }

    fn fork(&mut self, stream: &FakeStream) -> Result<FakeStream> {
        if Arc::strong_count(&self.streams) > self.max_streams {
            return Err(Error::Backend("no memory".into()));
        }
        Ok(stream.clone())
    }

    fn encode(&mut self, batch: &mut [EncodeChunk<'_, FakeStream>]) -> Result<()> {
        self.n_calls += 1;
        self.fail()?;
        for chunk in batch {
            if self.loses(chunk.stream) {
                continue;
            }
            let (tokens, rest) = (chunk.log_mel.chunks_exact(FRAMES_PER_TOKEN * self.n_mels), chunk.log_mel.len());
            assert_eq!(rest % (FRAMES_PER_TOKEN * self.n_mels), 0, "whole tokens");
            for frames in tokens {
                let before = chunk.stream.embeddings.last().copied();
                let bits: Vec<u32> = frames.iter().map(|x| x.to_bits()).collect();
                chunk.stream.embeddings.push(hash((before, bits)));
            }
        }
        Ok(())
    }

    fn decode(&mut self, batch: &mut [Span<'_, FakeStream>]) -> Result<()> {
        self.n_passes += 1;
        self.n_calls += 1;
        let failed = self.fail();
        let n = if failed.is_err() { batch.len() / 2 } else { batch.len() };
        for span in &mut batch[..n] {
            let stream = &mut *span.stream;
            span.predictions.clear();
            if self.loses(stream) {
                continue;
            }
            for (i, &id) in span.inputs.iter().enumerate() {
                let position = stream.states.len();
                let state = hash((stream.states.last(), stream.embeddings[position], id, stream.delay.tokens()));
                stream.states.push(state);
                if i >= span.predict_from {
                    span.predictions.push(self.predict(state, span.n_top));
                }
            }
        }
        failed
    }

    fn rewind(&mut self, stream: &mut FakeStream, position: u64) {
        assert!(stream.states.len() <= position as usize + MAX_REWIND, "rewind beyond what is kept");
        stream.states.truncate(position as usize);
    }

    fn is_lost(&self, stream: &FakeStream) -> bool {
        stream.lost
    }

    fn max_rows(&self) -> usize {
        self.max_rows
    }

    fn decoder_bytes(&self) -> u64 {
        0
    }

    fn trace(&mut self, _: Option<TraceSink>) {}
}

impl Fake {
    pub fn new(n_mels: usize, eos_in: u64) -> Self {
        Self {
            n_mels,
            eos_in,
            lost_at: Vec::new(),
            fails_at: Vec::new(),
            max_streams: usize::MAX,
            max_rows: 64,
            streams: Arc::new(()),
            n_passes: 0,
            n_calls: 0,
        }
    }

    fn fail(&self) -> Result<()> {
        match self.fails_at.contains(&self.n_calls) {
            true => Err(Error::Backend("asked to fail".into())),
            false => Ok(()),
        }
    }

    /// Whether the stream is lost, if only in this call; with it goes its memory.
    fn loses(&self, stream: &mut FakeStream) -> bool {
        stream.lost |= self.lost_at.contains(&self.n_calls);
        stream.counted.take_if(|_| stream.lost);
        stream.lost
    }

    fn predict(&self, state: u64, n_top: usize) -> Prediction {
        let id = |state: u64| match state % 10 {
            _ if (state >> 8).is_multiple_of(self.eos_in) => 2,
            0..5 => 32,
            5 => 33,
            // single bytes, among them those of é and of a microphone
            6 | 7 => 1000 + u32::from(*b"\xC3\xA9\xF0\x9F\x8E\xA4 a".get((state >> 32) as usize % 8).unwrap_or(&0)),
            _ => 1256 + (state >> 32) as u32 % 1000,
        };
        let top = |i: usize| (if i == 0 { id(state) } else { id(hash((state, i))) }, 0.5f32.powi(i as i32 + 1));
        Prediction { id: id(state), top: (0..n_top).map(top).filter(|_| n_top > 1).collect() }
    }
}
