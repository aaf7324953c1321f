//! What happens to rows between products, and how weights are laid out, against the CPU backend's functions and plain loops.

use std::collections::HashMap;

use super::super::device::bytes_of_mut;
use super::super::test_data::{Random, assert_rows, bf16_of, device, e4m7_of, e4m7_scale, f16_of, put};
use super::*;
use crate::backend::cpu::elementwise::{Rope, frequencies, rms_norm as norm_row};
use crate::backend::cpu::simd::Isa;

fn bits(device: &Device, buffer: &super::super::device::Buffer) -> Vec<u16> {
    let mut bits = vec![0u16; buffer.n_bytes() / 2];
    // SAFETY: that is the buffer's size.
    unsafe { device.download(bytes_of_mut(&mut bits), buffer.address()).unwrap() };
    bits
}

fn numbers(bits: &[u16]) -> Vec<f32> {
    bits.iter().map(|&b| half::f16::from_bits(b).to_f32()).collect()
}

/// Random BF16 numbers, and what they are as F16.
fn weights(random: &mut Random, n: usize) -> (Vec<u16>, Vec<u16>) {
    let source = bf16_of(&random.spread(n, (-6.0, 2.0)));
    let wide: Vec<f32> = source.iter().map(|&b| half::bf16::from_bits(b).to_f32()).collect();
    (source, f16_of(&wide))
}

#[test]
fn norms_are_those_of_the_cpu() {
    let kernels = device();
    let device = kernels.device();
    for (dim, n_rows) in [(1usize, 1), (72, 3), (128, 2), (130, 7), (1280, 9), (1281, 33)] {
        let stride = dim.next_multiple_of(128);
        let mut random = Random::new(dim as u32);
        let (mut x, mut weight) = (random.spread(n_rows * stride, (-3.0, 3.0)), random.spread(stride, (-1.0, 1.0)));
        x.chunks_exact_mut(stride).for_each(|row| row[dim..].fill(0.0));
        weight[dim..].fill(0.0);
        let (on_gpu, weight_on_gpu) = (put(device, &x), put(device, &weight));
        let h = put(device, &vec![u16::MAX; n_rows * stride]);
        let a = RmsNorm {
            x: on_gpu.address(),
            weight: weight_on_gpu.address(),
            h: h.address(),
            dim: dim as i32,
            stride: stride as i32,
            eps: 1e-5,
        };
        // SAFETY: all buffers have that shape.
        unsafe { kernels.rms_norm(n_rows, &a).unwrap() };
        let got = numbers(&bits(device, &h));
        for (i, (x, got)) in x.chunks_exact(stride).zip(got.chunks_exact(stride)).enumerate() {
            let mut expected = vec![0f32; dim];
            norm_row(Isa::available()[0], &x[..dim], &weight[..dim], 1e-5, &mut expected);
            assert_rows(&format!("norm of {dim}, row {i}"), &got[..dim], &expected, dim, 5e-4);
            assert!(got[dim..].iter().all(|&x| x == 0.0), "norm of {dim}: beyond the width");
        }
    }
}

#[test]
fn rotations_are_those_of_the_cpu() {
    let kernels = device();
    let device = kernels.device();
    for (head_dim, theta) in [(2, 1e4), (64, 1e6), (66, 1e6), (128, 1e4)] {
        let positions: Vec<i32> = vec![0, 1, 2, 749, 750, 4095, 123_456];
        let half = head_dim / 2;
        let (frequencies, on_gpu) = (put(device, &frequencies(head_dim, theta)), put(device, &positions));
        let angles = put(device, &vec![f32::NAN; positions.len() * head_dim]);
        let a = RopeAngles {
            positions: on_gpu.address(),
            frequencies: frequencies.address(),
            angles: angles.address(),
            half: half as i32,
        };
        let mut got = vec![0f32; positions.len() * head_dim];
        // SAFETY: all buffers have that shape.
        unsafe {
            kernels.rope_angles(positions.len(), &a).unwrap();
            device.download(bytes_of_mut(&mut got), angles.address()).unwrap();
        }
        let rope = Rope::new(head_dim, theta);
        for (position, got) in positions.iter().zip(got.chunks_exact(head_dim)) {
            for ((cosine, sine), got) in rope.angles(*position as u64).into_iter().zip(got.chunks_exact(2)) {
                let near = (got[0] - cosine).abs() < 1e-6 && (got[1] - sine).abs() < 1e-6;
                assert!(near, "head of {head_dim}, position {position}: {got:?}, expected {cosine} {sine}");
            }
        }
    }
}

