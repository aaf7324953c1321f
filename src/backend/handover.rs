//! Going on elsewhere when a device fails: [`Handover`] runs on one backend and, from that backend's first failure on, on
//! another.
//!
//! Streams move with all their state ([`StreamState`]) when they are next worked on, and the failed call is repeated for
//! them. A stream whose state is out of reach (a GPU that stopped answering, or work struck halfway) is lost, and says so
//! through [`Backend::is_lost`]: whoever feeds it starts its audio again.

use std::sync::{Arc, Mutex, PoisonError};

use super::state::{Export, Import, StreamState};
use super::{Backend, BackendOptions, EncodeChunk, MAX_REWIND, Span, TraceSink};
use crate::model::params::FRAMES_PER_TOKEN;
use crate::model::{Delay, Weights};
use crate::{Error, Result};

/// Encoder rows that a token's frames make.
const ROWS_PER_TOKEN: usize = FRAMES_PER_TOKEN / 2;

/// Runs on a `P` until it fails, then on an `S`, which is loaded only then.
pub struct Handover<P: Backend, S: Backend> {
    /// Absent when it never loaded, or failed and no stream is left on it.
    first: Option<P>,
    second: Option<S>,
    failed: bool,
    weights: Weights,
    options: BackendOptions,
    /// Held by every stream that is on the first backend.
    on_first: Arc<()>,
    trace: Option<Arc<Mutex<TraceSink>>>,
}

/// A stream of a [`Handover`].
pub struct HandoverStream<P: Backend, S: Backend> {
    place: Place<P::Stream, S::Stream>,
    delay: Delay,
}

enum Place<P, S> {
    First {
        stream: P,
        /// Decoder positions and encoder rows of the calls that succeeded.
        position: u64,
        n_encoded_rows: u64,
        /// Counts the streams that are here.
        here: Arc<()>,
    },
    Second(S),
    Lost,
}

impl<P: Backend, S: Backend> HandoverStream<P, S> {
    fn first(&mut self) -> Option<&mut P::Stream> {
        match &mut self.place {
            Place::First { stream, .. } => Some(stream),
            _ => None,
        }
    }

    fn second(&mut self) -> Option<&mut S::Stream> {
        match &mut self.place {
            Place::Second(stream) => Some(stream),
            _ => None,
        }
    }
}

impl<P: Export, S: Import> Handover<P, S> {
    /// Starts on a backend that is ready, made from these weights and options.
    pub fn new(first: P, weights: &Weights, options: &BackendOptions) -> Self {
        Self { first: Some(first), ..Self::empty(weights, options) }
    }

    fn empty(weights: &Weights, options: &BackendOptions) -> Self {
        Self {
            first: None,
            second: None,
            failed: false,
            weights: weights.clone(),
            options: options.clone(),
            on_first: Arc::new(()),
            trace: None,
        }
    }

    /// Whether work still goes to the first backend.
    pub fn is_on_first(&self) -> bool {
        !self.failed
    }

    /// Turns to the second backend because of this failure.
    fn turn(&mut self, failure: &Error) -> Result<()> {
        tracing::warn!("{failure}; going on with the CPU from the same place");
        self.failed = true;
        self.load_second().map_err(|error| Error::Backend(format!("{failure}; and then: {error}")))
    }

    fn load_second(&mut self) -> Result<()> {
        let mut second = S::load(&self.weights, &self.options)?;
        second.trace(self.trace.as_ref().map(forward));
        self.second = Some(second);
        Ok(())
    }

    /// Moves a stream to the second backend, or gives it up.
    fn migrate(&mut self, stream: &mut HandoverStream<P, S>) -> Result<()> {
        let Place::First { stream: from, position, n_encoded_rows, .. } = &mut stream.place else { return Ok(()) };
        let exported = match &mut self.first {
            Some(first) => first.export(from).and_then(|state| settled(state, *position, *n_encoded_rows)),
            None => Err(Error::Backend("its device is gone".into())),
        };
        stream.place = match exported {
            Ok(state) => Place::Second(self.second()?.import(stream.delay, &state)?),
            Err(error) => {
                tracing::warn!("a stream cannot be moved ({error}); its last seconds are worked on again");
                Place::Lost
            }
        };
        Ok(())
    }

