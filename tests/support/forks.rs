//! What `Backend::fork` promises.

use voxtral::Delay;
use voxtral::backend::{Backend, EncodeChunk, Prediction, Span};
use voxtral::model::params::Params;

/// A stream that is fed noise and made-up tokens.
struct Fed<S> {
    stream: S,
    n_encoded: usize,
    n_decoded: usize,
}

impl<S> Fed<S> {
    /// Makes embeddings up to `n_encoded`, then decodes up to `n_decoded`; what is predicted after those positions, with all
    /// probabilities.
    fn feed<B: Backend<Stream = S>>(
        &mut self,
        backend: &mut B,
        p: &Params,
        (n_encoded, n_decoded): (usize, usize),
        seed: usize,
    ) -> Vec<Prediction> {
        let width = 8 * p.n_mels;
        let value = |i: usize| (((i + seed) * 7919 % 1013) as f32 / 506.5) - 1.0;
        let log_mel: Vec<f32> = (self.n_encoded * width..n_encoded * width).map(value).collect();
        backend.encode(&mut [EncodeChunk { stream: &mut self.stream, log_mel: &log_mel }]).unwrap();
        let token = |i: usize| if i.is_multiple_of(3) { 33 } else { 1000 + ((i + seed) * 37 % 1800) as u32 };
        let tokens: Vec<u32> = (self.n_decoded..n_decoded).map(token).collect();
        let mut predictions = Vec::new();
        for inputs in tokens.chunks(40) {
            let (stream, n_top) = (&mut self.stream, p.vocab_size);
            let mut span =
                Span { stream, inputs, predict_from: 0, drafts_from: usize::MAX, n_top, predictions: vec![] };
            backend.decode(std::slice::from_mut(&mut span)).unwrap();
            predictions.append(&mut span.predictions);
        }
        (self.n_encoded, self.n_decoded) = (n_encoded, n_decoded);
        predictions
    }

    fn fork<B: Backend<Stream = S>>(&self, backend: &mut B) -> Self {
        let stream = backend.fork(&self.stream).unwrap();
        Self { stream, n_encoded: self.n_encoded, n_decoded: self.n_decoded }
    }
}

/// Forks streams of the tiny model in several states: with embeddings that wait and without, rings that have wrapped around
/// and such that have not. Forks go on as the stream they were made of does, and what becomes of one is nothing to the others.
pub fn check<B: Backend>(backend: &mut B, p: &Params) {
    for state in [(0, 0), (31, 31), (40, 17), (64, 0), (300, 290), (700, 699)] {
        let stream = backend.open(Delay::DEFAULT).unwrap();
        let mut original = Fed { stream, n_encoded: 0, n_decoded: 0 };
        original.feed(backend, p, state, 1);
        let [mut early, mut other] = [original.fork(backend), original.fork(backend)];
        let further = (state.0 + 30, state.0 + 25);
        let different = other.feed(backend, p, further, 5);
        let expected = original.feed(backend, p, further, 1);
        assert!(early.feed(backend, p, further, 1) == expected, "forked at {state:?}");
        assert!(different != expected);
        let mut late = original.fork(backend);
        drop(early);
        let last = (further.0 + 300, further.0 + 290);
        assert!(late.feed(backend, p, last, 1) == original.feed(backend, p, last, 1), "forked after {state:?}");
    }
}