/// Segments of these numbers of rows. Frames lie one segment after the other, convolution rows with a gap after each.
fn segments(n_rows: &[usize], gap: usize) -> (Vec<Segment>, usize, usize) {
    let (mut segments, mut first_row, mut first_conv) = (Vec::new(), 0, 0);
    for &n in n_rows {
        segments.push(Segment {
            first_row: first_row as i32,
            n_rows: n as i32,
            first_conv: first_conv as i32,
            ..Segment::default()
        });
        first_row += n;
        first_conv += 2 * n + gap;
    }
    (segments, first_row, first_conv)
}

#[test]
fn frames_follow_the_last_two_of_the_pass_before() {
    let kernels = device();
    let device = kernels.device();
    for (n_mels, n_rows) in [(128, &[1][..]), (80, &[1, 4, 2]), (13, &[7, 1, 33])] {
        let (mut table, rows, conv_rows) = segments(n_rows, 3);
        let width = 128;
        let mut random = Random::new(n_mels as u32);
        let frames = random.spread(2 * rows * n_mels, (-2.0, 1.0));
        let old: Vec<Vec<u16>> = n_rows.iter().map(|_| f16_of(&random.spread(2 * n_mels, (-2.0, 1.0)))).collect();
        let tails: Vec<_> = old.iter().map(|tail| put(device, tail)).collect();
        table.iter_mut().zip(&tails).for_each(|(segment, tail)| segment.mel_tail = tail.address());
        let (on_gpu, table_on_gpu) = (put(device, &frames), put(device, &table));
        let out = put(device, &vec![u16::MAX; conv_rows * width]);
        let a = MelFrames {
            segments: table_on_gpu.address(),
            frames: on_gpu.address(),
            out: out.address(),
            n_mels: n_mels as i32,
            width: width as i32,
        };
        let longest = 2 * n_rows.iter().max().unwrap();
        // SAFETY: all buffers have that shape.
        unsafe { kernels.mel_frames(longest, n_rows.len(), &a).unwrap() };
        let mut expected = vec![u16::MAX; conv_rows * width];
        for ((s, old), tail) in table.iter().zip(&old).zip(&tails) {
            let own = &frames[2 * s.first_row as usize * n_mels..][..2 * s.n_rows as usize * n_mels];
            let all = [&old[..], &f16_of(own)].concat();
            for (i, frame) in all.chunks_exact(n_mels).enumerate() {
                let to = &mut expected[(s.first_conv as usize + i) * width..][..width];
                to.fill(0);
                to[..n_mels].copy_from_slice(frame);
            }
            assert!(bits(device, tail) == all[all.len() - 2 * n_mels..], "{n_mels} mels, {n_rows:?}: a tail");
        }
        assert!(bits(device, &out) == expected, "{n_mels} mels, {n_rows:?}: frames");
    }
}

