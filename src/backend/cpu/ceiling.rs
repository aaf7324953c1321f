//! What this machine can do at most, to hold measured speeds against.

use rayon::prelude::*;

use crate::model::Weights;
use crate::model::weights::{LayerWeights, Tensor};

/// Adds up all words of the decoder's matrices, in the order of a step, on the threads of the current pool: the least time
/// that a pass over them can take.
pub fn read_decoder(weights: &Weights) {
    let matrices = |layer: &'_ LayerWeights| {
        let (a, f) = (&layer.attention, &layer.feed_forward);
        [&a.wq, &a.wk, &a.wv, &a.wo, &f.w1, &f.w3, &f.w2].map(Tensor::clone)
    };
    let all = weights.decoder.iter().flat_map(matrices).chain([weights.tok_embeddings.clone()]);
    let sum: u64 = all
        .map(|tensor| tensor.data().par_chunks(1 << 15).map(sum).reduce(|| 0, u64::wrapping_add))
        .fold(0, u64::wrapping_add);
    std::hint::black_box(sum);
}

fn sum(values: &[[u8; 2]]) -> u64 {
    let words = values.as_chunks::<32>().0;
    let mut sums = [0u64; 8];
    for word in words {
        let bytes = word.as_flattened();
        for (sum, eight) in sums.iter_mut().zip(bytes.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*eight));
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}
