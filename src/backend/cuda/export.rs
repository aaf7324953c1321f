//! A stream's state brought to the host, so that another backend can go on with it.

use super::Cuda;
use super::stream::{CudaStream, encoder_slots};
use crate::backend::{Export, KvState, StreamState};
use crate::{Error, Result};

impl Export for Cuda {
    fn export(&mut self, stream: &CudaStream) -> Result<StreamState> {
        if stream.struck {
            return Err(Error::Backend("CUDA: the stream was struck in the middle of an encoder pass".into()));
        }
        let device = self.kernels.device();
        device.enter()?;
        // a GPU that has failed says so here
        device.finish()?;
        let p = &self.weights.params;
        let [mel_tail, conv_tail] = stream.encoder_tails(device, p.encoder.dim)?;
        let first_row = stream.n_encoded_rows.saturating_sub(encoder_slots(&p.encoder) as u64);
        let first = KvState::first_kept(stream.position, p.decoder.sliding_window);
        let (first_embedding, embeddings) = stream.kept_embeddings(device, p.decoder.dim)?;
        Ok(StreamState {
            mel_tail,
            conv_tail,
            n_encoded_rows: stream.n_encoded_rows,
            encoder: KvState { first: first_row, layers: stream.encoder_kv(device, &p.encoder, first_row)? },
            position: stream.position,
            decoder: KvState { first, layers: stream.decoder_kv(device, &p.decoder, first)? },
            embeddings,
            first_embedding,
        })
    }
}