#[test]
fn convolutions_follow_the_last_row_of_the_pass_before() {
    let kernels = device();
    let device = kernels.device();
    for (stride, n_rows) in [(128, &[1][..]), (384, &[3, 1, 8])] {
        let (mut table, _, conv_rows) = segments(n_rows, 1);
        let mut random = Random::new(stride as u32);
        let y = f16_of(&random.spread(conv_rows * stride, (-2.0, 1.0)));
        let old: Vec<Vec<u16>> = n_rows.iter().map(|_| f16_of(&random.spread(stride, (-2.0, 1.0)))).collect();
        let tails: Vec<_> = old.iter().map(|tail| put(device, tail)).collect();
        table.iter_mut().zip(&tails).for_each(|(segment, tail)| segment.conv_tail = tail.address());
        let (on_gpu, table_on_gpu) = (put(device, &y), put(device, &table));
        let a = ConvTails { segments: table_on_gpu.address(), y: on_gpu.address(), stride: stride as i32 };
        // SAFETY: all buffers have that shape.
        unsafe { kernels.conv_tails(n_rows.len(), &a).unwrap() };
        let mut expected = y.clone();
        for ((s, old), tail) in table.iter().zip(&old).zip(&tails) {
            let first = s.first_conv as usize * stride;
            expected[first..][..stride].copy_from_slice(old);
            let last = &y[first + 2 * s.n_rows as usize * stride..][..stride];
            assert!(bits(device, tail) == last, "rows of {stride}, {n_rows:?}: a tail");
        }
        assert!(bits(device, &on_gpu) == expected, "rows of {stride}, {n_rows:?}");
    }
}

#[test]
fn rings_keep_the_last_rows() {
    let kernels = device();
    let device = kernels.device();
    // (rows, position of the first): one fits, one wraps around, one is longer than the ring
    let cases = [(3, 2), (9, 60), (200, 31), (64, 0)];
    let (n_slots, q_dim, kv_dim, layer, n_layers) = (64, 136, 72, 1, 3);
    let stride = (q_dim + 2 * kv_dim) + 8;
    let mut random = Random::new(5);
    let (mut table, rows, _) = segments(&cases.map(|(n, _)| n), 0);
    let qkv = f16_of(&random.spread(rows * stride, (-2.0, 1.0)));
    let old: Vec<Vec<u16>> =
        cases.iter().map(|_| f16_of(&random.spread(n_layers * 2 * n_slots * kv_dim, (-2.0, 1.0)))).collect();
    let rings: Vec<_> = old.iter().map(|ring| put(device, ring)).collect();
    for ((segment, ring), (_, position)) in table.iter_mut().zip(&rings).zip(cases) {
        (segment.ring, segment.position) = (ring.address(), position);
    }
    let (on_gpu, table_on_gpu) = (put(device, &qkv), put(device, &table));
    let a = KeepKeys {
        segments: table_on_gpu.address(),
        qkv: on_gpu.address(),
        stride: stride as i32,
        q_dim: q_dim as i32,
        kv_dim: kv_dim as i32,
        layer: layer as i32,
        n_slots: n_slots as i32,
    };
    // SAFETY: all buffers have that shape.
    unsafe { kernels.keep_keys(n_slots, cases.len(), &a).unwrap() };
    for (((s, old), ring), (n, position)) in table.iter().zip(old).zip(&rings).zip(cases) {
        let mut expected = old;
        for row in n.saturating_sub(n_slots)..n {
            for value in 0..2 {
                let from = (s.first_row as usize + row) * stride + q_dim + value * kv_dim;
                let slot = (position as usize + row) % n_slots;
                let to = ((2 * layer + value) * n_slots + slot) * kv_dim;
                expected[to..][..kv_dim].copy_from_slice(&qkv[from..][..kv_dim]);
            }
        }
        assert!(bits(device, ring) == expected, "{n} rows from position {position}");
    }
}

/// Where row `n`, column `k` of a packed matrix is, from the words in `kernels/pack.cu`: blocks of 128 rows by 64 columns,
/// chunks of 8 columns swapped by the row's number.
fn packed_at(n: usize, k: usize, columns: usize) -> usize {
    let chunk = (k % 64 / 8) ^ (n % 8);
    (n / 128 * (columns / 64) + k / 64) * 8192 + n % 128 * 64 + chunk * 8 + k % 8
}