    /// Frees the first backend when no stream is on it any more.
    fn leave_first(&mut self) {
        if self.failed && Arc::strong_count(&self.on_first) == 1 {
            self.first = None;
        }
    }

    fn second(&mut self) -> Result<&mut S> {
        self.second.as_mut().ok_or_else(|| Error::Backend("the CPU backend could not be loaded".into()))
    }
}

/// A state as it was after the calls that succeeded, if the one that failed left so much.
fn settled(mut state: StreamState, position: u64, n_encoded_rows: u64) -> Result<StreamState> {
    if state.n_encoded_rows == n_encoded_rows && state.rewind(position) {
        Ok(state)
    } else {
        Err(Error::Backend("struck in the middle of its work".into()))
    }
}

/// A sink that passes everything on to a shared one.
fn forward(sink: &Arc<Mutex<TraceSink>>) -> TraceSink {
    let sink = sink.clone();
    Box::new(move |name, layer, rows, width| {
        sink.lock().unwrap_or_else(PoisonError::into_inner)(name, layer, rows, width);
    })
}

impl<P: Export, S: Import> Backend for Handover<P, S> {
    type Stream = HandoverStream<P, S>;

    /// Loads the first backend, or, where that fails, the second.
    fn load(weights: &Weights, options: &BackendOptions) -> Result<Self> {
        match P::load(weights, options) {
            Ok(first) => Ok(Self::new(first, weights, options)),
            Err(failure) => {
                let mut handover = Self::empty(weights, options);
                handover.turn(&failure)?;
                Ok(handover)
            }
        }
    }

    /// As long as other streams are on the first backend its failure to open one more is an error, not a reason to turn
    /// to the second: there may be room when one of them has ended.
    fn open(&mut self, delay: Delay) -> Result<Self::Stream> {
        if let Some(first) = self.first.as_mut().filter(|_| !self.failed) {
            match first.open(delay) {
                Ok(stream) => {
                    let place = Place::First { stream, position: 0, n_encoded_rows: 0, here: self.on_first.clone() };
                    return Ok(HandoverStream { place, delay });
                }
                Err(failure) if Arc::strong_count(&self.on_first) > 1 => return Err(failure),
                Err(failure) => self.turn(&failure)?,
            }
        }
        self.leave_first();
        Ok(HandoverStream { place: Place::Second(self.second()?.open(delay)?), delay })
    }

    fn fork(&mut self, stream: &Self::Stream) -> Result<Self::Stream> {
        let place = match (&stream.place, &mut self.first, &mut self.second) {
            (Place::First { stream, position, n_encoded_rows, here }, Some(first), _) if !self.failed => Place::First {
                stream: first.fork(stream)?,
                position: *position,
                n_encoded_rows: *n_encoded_rows,
                here: here.clone(),
            },
            (Place::Second(stream), _, Some(second)) => Place::Second(second.fork(stream)?),
            _ => return Err(Error::Backend("its device is gone".into())),
        };
        Ok(HandoverStream { place, delay: stream.delay })
    }

    fn can_fork(&self, stream: &Self::Stream) -> bool {
        match &stream.place {
            Place::First { .. } => !self.failed,
            Place::Second(_) => true,
            Place::Lost => false,
        }
    }

