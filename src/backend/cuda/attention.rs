//! The encoder's attention, and which kernel does it. All give the same bits.

use super::device::{Address, Device, Kernel, TensorMap};
use super::launch::{ENCODER_ATTENTION, ENCODER_ATTENTION_WIDE, unsupported};
use crate::Result;

/// Keys of a block.
pub const KEYS: usize = 64;
/// Queries of a tile: where there are few, many, and many on a GPU with warpgroup instructions.
pub const FEW_TILE: usize = 16;
const MANY_TILE: usize = 64;
const WIDE_TILE: usize = 128;
/// Head widths that the kernels are compiled for.
const HEAD_DIMS: [usize; 3] = [16, 64, 128];
const WIDE_HEAD_DIM: usize = 64;
/// Four stages of keys and values, the queries, and what aligning them takes.
const WIDE_BYTES: u32 = (4 * 2 * KEYS + WIDE_TILE) as u32 * 128 + 1024;

/// As in `kernels/attention.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct EncoderAttention {
    pub segments: Address,
    pub tiles: Address,
    pub qkv: Address,
    pub out: Address,
    pub stride: i32,
    pub out_stride: i32,
    pub q_dim: i32,
    pub kv_dim: i32,
    pub group: i32,
    pub layer: i32,
    pub n_slots: i32,
    pub window: i32,
    pub scale: f32,
    pub keep: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct WideAttention {
    qkv: TensorMap,
    a: EncoderAttention,
}

/// A kernel for attention.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionKind {
    /// The keys of a tile's queries are worked on in parallel.
    Few,
    /// A tile's keys come one block after the other.
    Many,
    /// The same by the matrix instructions of compute capability 9.0.
    Wide,
}

impl AttentionKind {
    /// Queries of a tile.
    pub fn tile(self) -> usize {
        match self {
            Self::Few => FEW_TILE,
            Self::Many => MANY_TILE,
            Self::Wide => WIDE_TILE,
        }
    }
}

/// A kernel for few queries.
struct Few {
    kernel: Kernel,
    warps: u32,
    /// Blocks of a cluster, which share out the keys.
    parts: u32,
    shared_bytes: u32,
}

pub struct Attention {
    head_dim: usize,
    n_multiprocessors: usize,
    /// The first is the best.
    few: Vec<Few>,
    many: Kernel,
    wide: Option<Kernel>,
}

fn many_bytes(head_dim: usize) -> u32 {
    (3 * 2 * KEYS * head_dim * 2) as u32
}

impl Few {
    /// `None` where the GPU has no such kernel, or too little memory for it.
    fn new(device: &Device, head_dim: usize, name: &'static str, warps: u32, parts: u32) -> Result<Option<Self>> {
        let shared_bytes = (warps * 2 * KEYS as u32 + FEW_TILE as u32) * head_dim as u32 * 2;
        if shared_bytes > device.shared_bytes {
            return Ok(None);
        }
        let kernel = device.optional_kernel(ENCODER_ATTENTION, name, shared_bytes)?;
        Ok(kernel.map(|kernel| Self { kernel, warps, parts, shared_bytes }))
    }

    /// # Safety
    /// As for [`Attention::launch`].
    unsafe fn launch(&self, device: &Device, n_tiles: usize, n_heads: usize, a: &EncoderAttention) -> Result<()> {
        let grid = [self.parts, n_tiles as u32, n_heads as u32];
        unsafe { device.launch(&self.kernel, grid, self.warps * 32, self.shared_bytes, a) }
    }
}