#[test]
fn packed_matrices_have_every_number_in_its_place() {
    let kernels = device();
    let device = kernels.device();
    // (rows, columns, first row, row offset, block, block stride, taps, half)
    let cases = [
        (33, 72, 0, 0, 72, 128, 1, -1),
        (5, 71, 16, 130, 71, 128, 1, -1),   // an odd width
        (24, 4 * 36, 0, 0, 36, 128, 1, -1), // rows joined
        (9, 3 * 13, 0, 0, 39, 128, 3, -1),  // a convolution
        (37, 96, 5, 0, 96, 128, 1, 0),
        (37, 96, 5, 0, 96, 128, 1, 1),
    ];
    for (rows, columns, first_row, row_offset, block, block_stride, taps, half) in cases {
        let what = format!("{rows} x {columns}, {taps} taps, half {half}");
        let (source, wide) = weights(&mut Random::new((rows * columns) as u32), rows * columns);
        let k = if taps > 1 { taps * block_stride } else { columns / block * block_stride };
        let (on_gpu, destination) = (put(device, &source), device.alloc_zeros(256 * k * 2).unwrap());
        let a = Pack {
            source: on_gpu.address(),
            destination: destination.address(),
            rows: rows as i32,
            columns: columns as i32,
            first_row: first_row as i32,
            row_offset: row_offset as i32,
            k: k as i32,
            block: block as i32,
            block_stride: block_stride as i32,
            taps: taps as i32,
            half,
        };
        // SAFETY: all buffers have that shape.
        unsafe { kernels.pack(&a).unwrap() };
        let mut expected = vec![0u16; 256 * k];
        for row in 0..rows {
            for i in 0..columns {
                let column =
                    if taps > 1 { i % taps * block_stride + i / taps } else { i / block * block_stride + i % block };
                let n = first_row + row;
                let tile_row = if half < 0 {
                    let n = row_offset + n;
                    n / 16 * 16 + n % 16 / 2 + n % 2 * 8
                } else {
                    (n / 16 * 2 + n % 2) * 16 + n % 16 / 2 + half as usize * 8
                };
                expected[packed_at(tile_row, column, k)] = wide[row * columns + i];
            }
        }
        assert!(bits(device, &destination) == expected, "{what}");
    }
}

/// The number of row `n`, column `k` in a matrix of 12 bits with `columns` columns, as F16.
fn in_tiles(matrix: &[u32], n: usize, k: usize, columns: usize) -> u16 {
    let piece = &matrix[(n / 16 * (columns / 64) + k / 64) * 384..][..384];
    let lane = n % 8 * 4 + k % 32 / 8;
    let words: [u32; 3] = std::array::from_fn(|i| {
        let word = (k % 64 / 32 * 2 + n % 16 / 8) * 3 + i;
        piece[(word / 4 * 32 + lane) * 4 + word % 4]
    });
    let halves = words.map(|word| (word >> (16 * (k % 2))) as u16);
    match k % 8 / 2 {
        pair @ 0..3 => halves[pair] & 0xbff8,
        _ => {
            // three bits at the end of each word, and one beside its sign
            let low = halves.map(|half| half & 7);
            let high = halves.map(|half| half >> 14 & 1);
            low[0] << 3 | low[1] << 6 | low[2] << 9 | high[0] << 12 | high[1] << 13 | high[2] << 15
        }
    }
}