    fn encode(&mut self, batch: &mut [EncodeChunk<'_, Self::Stream>]) -> Result<()> {
        let n_mels = self.weights.params.n_mels;
        if let Some(first) = self.first.as_mut().filter(|_| !self.failed) {
            let mut chunks: Vec<_> = batch
                .iter_mut()
                .filter_map(|chunk| Some(EncodeChunk { stream: chunk.stream.first()?, log_mel: chunk.log_mel }))
                .collect();
            match first.encode(&mut chunks) {
                Ok(()) => {
                    for chunk in batch {
                        if let Place::First { n_encoded_rows, .. } = &mut chunk.stream.place {
                            *n_encoded_rows +=
                                (chunk.log_mel.len() / n_mels / FRAMES_PER_TOKEN * ROWS_PER_TOKEN) as u64;
                        }
                    }
                    return Ok(());
                }
                Err(failure) => self.turn(&failure)?,
            }
        }
        for chunk in batch.iter_mut() {
            self.migrate(chunk.stream)?;
        }
        self.leave_first();
        let chunks = batch
            .iter_mut()
            .filter_map(|chunk| Some(EncodeChunk { stream: chunk.stream.second()?, log_mel: chunk.log_mel }));
        self.second()?.encode(&mut chunks.collect::<Vec<_>>())
    }

    fn decode(&mut self, batch: &mut [Span<'_, Self::Stream>]) -> Result<()> {
        for span in batch.iter_mut() {
            span.predictions.clear();
        }
        if let Some(first) = self.first.as_mut().filter(|_| !self.failed) {
            let decoded = decode_there(batch, HandoverStream::first, |spans| first.decode(spans));
            match decoded {
                Ok(()) => {
                    for span in batch {
                        if let Place::First { position, .. } = &mut span.stream.place {
                            *position += span.inputs.len() as u64;
                        }
                    }
                    return Ok(());
                }
                Err(failure) => self.turn(&failure)?,
            }
        }
        for span in batch.iter_mut() {
            self.migrate(span.stream)?;
        }
        self.leave_first();
        let second = self.second()?;
        decode_there(batch, HandoverStream::second, |spans| second.decode(spans))
    }

    fn rewind(&mut self, stream: &mut Self::Stream, to: u64) {
        match &mut stream.place {
            Place::First { stream, position, .. } => {
                // after a failure the stream only waits to be moved
                if let Some(first) = self.first.as_mut().filter(|_| !self.failed) {
                    first.rewind(stream, to);
                }
                *position = to;
            }
            Place::Second(stream) => {
                if let Some(second) = &mut self.second {
                    second.rewind(stream, to);
                }
            }
            Place::Lost => {}
        }
    }

    fn is_lost(&self, stream: &Self::Stream) -> bool {
        matches!(stream.place, Place::Lost)
    }

    fn memory_in_use(&self) -> Option<u64> {
        self.first.as_ref().and_then(Backend::memory_in_use)
    }

    fn room_for_streams(&self, n_positions: usize) -> Option<usize> {
        self.first.as_ref().and_then(|first| first.room_for_streams(n_positions))
    }

    fn max_rows(&self) -> usize {
        let first = self.first.as_ref().filter(|_| !self.failed).map(P::max_rows);
        first.or(self.second.as_ref().map(S::max_rows)).unwrap_or(MAX_REWIND)
    }

    fn decoder_bytes(&self) -> u64 {
        let first = self.first.as_ref().filter(|_| !self.failed).map(P::decoder_bytes);
        first.or(self.second.as_ref().map(S::decoder_bytes)).unwrap_or(0)
    }

    fn trace(&mut self, sink: Option<TraceSink>) {
        self.trace = sink.map(|sink| Arc::new(Mutex::new(sink)));
        if let Some(first) = &mut self.first {
            first.trace(self.trace.as_ref().map(forward));
        }
        if let Some(second) = &mut self.second {
            second.trace(self.trace.as_ref().map(forward));
        }
    }
}

/// Decodes those spans of a batch whose streams are on one of the backends, and takes over what was predicted.
fn decode_there<P: Backend, S: Backend, T>(
    batch: &mut [Span<'_, HandoverStream<P, S>>],
    there: impl Fn(&mut HandoverStream<P, S>) -> Option<&mut T>,
    decode: impl FnOnce(&mut [Span<'_, T>]) -> Result<()>,
) -> Result<()> {
    let (mut spans, mut outputs) = (Vec::new(), Vec::new());
    for span in batch {
        let &mut Span { inputs, predict_from, drafts_from, n_top, .. } = span;
        if let Some(stream) = there(span.stream) {
            let predictions = std::mem::take(&mut span.predictions);
            spans.push(Span { stream, inputs, predict_from, drafts_from, n_top, predictions });
            outputs.push(&mut span.predictions);
        }
    }
    decode(&mut spans)?;
    for (output, span) in outputs.into_iter().zip(spans) {
        *output = span.predictions;
    }
    Ok(())
}
