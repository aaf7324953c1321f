//! The state of a stream as plain numbers on the host, for moving it from one backend to another.

use super::{Backend, MAX_REWIND};
use crate::Result;
use crate::model::Delay;

/// State of one stream: what a backend needs to go on where another one stopped.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct StreamState {
    /// Last two mel frames, `[2, n_mels]`.
    pub mel_tail: Vec<f32>,
    /// Last row of the first convolution, `[1, encoder dim]`.
    pub conv_tail: Vec<f32>,
    /// Encoder rows so far.
    pub n_encoded_rows: u64,
    /// Keys and values of the last encoder rows.
    pub encoder: KvState,
    /// Decoder positions so far.
    pub position: u64,
    /// Keys and values of the last decoder positions.
    pub decoder: KvState,
    /// Audio embeddings, `[n, decoder dim]`, for the positions from `first_embedding` on.
    pub embeddings: Vec<f32>,
    pub first_embedding: u64,
}

/// Keys (after rotation) and values of consecutive positions.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct KvState {
    /// Position of the first row.
    pub first: u64,
    /// Keys, then values, of each layer: `[n_positions, kv_dim]`.
    pub layers: Vec<[Vec<f32>; 2]>,
}

impl KvState {
    /// The first position to keep of those up to `end`, where queries look back on `window` of them and up to
    /// [`MAX_REWIND`] may be forgotten again.
    pub fn first_kept(end: u64, window: usize) -> u64 {
        end.saturating_sub((window + MAX_REWIND) as u64)
    }
}

impl StreamState {
    /// Goes back to an earlier decoder position, as after a call that failed halfway. `false` where what that needs is
    /// not here any more.
    #[must_use]
    pub fn rewind(&mut self, position: u64) -> bool {
        let kept = self.first_embedding.max(self.position.saturating_sub(MAX_REWIND as u64));
        let known = (kept..=self.position).contains(&position);
        if known {
            self.position = position;
        }
        known
    }
}

/// A backend whose streams can leave it.
pub trait Export: Backend {
    /// The stream's state after the calls that succeeded; a call that failed may have moved it on, but no further than
    /// [`StreamState::position`] and [`StreamState::n_encoded_rows`] tell.
    ///
    /// # Errors
    /// When the device does not answer any more, or the stream was struck in the middle of an encoder call.
    fn export(&mut self, stream: &Self::Stream) -> Result<StreamState>;
}

/// A backend that takes in the streams of others.
pub trait Import: Backend {
    /// A stream with this state, whose delay must be that of the stream it came from.
    ///
    /// # Errors
    /// When there is no memory for it.
    fn import(&mut self, delay: Delay, state: &StreamState) -> Result<Self::Stream>;
}