#[test]
fn tiles_have_every_number_in_its_place() {
    let kernels = device();
    let device = kernels.device();
    for (rows, columns, first_row, row_offset, half) in
        [(33, 72, 0, 0, -1), (7, 71, 3, 29, -1), (19, 130, 8, 0, 0), (19, 130, 8, 0, 1), (9, 3072, 0, 0, -1)]
    {
        let what = format!("{rows} x {columns}, half {half}");
        let mut values = Random::new((rows * columns) as u32).spread(rows * columns, (-26.0, 3.0));
        values.iter_mut().for_each(|w| *w = half::bf16::from_f32(*w).to_f32());
        // a row of zeros, one that is not finite, one of powers of two from the largest to below the least, and its halves
        values[..columns].fill(0.0);
        values[2 * columns + columns / 2] = f32::INFINITY;
        for (i, w) in values[3 * columns..4 * columns].iter_mut().enumerate() {
            *w = 192.0 * (-(i as f32 % 40.0)).exp2() * [1.0, -1.0][i % 2];
        }
        // the least of all numbers
        values[4 * columns..5 * columns].fill(f32::from_bits(0x0001_0000));
        let k = columns.next_multiple_of(64);
        let (on_gpu, destination) = (put(device, &bf16_of(&values)), device.alloc_zeros(64 * k * 3 / 2).unwrap());
        let scales = device.alloc_zeros(64 * 4).unwrap();
        let a = PackTiles {
            source: on_gpu.address(),
            destination: destination.address(),
            scales: scales.address(),
            rows: rows as i32,
            columns: columns as i32,
            first_row: first_row as i32,
            row_offset: row_offset as i32,
            k: k as i32,
            half,
        };
        let (mut got, mut got_scales) = (vec![0u32; 64 * k * 3 / 8], vec![0f32; 64]);
        // SAFETY: all buffers have that shape.
        unsafe {
            kernels.pack_tiles(&a).unwrap();
            device.download(bytes_of_mut(&mut got), destination.address()).unwrap();
            device.download(bytes_of_mut(&mut got_scales), scales.address()).unwrap();
        }
        let place = |row: usize| {
            let n = first_row + row;
            if half < 0 { row_offset + n } else { n / 8 * 16 + half as usize * 8 + n % 8 }
        };
        let filled: HashMap<usize, usize> = (0..rows).map(|row| (place(row), row)).collect();
        for (n, &got_scale) in got_scales.iter().enumerate() {
            let Some(&row) = filled.get(&n) else {
                assert!((0..k).all(|i| in_tiles(&got, n, i, k) == 0) && got_scale == 0.0, "{what}: wrote row {n}");
                continue;
            };
            if row == 2 {
                assert!(got_scale.is_nan(), "{what}: a row that is not finite, its scale is");
                continue;
            }
            let row = &values[row * columns..][..columns];
            let scale = if n == place(4) { f32::MIN_POSITIVE } else { e4m7_scale(row) };
            assert_eq!(got_scale, scale, "{what}: scale of row {n}");
            let read = |i: usize| half::f16::from_bits(in_tiles(&got, n, i, k)).to_f32() * scale;
            let expected = if n == place(4) { row.to_vec() } else { e4m7_of(row) };
            for i in 0..k {
                assert_eq!(read(i), expected.get(i).copied().unwrap_or(0.0), "{what}: row {n}, column {i}");
            }
            for (i, &w) in row.iter().enumerate() {
                let most = if w.abs() < scale / 16_384.0 { scale / 4_194_304.0 } else { 0.0 };
                assert!((read(i) - w).abs() <= most, "{what}: row {n}, column {i}: {w} has become {}", read(i));
            }
        }
    }
}

#[test]
fn rows_are_rounded_to_f16() {
    let kernels = device();
    let device = kernels.device();
    for (rows, columns, first_row) in [(33, 72, 0), (7, 71, 32)] {
        let (source, wide) = weights(&mut Random::new((rows * columns) as u32), rows * columns);
        let k = columns.next_multiple_of(64);
        let (on_gpu, destination) = (put(device, &source), device.alloc_zeros(64 * k * 2).unwrap());
        let a = PackRows {
            source: on_gpu.address(),
            destination: destination.address(),
            rows: rows as i32,
            columns: columns as i32,
            first_row: first_row as i32,
            k: k as i32,
        };
        // SAFETY: all buffers have that shape.
        unsafe { kernels.pack_rows(&a).unwrap() };
        let mut expected = vec![0u16; 64 * k];
        for (to, from) in expected[first_row * k..].chunks_exact_mut(k).zip(wide.chunks_exact(columns)) {
            to[..columns].copy_from_slice(from);
        }
        assert!(bits(device, &destination) == expected, "{rows} x {columns}");
    }
}

