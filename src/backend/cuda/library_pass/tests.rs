//! The small kernels between a library's products, on random rows, against the CPU backend's functions.

use super::super::device::bytes_of_mut;
use super::super::launch::{NO_ROW, Row};
use super::super::pass::HEAD_DIM;
use super::super::test_data::{Random, assert_rows, device, f16_of, put};
use super::*;
use crate::backend::cpu::elementwise::{Rope, frequencies, rms_norm, rotate, swiglu};
use crate::backend::cpu::simd::Isa;

fn floats(device: &Device, buffer: &Buffer) -> Vec<f32> {
    let mut values = vec![0f32; buffer.n_bytes() / 4];
    // SAFETY: that is the buffer's size.
    unsafe { device.download(bytes_of_mut(&mut values), buffer.address()).unwrap() };
    values
}

/// Row after row of `width`, of which `n` count.
fn cut(values: &[f32], width: usize, n: usize) -> Vec<f32> {
    values.chunks_exact(width).flat_map(|row| &row[..n]).copied().collect()
}

#[test]
fn steps_are_those_of_the_cpu() {
    let kernels = device();
    let device = kernels.device();
    let isa = Isa::available()[0];
    for n_rows in [1, 2, 3, 7, 8, 9, 17, 33, 63, 64] {
        let (dim, hidden, vocab, n_heads, n_kv_heads, n_slots) = (142, 266, 1501, 6, 2, 256);
        let mut random = Random::new(n_rows as u32);
        let aligned = |n: usize| n.next_multiple_of(ALIGN);
        let (width, k_dim, k_hidden, n_hidden) = (padded(dim), aligned(dim), aligned(hidden), aligned(2 * hidden));
        let (q_dim, kv_dim, n_vocab) = (n_heads * HEAD_DIM, n_kv_heads * HEAD_DIM, aligned(vocab));
        let (n_qkv, k_attended) = (aligned(q_dim + 2 * kv_dim), aligned(q_dim));
        let what = |step: &str| format!("{step} of {n_rows} rows");
        let blank = |n: usize| put(device, &vec![u32::MAX; n]);
        let f16 = |buffer: &Buffer, n: usize| buffer.download(device, 0, n).unwrap();

        let embeddings = random.spread(vocab * k_dim, (-5.0, -2.0));
        let (audio, scales) = (random.spread(n_rows * width, (-2.0, 0.0)), random.spread(2 * width, (-1.0, 1.0)));
        let ring = f16_of(&random.spread(2 * 2 * n_slots * kv_dim, (-2.0, 1.0)));
        let mut norm = random.spread(width, (-1.0, 1.0));
        norm[dim..].fill(0.0);
        let embeddings_on_gpu = put(device, &f16_of(&embeddings));
        let (audio_on_gpu, scales_on_gpu) = (put(device, &audio), put(device, &scales));
        let (ring_on_gpu, norm_on_gpu) = (put(device, &ring), put(device, &norm));
        let rows: Vec<Row> = (0..n_rows)
            .map(|i| Row {
                audio: audio_on_gpu.address() + (i * width * 4) as u64,
                kv: ring_on_gpu.address(),
                ffn_scale: scales_on_gpu.address(),
                position: 250 + i as u32,
                n_slots: n_slots as u32,
                token: (i * 7919 % vocab) as u32,
                head_row: if i % 3 == 1 { NO_ROW } else { (i - (i + 1) / 3) as u32 },
            })
            .collect();
        let wanted: Vec<usize> = (0..n_rows).filter(|&i| rows[i].head_row != NO_ROW).collect();
        assert!(wanted.iter().enumerate().all(|(to, &from)| rows[from].head_row == to as u32));
        let qkv = random.spread(n_rows * n_qkv, (-2.0, 1.0));
        let gates = random.spread(n_rows * n_hidden, (-2.0, 2.0));
        let logits = random.spread(wanted.len() * n_vocab, (-1.0, 3.0));
        let attended = random.spread(MAX_ROWS * k_attended, (-2.0, 1.0));
        let buffers = [put(device, &rows), put(device, &frequencies(HEAD_DIM, 1e6)), put(device, &qkv)];
        let [rows_on_gpu, frequencies_on_gpu, qkv_on_gpu] = &buffers;
        let (gates_on_gpu, logits_on_gpu) = (put(device, &gates), put(device, &logits));
        let attended_on_gpu = put(device, &f16_of(&attended));
        let residual = device.alloc_zeros(n_rows * width * 4).unwrap();
        let (rope, normed, query) = (blank(n_rows * HEAD_DIM), blank(n_rows * k_dim), blank(n_rows * q_dim));
        let (attended_rows, activated, best) = (blank(n_rows * k_attended), blank(n_rows * k_hidden), blank(128));
        let squares = blank(2 * MAX_ROWS * dim.div_ceil(16));
        let head_normed = blank(MAX_ROWS * k_dim);
        let steps = Steps {
            rows: rows_on_gpu.address(),
            tok_embeddings: embeddings_on_gpu.address(),
            frequencies: frequencies_on_gpu.address(),
            residual: residual.address(),
            rope: rope.address(),
            normed: normed.address(),
            qkv: qkv_on_gpu.address(),
            query: query.address(),
            attended: attended_on_gpu.address(),
            attended_rows: attended_rows.address(),
            gates: gates_on_gpu.address(),
            activated: activated.address(),
            logits: logits_on_gpu.address(),
            best: best.address(),
            squares: squares.address(),
            head_normed: head_normed.address(),
            dim: dim as i32,
            width: width as i32,
            k_dim: k_dim as i32,
            n_heads: n_heads as i32,
            n_kv_heads: n_kv_heads as i32,
            n_qkv: n_qkv as i32,
            k_attended: k_attended as i32,
            hidden: hidden as i32,
            n_hidden: n_hidden as i32,
            k_hidden: k_hidden as i32,
            vocab: vocab as i32,
            n_vocab: n_vocab as i32,
            eps: 1e-5,
            layer: 1,
            norm: norm_on_gpu.address(),
            last: 0,
        };
        let run = |name: &'static str, grid: [usize; 2], steps: &Steps| {
            let kernel = device.kernel(DECODER_STEPS, name, 0).unwrap();
            // SAFETY: all buffers have the shapes that the steps say.
            unsafe { device.launch(&kernel, [grid[0] as u32, grid[1] as u32, 1], 256, 0, steps).unwrap() };
        };

        run("embed_rows", [n_rows, 1], &steps);
        let x = cut(&floats(device, &residual), width, dim);
        let token = |row: &Row| f16_of(&embeddings[row.token as usize * k_dim..][..dim]);
        let expected = rows.iter().zip(audio.chunks_exact(width)).flat_map(|(row, audio)| {
            let sums = token(row).into_iter().zip(audio).map(|(t, a)| half::f16::from_bits(t).to_f32() + a);
            sums.collect::<Vec<_>>()
        });
        assert!(x == expected.collect::<Vec<_>>(), "{}", what("embeddings"));
        let angles: Vec<_> = rows.iter().map(|row| Rope::new(HEAD_DIM, 1e6).angles(row.position.into())).collect();
        let expected: Vec<f32> = angles.iter().flatten().flat_map(|&(cosine, sine)| [cosine, sine]).collect();
        assert_rows(&what("rotations"), &floats(device, &rope), &expected, HEAD_DIM, 1e-6);
        let mut keys = vec![1u64; 64];
        // SAFETY: the buffer has 64 of them.
        unsafe { device.download(bytes_of_mut(&mut keys), best.address()).unwrap() };
        assert!(keys[..n_rows].iter().all(|&key| key == 0), "{}", what("results before a pass"));

        let norm_of = |row: usize, scaled: bool| -> Vec<f32> {
            let mut out = vec![0f32; dim];
            rms_norm(isa, &x[row * dim..][..dim], &norm[..dim], 1e-5, &mut out);
            if scaled {
                out.iter_mut().zip(&scales[width..]).for_each(|(h, scale)| *h *= scale);
            }
            out
        };
        run("norm_rows", [n_rows, 1], &steps);
        let expected: Vec<f32> = (0..n_rows).flat_map(|row| norm_of(row, true)).collect();
        assert_rows(&what("norm"), &cut(&f16(&normed, n_rows * k_dim), k_dim, dim), &expected, dim, 5e-4);
        run("norm_rows", [n_rows, 1], &Steps { layer: -1, last: 1, ..steps });
        let expected: Vec<f32> = wanted.iter().flat_map(|&row| norm_of(row, false)).collect();
        let got = cut(&f16(&normed, wanted.len() * k_dim), k_dim, dim);
        assert_rows(&what("last norm"), &got, &expected, dim, 5e-4);

        // up to a power of two, which goes with a row's sum of squares
        run("head_input", [n_rows, 1], &Steps { layer: -1, ..steps });
        let (got, squares, tiles) = (f16(&head_normed, MAX_ROWS * k_dim), floats(device, &squares), dim.div_ceil(16));
        for (to, &from) in wanted.iter().enumerate() {
            let own = |norm: usize, row: usize| &squares[(norm * MAX_ROWS + row) * tiles..][..tiles];
            let expected: Vec<f32> =
                x[from * dim..][..dim].chunks(16).map(|tile| tile.iter().map(|x| x * x).sum()).collect();
            assert_rows(&what("squares"), own(0, to), &expected, 1, 1e-5);
            assert_rows(&what("squares before"), own(1, from), &expected, 1, 1e-5);
            let inverse = 1.0 / (expected.iter().sum::<f32>() / dim as f32 + 1e-5).sqrt();
            let scale = inverse / f32::from_bits(inverse.to_bits() & 0x7F80_0000);
            let row: Vec<f32> = (0..dim).map(|k| got[(k / 32 * MAX_ROWS + to) * 32 + k % 32] * scale).collect();
            assert_rows(&what("input of the head"), &row, &norm_of(from, false), dim, 5e-4);
        }

        run("rotate_rows", [n_rows, 1], &steps);
        let got_query = f16(&query, n_rows * q_dim);
        let got_ring = f16(&ring_on_gpu, ring.len());
        let mut expected_ring: Vec<f32> = ring.iter().map(|&b| half::f16::from_bits(b).to_f32()).collect();
        for (i, angles) in angles.iter().enumerate() {
            let mut row = qkv[i * n_qkv..][..q_dim + 2 * kv_dim].to_vec();
            rotate(&mut row[..q_dim + kv_dim], angles);
            assert_rows(&what("query"), &got_query[i * q_dim..][..q_dim], &row[..q_dim], HEAD_DIM, 5e-4);
            let slot = rows[i].position as usize % n_slots;
            for (d, &x) in row[q_dim..].iter().enumerate() {
                let (plane, d) = (2 + d / kv_dim, d % kv_dim);
                let head = (plane * n_kv_heads + d / HEAD_DIM) * n_slots * HEAD_DIM;
                let d = d % HEAD_DIM;
                let at = if plane == 2 { slot * HEAD_DIM + d } else { (slot / 32 * HEAD_DIM + d) * 32 + slot % 32 };
                expected_ring[head + at] = x;
            }
        }
        assert_rows(&what("ring"), &got_ring, &expected_ring, 32, 1e-3);

        run("attended_rows", [n_rows, 1], &steps);
        let got = f16(&attended_rows, n_rows * k_attended);
        let source: Vec<f32> = f16_of(&attended).iter().map(|&b| half::f16::from_bits(b).to_f32()).collect();
        let expected = (0..n_rows).flat_map(|row| (0..q_dim).map(move |k| (k / 32 * MAX_ROWS + row) * 32 + k % 32));
        assert!(cut(&got, k_attended, q_dim) == expected.map(|at| source[at]).collect::<Vec<_>>(), "{}", what("order"));

        run("swiglu_rows", [2, n_rows], &steps);
        let mut expected = cut(&gates, n_hidden, hidden);
        let ups: Vec<f32> = gates.chunks_exact(n_hidden).flat_map(|row| &row[hidden..2 * hidden]).copied().collect();
        swiglu(isa, &mut expected, &ups);
        let got = cut(&f16(&activated, n_rows * k_hidden), k_hidden, hidden);
        assert_rows(&what("swiglu"), &got, &expected, hidden, 5e-4);

        run("best_of_rows", [3, wanted.len()], &steps);
        // SAFETY: the buffer has 64 of them.
        unsafe { device.download(bytes_of_mut(&mut keys), best.address()).unwrap() };
        for (row, key) in logits.chunks_exact(n_vocab).zip(keys) {
            let expected = (0..vocab).fold(0, |best, i| if row[i] > row[best] { i } else { best });
            assert_eq!(!(key as u32), expected as u32, "{}", what("best"));
        }
    }
}