impl Attention {
    /// Kernels for heads of this width.
    pub fn new(device: &Device, head_dim: usize) -> Result<Self> {
        // few queries: as many warps as shared memory lets work on blocks of keys at once; the real model's window is 13
        let (many, few): (_, &[(&'static str, u32, u32)]) = match head_dim {
            16 => (
                "encoder_attention_16",
                &[("encoder_attention_few_16_split", 4, 4), ("encoder_attention_few_16_13", 13, 1)],
            ),
            64 => (
                "encoder_attention_64",
                &[
                    ("encoder_attention_few_64_split", 4, 4),
                    ("encoder_attention_few_64_13", 13, 1),
                    ("encoder_attention_few_64_5", 5, 1),
                ],
            ),
            128 => (
                "encoder_attention_128",
                &[
                    ("encoder_attention_few_128_split", 4, 4),
                    ("encoder_attention_few_128_6", 6, 1),
                    ("encoder_attention_few_128_2", 2, 1),
                ],
            ),
            _ => return unsupported(format!("encoder head_dim is {head_dim}, supported are {HEAD_DIMS:?}")),
        };
        let few = few.iter().map(|&(name, warps, parts)| Few::new(device, head_dim, name, warps, parts));
        let few: Vec<_> = few.filter_map(Result::transpose).collect::<Result<_>>()?;
        if few.is_empty() {
            return unsupported(format!("heads of {head_dim} need more shared memory than the GPU has"));
        }
        let wide = device.optional_kernel(ENCODER_ATTENTION_WIDE, "encoder_attention_wide", WIDE_BYTES)?;
        Ok(Self {
            head_dim,
            n_multiprocessors: device.n_multiprocessors as usize,
            few,
            many: device.kernel(ENCODER_ATTENTION, many, many_bytes(head_dim))?,
            wide: wide.filter(|_| head_dim == WIDE_HEAD_DIM),
        })
    }

    /// Which kernel suits segments of these numbers of rows.
    pub fn kind(&self, n_rows: impl Iterator<Item = usize> + Clone, n_heads: usize) -> AttentionKind {
        let few_blocks = n_rows.clone().map(|n| n.div_ceil(FEW_TILE)).sum::<usize>() * n_heads;
        if n_rows.clone().all(|n| n <= FEW_TILE) || few_blocks <= self.n_multiprocessors {
            AttentionKind::Few
        } else if self.wide.is_some() {
            AttentionKind::Wide
        } else {
            AttentionKind::Many
        }
    }

    /// Attention over the `n_rows` rows of `a.qkv`, in tiles of this kind.
    ///
    /// # Safety
    /// All addresses must be those of allocations large enough for the shapes given.
    pub unsafe fn launch(
        &self,
        device: &Device,
        kind: AttentionKind,
        [n_rows, n_tiles]: [usize; 2],
        n_heads: usize,
        a: &EncoderAttention,
    ) -> Result<()> {
        let grid = [n_tiles as u32, n_heads as u32, 1];
        match kind {
            AttentionKind::Few => unsafe { self.few[0].launch(device, n_tiles, n_heads, a) },
            AttentionKind::Many => unsafe { device.launch(&self.many, grid, 128, many_bytes(self.head_dim), a) },
            AttentionKind::Wide => {
                let kernel = self.wide.as_ref().expect("chosen where there is one");
                let stride = a.stride as usize;
                let qkv = device.tensor_map(a.qkv, [n_rows, stride], stride, KEYS as u32)?;
                let threads = 2 * WIDE_TILE as u32 + 128;
                unsafe { device.launch(kernel, grid, threads, WIDE_BYTES, &WideAttention { qkv, a: *a }) }
            }
        }
    }
}

#[cfg(all(test, feature = "gpu-tests"))]
mod tests {
    use super::super::device::bytes_of_mut;
    use super::super::launch::Segment;
    use super::super::test_data::{Random, device, f16_of, put};
    use super::*;
    use std::time::{Duration, Instant};

    /// Segments of `(rows, position of the first)`, whose rings hold what came before.
    struct Case<'a> {
        segments: &'a [(usize, usize)],
        window: usize,
        head_dim: usize,
        n_heads: usize,
        n_kv_heads: usize,
    }

    fn numbers(bits: &[u16]) -> Vec<f64> {
        bits.iter().map(|&b| half::f16::from_bits(b).to_f64()).collect()
    }

    fn check(case: &Case<'_>) {
        let kernels = device();
        let device = kernels.device();
        let attention = Attention::new(device, case.head_dim).unwrap();
        let must_be_wide = device.has_hopper_kernels() && case.head_dim == WIDE_HEAD_DIM;
        assert_eq!(attention.wide.is_some(), must_be_wide, "the kernel for compute capability 9.0");
        assert!(attention.few[0].parts == 4 || !device.has_hopper_kernels(), "clusters from compute capability 9.0 on");
        let Case { segments, window, head_dim, n_heads, n_kv_heads } = *case;
        let (q_dim, kv_dim) = (n_heads * head_dim, n_kv_heads * head_dim);
        let stride = (q_dim + 2 * kv_dim).next_multiple_of(128);
        let n_slots = (window - 1 + FEW_TILE).next_multiple_of(KEYS);
        let n_rows: usize = segments.iter().map(|s| s.0).sum();
        let mut random = Random::new((n_rows * 7 + window) as u32);
        let qkv = f16_of(&random.spread(n_rows * stride, (-1.0, 2.0)));
        let rings: Vec<Vec<u16>> =
            segments.iter().map(|_| f16_of(&random.spread(2 * n_slots * kv_dim, (-1.0, 2.0)))).collect();
        let qkv_device = put(device, &qkv);
        let scale = (std::f64::consts::LOG2_E / (head_dim as f64).sqrt()) as f32;

        // the reference, in F64
        let (all, ring_numbers): (Vec<f64>, Vec<Vec<f64>>) =
            (numbers(&qkv), rings.iter().map(|r| numbers(r)).collect());
        let mut expected = vec![0f64; n_rows * q_dim];
        let mut first_row = 0;
        for (&(n, start), ring) in segments.iter().zip(&ring_numbers) {
            for row in 0..n {
                let position = start + row;
                for head in 0..n_heads {
                    let kv_head = head / (n_heads / n_kv_heads) * head_dim;
                    let query = &all[(first_row + row) * stride + head * head_dim..][..head_dim];
                    let at = |key: usize, value: usize| -> &[f64] {
                        let from = if key >= start {
                            &all[(first_row + key - start) * stride + q_dim + value * kv_dim..]
                        } else {
                            &ring[(value * n_slots + key % n_slots) * kv_dim..]
                        };
                        &from[kv_head..][..head_dim]
                    };
                    let keys = (position + 1).saturating_sub(window)..=position;
                    let score = |key: usize| -> f64 {
                        at(key, 0).iter().zip(query).map(|(a, b)| a * b).sum::<f64>() / (head_dim as f64).sqrt()
                    };
                    let scores: Vec<f64> = keys.clone().map(score).collect();
                    let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
                    let out = &mut expected[(first_row + row) * q_dim + head * head_dim..][..head_dim];
                    for (key, score) in keys.zip(&scores) {
                        let weight = (score - max).exp() / total;
                        out.iter_mut().zip(at(key, 1)).for_each(|(out, v)| *out += weight * v);
                    }
                }
            }
            first_row += n;
        }

        let mut first: Option<Vec<u16>> = None;
        let few = (0..attention.few.len()).map(|i| (AttentionKind::Few, i));
        let wide = attention.wide.is_some().then_some((AttentionKind::Wide, 0));
        for (kind, i) in few.chain([(AttentionKind::Many, 0)]).chain(wide) {
            let few = segments.iter().all(|s| s.0 <= FEW_TILE);
            let keep = kind == AttentionKind::Few && few;
            let ring_buffers: Vec<_> = rings.iter().map(|ring| put(device, ring)).collect();
            let (mut table, mut tiles, mut first_row) = (Vec::new(), Vec::new(), 0);
            for (i, (&(n, start), ring)) in segments.iter().zip(&ring_buffers).enumerate() {
                table.push(Segment {
                    ring: ring.address(),
                    first_row: first_row as i32,
                    n_rows: n as i32,
                    position: start as i32,
                    ..Segment::default()
                });
                tiles.extend((0..n).step_by(kind.tile()).map(|first| [i as i32, first as i32]));
                first_row += n;
            }
            let (table, n_tiles, tiles) = (put(device, &table), tiles.len(), put(device, &tiles));
            let out = put(device, &f16_of(&vec![f32::NAN; (n_rows + 3) * q_dim]));
            let a = EncoderAttention {
                segments: table.address(),
                tiles: tiles.address(),
                qkv: qkv_device.address(),
                out: out.address(),
                stride: stride as i32,
                out_stride: q_dim as i32,
                q_dim: q_dim as i32,
                kv_dim: kv_dim as i32,
                group: (n_heads / n_kv_heads) as i32,
                layer: 0,
                n_slots: n_slots as i32,
                window: window as i32,
                scale,
                keep: i32::from(keep),
            };
            let mut got = vec![0u16; (n_rows + 3) * q_dim];
            // SAFETY: all buffers have the shapes that `a` says.
            unsafe {
                match kind {
                    AttentionKind::Few => attention.few[i].launch(device, n_tiles, n_heads, &a).unwrap(),
                    _ => attention.launch(device, kind, [n_rows, n_tiles], n_heads, &a).unwrap(),
                }
                device.download(bytes_of_mut(&mut got), out.address()).unwrap();
            }
            let what = format!("{kind:?} {i}, window {window}, heads of {head_dim}, {segments:?}");
            let (got, beyond) = got.split_at(n_rows * q_dim);
            assert!(numbers(beyond).iter().all(|x| x.is_nan()), "{what}: wrote beyond the last row");
            let norm: f64 = expected.iter().map(|x| x * x).sum();
            let off: f64 = expected.iter().zip(numbers(got)).map(|(x, y)| (x - y) * (x - y)).sum();
            let off = (off / norm).sqrt();
            assert!(off < 1e-3, "{what}: off by {off:.1e}");
            match &first {
                None => first = Some(got.to_vec()),
                Some(first) => assert!(first == got, "{what}: not the bits of the other kernels"),
            }
            for (i, (&(n, start), ring)) in segments.iter().zip(&ring_buffers).enumerate() {
                let mut expected = rings[i].clone();
                let first_row: usize = segments[..i].iter().map(|s| s.0).sum();
                for row in 0..if keep { n } else { 0 } {
                    for value in 0..2 {
                        let from = &qkv[(first_row + row) * stride + q_dim + value * kv_dim..][..kv_dim];
                        let slot = (start + row) % n_slots;
                        expected[(value * n_slots + slot) * kv_dim..][..kv_dim].copy_from_slice(from);
                    }
                }
                let mut got = vec![0u16; expected.len()];
                // SAFETY: that is the ring's size.
                unsafe { device.download(bytes_of_mut(&mut got), ring.address()).unwrap() };
                assert!(got == expected, "{what}: ring {i}");
            }
        }
    }

    /// A tile's two groups of warps leave out blocks that only the other needs, at their own pace.
    #[test]
    fn warps_that_leave_out_blocks_never_miss_a_stage() {
        let kernels = device();
        let device = kernels.device();
        let attention = Attention::new(device, 64).unwrap();
        if attention.wide.is_none() {
            assert!(!device.has_hopper_kernels(), "compute capability 9.0 has it");
            return;
        }
        let (n_heads, window, n_segments, n) = (32, 100, 4, 1500);
        let (q_dim, n_rows) = (n_heads * 64, n_segments * n);
        let n_slots = (window - 1 + FEW_TILE).next_multiple_of(KEYS);
        let qkv = put(device, &f16_of(&Random::new(5).spread(n_rows * 3 * q_dim, (-1.0, 2.0))));
        let ring = put(device, &f16_of(&Random::new(6).spread(2 * n_slots * q_dim, (-1.0, 2.0))));
        let out = put(device, &vec![0u16; n_rows * q_dim]);
        let (mut segments, mut tiles) = (Vec::new(), Vec::new());
        for i in 0..n_segments {
            let (first_row, position) = ((i * n) as i32, (i * 77) as i32);
            segments.push(Segment {
                ring: ring.address(),
                first_row,
                n_rows: n as i32,
                position,
                ..Segment::default()
            });
            tiles.extend((0..n).step_by(WIDE_TILE).map(|first| [i as i32, first as i32]));
        }
        let (segments, n_tiles, tiles) = (put(device, &segments), tiles.len(), put(device, &tiles));
        let a = EncoderAttention {
            segments: segments.address(),
            tiles: tiles.address(),
            qkv: qkv.address(),
            out: out.address(),
            stride: 3 * q_dim as i32,
            out_stride: q_dim as i32,
            q_dim: q_dim as i32,
            kv_dim: q_dim as i32,
            group: 1,
            layer: 0,
            n_slots: n_slots as i32,
            window: window as i32,
            scale: 0.18,
            keep: 0,
        };
        let mut first = Vec::new();
        let start = Instant::now();
        for round in 0..20 {
            for _ in 0..1000 {
                // SAFETY: all buffers have the shapes that `a` says.
                unsafe { attention.launch(device, AttentionKind::Wide, [n_rows, n_tiles], n_heads, &a).unwrap() };
                device.finish().unwrap();
                // under compute-sanitizer launches take long
                if start.elapsed() > Duration::from_secs(10) {
                    break;
                }
            }
            let mut got = vec![0u16; n_rows * q_dim];
            // SAFETY: that is the buffer's size.
            unsafe { device.download(bytes_of_mut(&mut got), out.address()).unwrap() };
            if round == 0 {
                first = got;
            } else {
                assert!(got == first, "round {round}");
            }
        }
    }

    #[test]
    fn all_attention_has_the_same_bits_and_is_right() {
        let full = Case { segments: &[], window: 750, head_dim: 64, n_heads: 2, n_kv_heads: 2 };
        let cases: [&[(usize, usize)]; 9] = [
            &[(1, 0)],
            &[(4, 0)],
            &[(4, 2000)],
            &[(16, 749)],
            &[(130, 777)],
            &[(333, 1000)],
            &[(900, 0)],
            &[(4, 768), (1, 3), (16, 5000)],
            &[(70, 3), (4, 64), (129, 750)],
        ];
        for segments in cases {
            check(&Case { segments, ..full });
        }
        for window in [1, 17, 64, 65, 128, 1500] {
            check(&Case { segments: &[(4, 1600), (70, 100)], window, ..full });
            check(&Case { segments: &[(9, 63)], window, ..full });
        }
        check(&Case { segments: &[(40, 100), (5, 7)], window: 70, n_heads: 4, n_kv_heads: 2, ..full });
        check(&Case { segments: &[(12, 100), (5, 7)], window: 70, n_heads: 4, n_kv_heads: 2, ..full });
        for head_dim in [16, 128] {
            check(&Case { segments: &[(40, 100), (5, 7)], window: 70, head_dim, n_heads: 3, n_kv_heads: 3 });
            check(&Case { segments: &[(4, 900)], window: 750, head_dim, n_heads: 1, n_kv_heads: 1 });
        }
    }
}
