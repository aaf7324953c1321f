//! Times of whole passes at the real model's size.

use super::*;

/// Weights are random numbers made here: no checkpoint is needed.
///
///     cargo test --features gpu-tests --lib -- --ignored --nocapture times_of_full_size_passes
#[test]
#[ignore = "takes times, with 8 GB of weights"]
fn times_of_full_size_passes() {
    let kernels = device();
    let device = kernels.device();
    let p = TransformerParams {
        dim: 3072,
        n_layers: 26,
        head_dim: HEAD_DIM,
        hidden_dim: 9216,
        n_heads: 32,
        n_kv_heads: 8,
        rope_theta: 1e6,
        norm_eps: 1e-5,
        sliding_window: 8192,
    };
    let vocab_size = 131_072;
    let noise = put(device, &f16_of(&Random::new(1).spread(8 << 20, (-8.0, -5.0))));
    let filled = |n_bytes: usize| {
        let buffer = device.alloc(n_bytes).unwrap();
        for at in (0..n_bytes).step_by(noise.n_bytes()) {
            let n = noise.n_bytes().min(n_bytes - at);
            // SAFETY: both buffers are that large.
            unsafe { device.copy(buffer.address() + at as u64, noise.address(), n).unwrap() };
        }
        buffer
    };
    let vector = || put(device, &vec![1f32; p.dim]);
    let layout = LayerLayout::new(layer_tiles(&p));
    let layer =
        |_| Layer { attention_norm: vector(), ffn_norm: vector(), matrices: Place::Device(filled(layout.n_bytes)) };
    let [wqkv, wo, w13, w2] = layer_tiles(&p);
    let in_layer = [(0, wqkv), (layout.wo, wo), (layout.w13, w13), (layout.w2, w2)];
    let [wide, narrow] = [Tiles::e4m7(vocab_size, p.dim), Tiles::int8(vocab_size, p.dim)];
    let [head, int8_head] = [wide, narrow].map(|tiles| filled(tiles.n_bytes()));
    let layers: Vec<Layer> = (0..p.n_layers).map(layer).collect();
    let scale = |matrix: Address, tiles: Tiles, scale: f32| {
        let scales = vec![scale; (tiles.n_bytes() - tiles.scales_at()) / 4];
        // SAFETY: there are so many at that place, and `scales` outlive the wait.
        unsafe { device.upload(matrix + tiles.scales_at() as u64, bytes_of(&scales)).unwrap() };
        device.finish().unwrap();
    };
    let mut weights = DecoderWeights {
        params: Params { encoder: p, decoder: p, vocab_size, ada_dim: 8, n_mels: 8, log_mel_max: 1.5 },
        layers,
        staging: None,
        head,
        int8_head: Some(int8_head),
        norm: vector(),
        frequencies: crate::backend::cuda::frequencies(device, &p).unwrap(),
        layout,
        widened: None,
    };
    for (layer, (at, tiles)) in weights.layers.iter().flat_map(|layer| in_layer.map(|matrix| (layer, matrix))) {
        scale(weights.address(layer) + at as u64, tiles, 1.0);
    }
    scale(weights.head.address(), wide, 1.0);
    scale(weights.int8_head.as_ref().unwrap().address(), narrow, 1e-4);
    weights.widened = Some(Widened::new(&kernels, &weights).unwrap());
    let decoder = Decoder::new(device, weights, &CudaOptions::default()).unwrap();
    let int8_kernels = PassKernels::new(device, true, true).unwrap();
    let pass = decoder.parameters(false);
    let n_phases = Phases { n_layers: p.n_layers }.head().end;
    let ffn_scale = put(device, &vec![1f32; p.n_layers * p.dim]);
    let audio = put(device, &Random::new(2).spread(MAX_ROWS * p.dim, (-6.0, -4.0)));
    let time_with = |what: &str, spans: &[(usize, usize)], kernels: &PassKernels, index: usize| {
        let n_slots = spans.iter().map(|(position, n)| position + n).max().unwrap().next_multiple_of(CHUNK);
        let rings: Vec<_> = spans.iter().map(|_| filled(p.n_layers * 2 * n_slots * p.kv_dim() * 2)).collect();
        let (mut rows, mut groups) = (Vec::new(), Vec::new());
        for (&(position, n), ring) in spans.iter().zip(&rings) {
            for first in (0..n).step_by(pass::group_rows(&p)) {
                let n = pass::group_rows(&p).min(n - first);
                groups.push(Group { first: (rows.len() + first) as i32, n: n as i32 });
            }
            for i in 0..n {
                let row = rows.len();
                rows.push(Row {
                    audio: audio.address() + (row * p.dim * 4) as u64,
                    kv: ring.address(),
                    ffn_scale: ffn_scale.address(),
                    position: (position + i) as u32,
                    n_slots: n_slots as u32,
                    token: (row * 7919 % vocab_size) as u32,
                    head_row: row as u32,
                });
            }
        }
        write_table(device, &decoder.scratch, &rows, &groups, rows.len());
        let mut best = vec![0u64; rows.len()];
        let mut run = || {
            let start = std::time::Instant::now();
            // SAFETY: the scratch memory holds every row, and rings and matrices have the sizes that the parameters say.
            unsafe {
                kernels.launch(index, &decoder.with_weights(&pass, index), 0..n_phases).unwrap();
                device.download(bytes_of_mut(&mut best), decoder.scratch.best.address()).unwrap();
            }
            start.elapsed().as_secs_f64() * 1e3
        };
        let mut times: Vec<f64> = (0..44).map(|_| run()).skip(3).collect();
        times.sort_unstable_by(f64::total_cmp);
        assert!(best.iter().all(|&best| top1(best).is_ok()), "{what}: not finite");
        println!("{what}: {:.3} ms, from {:.3} to {:.3}", times[20], times[2], times[38]);
    };
    let time = |what: &str, spans: &[(usize, usize)], kernels: &PassKernels| {
        time_with(what, spans, kernels, kernels.index(spans.iter().map(|(_, n)| n).sum()));
    };
    for position in [64, 600, 1170, 2300] {
        time(&format!("step at {position} positions"), &[(position, 1)], &decoder.kernels);
        time(&format!("step at {position} positions, head in 8 bits"), &[(position, 1)], &int8_kernels);
    }
    let kernels = &decoder.kernels;
    for n in [2, 4, 8, 9, 16, 32, 40, 48, 64, 96, 128].into_iter().filter(|&n| n <= kernels.max_rows()) {
        for index in kernels.index(n)..=kernels.index(kernels.max_rows()) {
            time_with(&format!("{n} rows of one stream, kernel {index}"), &[(64, n)], kernels, index);
        }
    }
    for n in [8, 32, 48, 64, 96].into_iter().filter(|&n| n <= kernels.max_rows()) {
        time(&format!("{n} streams"), &vec![(64, 1); n], &decoder.kernels);
        time(&format!("{n} streams, head in 8 bits"), &vec![(64, 1); n], &int8_kernels);
    }
    time("8 streams at 700 positions", &[(700, 1); 8], &decoder.kernels);
    time("32 streams at 2300 positions", &[(2300, 1); 32], &decoder.kernels);
}