#[test]
fn numbers_in_8_bits_are_the_nearest() {
    let kernels = device();
    let device = kernels.device();
    for (rows, columns, first_row) in [(1, 1, 0), (17, 72, 5), (9, 71, 16), (40, 330, 3)] {
        let (source, _) = weights(&mut Random::new((rows * columns) as u32), rows * columns);
        let mut wide: Vec<f32> = source.iter().map(|&b| half::bf16::from_bits(b).to_f32()).collect();
        // a row of zeros, and one that is not finite
        let damaged = (rows > 2).then_some(2);
        if let Some(row) = damaged {
            wide[columns..2 * columns].fill(0.0);
            wide[row * columns + columns / 2] = f32::NAN;
        }
        let k = columns.next_multiple_of(64);
        let on_gpu = put(device, &bf16_of(&wide));
        let (destination, scales) = (device.alloc_zeros(64 * k).unwrap(), device.alloc_zeros(64 * 4).unwrap());
        let a = QuantiseRows {
            source: on_gpu.address(),
            destination: destination.address(),
            scales: scales.address(),
            rows: rows as i32,
            columns: columns as i32,
            first_row: first_row as i32,
            k: k as i32,
        };
        let (mut got, mut got_scales) = (vec![0u8; 64 * k], vec![0f32; 64]);
        // SAFETY: all buffers have that shape.
        unsafe {
            kernels.quantise_rows(&a).unwrap();
            device.download(&mut got, destination.address()).unwrap();
            device.download(bytes_of_mut(&mut got_scales), scales.address()).unwrap();
        }
        let mut places = HashMap::new();
        for (row, values) in wide.chunks_exact(columns).enumerate() {
            let n = first_row + row;
            if Some(row) == damaged {
                assert!(got_scales[n].is_nan(), "{rows} x {columns}: row {row} is not finite, its scale is");
                continue;
            }
            let largest = values.iter().fold(0f32, |most, w| most.max(w.abs()));
            assert_eq!(got_scales[n], largest / 127.0, "{rows} x {columns}: scale of row {row}");
            let inverse = if largest > 0.0 { 127.0 / largest } else { 0.0 };
            for (i, w) in values.iter().enumerate() {
                let within = n % 16 * 64 + i % 32 / 8 * 16 + i % 64 / 32 * 8 + i % 8;
                let at = (n / 16 * (k / 64) + i / 64) * 1024 + within;
                assert!(places.insert(at, (n, i)).is_none(), "two numbers in one place");
                let expected = (w * inverse).round_ties_even() as i32;
                assert_eq!(i32::from(got[at]) - 128, expected, "{rows} x {columns}: row {row}, column {i}");
            }
        }
    }
}

#[test]
fn vectors_are_widened() {
    let kernels = device();
    let device = kernels.device();
    for n in [1, 255, 256, 1283] {
        let source = bf16_of(&Random::new(n as u32).spread(n, (-20.0, 20.0)));
        let (on_gpu, destination) = (put(device, &source), put(device, &vec![f32::NAN; n + 1]));
        let a = Widen { source: on_gpu.address(), destination: destination.address(), n: n as i32 };
        let mut got = vec![0f32; n + 1];
        // SAFETY: both buffers have that size.
        unsafe {
            kernels.widen(&a).unwrap();
            device.download(bytes_of_mut(&mut got), destination.address()).unwrap();
        }
        let expected: Vec<f32> = source.iter().map(|&b| half::bf16::from_bits(b).to_f32()).collect();
        assert!(got[..n] == expected && got[n].is_nan(), "{n} numbers");
    }
}
