//! A backend that fails when it is told to, around one that works.

use voxtral::backend::{Backend, BackendOptions, EncodeChunk, Export, Span, StreamState, TraceSink};
use voxtral::model::{Delay, Weights};
use voxtral::{Error, Result};

/// How a call fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// Before it has done anything.
    Refused,
    /// After all of its work.
    Halfway,
    /// Like everything after it, exports too.
    Dead,
}

/// Works like `B` but for one call.
pub struct Failing<B> {
    backend: B,
    /// Calls (open, fork, encode, decode) before the one that fails.
    calls_left: usize,
    failure: Failure,
    dead: bool,
}

impl<B> Failing<B> {
    pub fn new(backend: B, calls_left: usize, failure: Failure) -> Self {
        Self { backend, calls_left, failure, dead: false }
    }

    /// Makes a call, or fails as planned.
    fn call<T>(&mut self, call: impl FnOnce(&mut B) -> Result<T>) -> Result<T> {
        let due = self.calls_left == 0;
        self.calls_left = self.calls_left.wrapping_sub(1);
        self.dead |= due && self.failure == Failure::Dead;
        if self.dead || (due && self.failure == Failure::Refused) {
            return Err(Error::Backend("a failure that was asked for".into()));
        }
        let result = call(&mut self.backend)?;
        if due { Err(Error::Backend("a late failure that was asked for".into())) } else { Ok(result) }
    }
}

impl<B: Backend> Backend for Failing<B> {
    type Stream = B::Stream;

    fn load(weights: &Weights, options: &BackendOptions) -> Result<Self> {
        Ok(Self::new(B::load(weights, options)?, usize::MAX, Failure::Refused))
    }

    fn open(&mut self, delay: Delay) -> Result<B::Stream> {
        self.call(|backend| backend.open(delay))
    }

    fn fork(&mut self, stream: &B::Stream) -> Result<B::Stream> {
        self.call(|backend| backend.fork(stream))
    }

    fn encode(&mut self, batch: &mut [EncodeChunk<'_, B::Stream>]) -> Result<()> {
        self.call(|backend| backend.encode(batch))
    }

    fn decode(&mut self, batch: &mut [Span<'_, B::Stream>]) -> Result<()> {
        self.call(|backend| backend.decode(batch))
    }

    fn rewind(&mut self, stream: &mut B::Stream, position: u64) {
        self.backend.rewind(stream, position);
    }

    fn max_rows(&self) -> usize {
        self.backend.max_rows()
    }

    /// It has some as long as it is there.
    fn memory_in_use(&self) -> Option<u64> {
        Some(1)
    }

    fn decoder_bytes(&self) -> u64 {
        self.backend.decoder_bytes()
    }

    fn trace(&mut self, sink: Option<TraceSink>) {
        self.backend.trace(sink);
    }
}

impl<B: Export> Export for Failing<B> {
    fn export(&mut self, stream: &B::Stream) -> Result<StreamState> {
        if self.dead {
            return Err(Error::Backend("dead".into()));
        }
        self.backend.export(stream)
    }
}
