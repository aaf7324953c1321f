//! Products of activations with packed matrices, and which kernel does them. All give the same bits.

use super::device::{Address, Device, Kernel, TensorMap};
use super::launch::{GEMM, GEMM_FEW, GEMM_WIDE};
use crate::Result;

/// What a product does with its sums.
#[repr(i32)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Epilogue {
    StoreF32 = 0,
    AddF32 = 1,
    GeluF32 = 2,
    GeluF16 = 3,
    SwigluF16 = 4,
    QkvF16 = 5,
}

/// As in `kernels/epilogue.cuh`.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Gemm {
    pub weights: Address,
    pub x: Address,
    pub x_rows: Address,
    pub bias: Address,
    pub out: Address,
    pub out_rows: Address,
    pub rope: Address,
    pub x_stride: i32,
    pub out_stride: i32,
    pub m: i32,
    pub n: i32,
    pub k: i32,
    pub epilogue: Epilogue,
    pub n_turned: i32,
    pub head_dim: i32,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct WideGemm {
    x: TensorMap,
    g: Gemm,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct FewGemm {
    x: TensorMap,
    g: Gemm,
    box_rows: i32,
    n_stages: i32,
}

/// Rows and outputs of a block of `gemm_wide_*`, and its memory: four stages and what aligning them takes.
const WIDE_BM: u32 = 128;
const WIDE_BN: u32 = 256;
const WIDE_BYTES: u32 = 4 * (WIDE_BM + WIDE_BN) * 128 + 1024;
/// Rows of a block of `gemm_few_*`, and up to which it is the fastest.
const FEW_BM: u32 = 64;
const FEW_ROWS: u32 = 128;
/// What it takes besides its stages, and all of it so that three or two blocks share a multiprocessor.
const FEW_EXTRA_BYTES: u32 = 9 << 10;
const FEW_BYTES: [u32; 2] = [72 << 10, 108 << 10];
const FEW_MAX_STAGES: u32 = 16;

/// A kernel that can do a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Any GPU: the tile shape of this index.
    Tiles(usize),
    /// Compute capability 9.0, few rows: blocks of 16 outputs, or of 32.
    Few { wider: bool },
    /// Compute capability 9.0, many rows.
    Wide,
}

/// A tile shape of `gemm.cu`.
struct Tiles {
    kernel: Kernel,
    bn: u32,
    bm: u32,
    threads: u32,
    shared_bytes: u32,
}

/// Kernels with the matrix instructions of compute capability 9.0.
struct Hopper {
    few: [Kernel; 2],
    /// By [`Epilogue`]; those that many rows don't need are absent.
    wide: [Option<Kernel>; 6],
}

pub struct Products {
    /// From few rows to many.
    tiles: Vec<Tiles>,
    hopper: Option<Hopper>,
    n_multiprocessors: u32,
}

impl Products {
    pub fn new(device: &Device) -> Result<Self> {
        let tiles = [
            ("gemm_16x8", 16, 8, 128, 128, 8),
            ("gemm_16x16", 16, 16, 128, 128, 6),
            ("gemm_16x32", 16, 32, 128, 128, 5),
            ("gemm_32x64", 32, 64, 256, 128, 3),
            ("gemm_64x64", 64, 64, 128, 64, 4),
            ("gemm_128x128", 128, 128, 256, 64, 3),
        ];
        let tiles = tiles.into_iter().map(|(name, bn, bm, threads, bk, stages)| {
            let shared_bytes = stages * (bn + bm) * bk * 2;
            Ok(Tiles { kernel: device.kernel(GEMM, name, shared_bytes)?, bn, bm, threads, shared_bytes })
        });
        Ok(Self {
            tiles: tiles.collect::<Result<_>>()?,
            hopper: Hopper::new(device)?,
            n_multiprocessors: device.n_multiprocessors,
        })
    }

    /// Starts a product with the kernel that suits it best.
    ///
    /// # Safety
    /// All addresses must be those of allocations large enough for the shapes given.
    pub unsafe fn launch(&self, device: &Device, a: &Gemm) -> Result<()> {
        unsafe { self.launch_as(device, self.kind(a), a) }
    }

    fn kind(&self, a: &Gemm) -> Kind {
        let (m, n) = (a.m as u32, a.n as u32);
        if self.can(Kind::Wide, a) && 2 * m.div_ceil(WIDE_BM) * (n / WIDE_BN) >= self.n_multiprocessors {
            // tiles for half of the multiprocessors at least; with fewer, smaller ones are faster
            return Kind::Wide;
        }
        let wider = n / 32 * m.div_ceil(FEW_BM) >= self.n_multiprocessors || a.epilogue == Epilogue::SwigluF16;
        if m <= FEW_ROWS && self.can(Kind::Few { wider }, a) {
            return Kind::Few { wider };
        }
        // the largest tiles that are not mostly padding and still give every multiprocessor one; where none does, the
        // least waste among those of few weights
        let fitting = |&i: &usize| self.tiles[i].bm <= m.next_power_of_two().max(8);
        let full = |&i: &usize| {
            let tiles = &self.tiles[i];
            n / tiles.bn * m.div_ceil(tiles.bm) >= self.n_multiprocessors
        };
        let all = || (0..self.tiles.len()).filter(fitting);
        let narrow = || all().rfind(|&i| self.tiles[i].bn == self.tiles[0].bn);
        Kind::Tiles(all().rfind(full).or_else(narrow).unwrap_or(0))
    }

    /// Whether a kernel is there and made for the product's shape.
    fn can(&self, kind: Kind, a: &Gemm) -> bool {
        let Some(hopper) = &self.hopper else { return matches!(kind, Kind::Tiles(_)) };
        let plain = a.x_rows == 0 && a.out_rows == 0;
        match kind {
            Kind::Tiles(_) => true,
            Kind::Few { wider } => plain && (wider || a.epilogue != Epilogue::SwigluF16),
            Kind::Wide => {
                let turns = a.epilogue != Epilogue::QkvF16 || a.head_dim == 64;
                plain && turns && (a.n as u32).is_multiple_of(WIDE_BN) && hopper.wide[a.epilogue as usize].is_some()
            }
        }
    }

    unsafe fn launch_as(&self, device: &Device, kind: Kind, a: &Gemm) -> Result<()> {
        let (m, n) = (a.m as u32, a.n as u32);
        let (shape, stride) = ([a.m as usize, a.k as usize], a.x_stride as usize);
        match (kind, &self.hopper) {
            (Kind::Wide, Some(Hopper { wide, .. })) => {
                let kernel = wide[a.epilogue as usize].as_ref().expect("looked at before");
                let arguments = WideGemm { x: device.tensor_map(a.x, shape, stride, WIDE_BM)?, g: *a };
                unsafe { device.launch(kernel, [self.n_multiprocessors, 1, 1], 384, WIDE_BYTES, &arguments) }
            }
            (Kind::Few { wider }, Some(Hopper { few, .. })) => {
                let box_rows = m.next_power_of_two().clamp(8, FEW_BM);
                let bn = if wider { 32 } else { 16 };
                let stage_bytes = (box_rows + bn) * 256;
                let room = FEW_BYTES[usize::from(box_rows > 16 || !wider)] - FEW_EXTRA_BYTES;
                let n_stages = (room / stage_bytes).min(FEW_MAX_STAGES);
                let arguments = FewGemm {
                    x: device.tensor_map_of_pairs(a.x, shape, stride, box_rows)?,
                    g: *a,
                    box_rows: box_rows as i32,
                    n_stages: n_stages as i32,
                };
                let shared_bytes = n_stages * stage_bytes + FEW_EXTRA_BYTES;
                let grid = [n / bn, m.div_ceil(FEW_BM), 1];
                unsafe { device.launch(&few[usize::from(wider)], grid, 160, shared_bytes, &arguments) }
            }
            (Kind::Tiles(i), _) => {
                let tiles = &self.tiles[i];
                let grid = [n / tiles.bn, m.div_ceil(tiles.bm), 1];
                unsafe { device.launch(&tiles.kernel, grid, tiles.threads, tiles.shared_bytes, a) }
            }
            (_, None) => unreachable!("chosen where there is one"),
        }
    }
}

impl Hopper {
    /// `None` where the GPU has no such instructions.
    fn new(device: &Device) -> Result<Option<Self>> {
        let Some(few_16) = device.optional_kernel(GEMM_FEW, "gemm_few_16", FEW_BYTES[1])? else { return Ok(None) };
        let few_32 = device.kernel(GEMM_FEW, "gemm_few_32", FEW_BYTES[1])?;
        let mut wide = [const { None }; 6];
        for (epilogue, name) in [
            (Epilogue::StoreF32, "gemm_wide_store"),
            (Epilogue::AddF32, "gemm_wide_add"),
            (Epilogue::GeluF16, "gemm_wide_gelu"),
            (Epilogue::SwigluF16, "gemm_wide_swiglu"),
            (Epilogue::QkvF16, "gemm_wide_qkv"),
        ] {
            wide[epilogue as usize] = Some(device.kernel(GEMM_WIDE, name, WIDE_BYTES)?);
        }
        Ok(Some(Self { few: [few_16, few_32], wide }))
    }
}

#[cfg(all(test, feature = "gpu-tests"))]
mod tests {
    use super::super::device::{Buffer, bytes_of_mut};
    use super::super::launch::{Kernels, Pack};
    use super::super::test_data::{Random, bf16_of, device, f16_of, put};
    use super::*;

    /// How the numbers of a test are distributed.
    const SPREADS: [(f32, f32); 3] = [
        (0.0, 1.0),     // as in a network
        (-12.0, 10.0),  // magnitudes far apart
        (-24.0, -14.0), // small, most of them denormal
    ];

    /// Packs `[n, k]` as the loader does.
    fn packed(kernels: &Kernels, weights: &[f32], n: usize, k: usize, swiglu: bool) -> Buffer {
        let device = kernels.device();
        let source = put(device, &bf16_of(weights));
        let out = device.alloc_zeros(n * k * 2).unwrap();
        let rows = if swiglu { n / 2 } else { n };
        for half in 0..n / rows {
            let pack = Pack {
                source: source.address() + (half * rows * k * 2) as u64,
                destination: out.address(),
                rows: rows as i32,
                columns: k as i32,
                first_row: 0,
                row_offset: 0,
                k: k as i32,
                block: k as i32,
                block_stride: k as i32,
                taps: 1,
                half: if swiglu { half as i32 } else { -1 },
            };
            // SAFETY: both buffers have that shape.
            unsafe { kernels.pack(&pack).unwrap() };
        }
        device.finish().unwrap();
        out
    }

    /// What the product should give, in F64 but for the rounding of the result.
    fn reference(a: &Gemm, x: &[f32], w: &[f32], bias: &[f32], rope: &[f32], old: &[f32]) -> Vec<f64> {
        let (m, n, k) = (a.m as usize, a.n as usize, a.k as usize);
        let sum = |row: usize, i: usize| -> f64 {
            (0..k).map(|j| f64::from(x[row * k + j]) * f64::from(w[i * k + j])).sum::<f64>() + f64::from(bias[i])
        };
        let mut out = Vec::new();
        for row in 0..m {
            let mut sums: Vec<f64> = (0..n).map(|i| sum(row, i)).collect();
            match a.epilogue {
                Epilogue::SwigluF16 => {
                    let (gates, ups) = sums.split_at(n / 2);
                    sums = gates.iter().zip(ups).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                }
                Epilogue::QkvF16 => {
                    let half = a.head_dim as usize / 2;
                    for i in (0..a.n_turned as usize).step_by(2) {
                        let at = (row * half + i % a.head_dim as usize / 2) * 2;
                        let (cosine, sine) = (f64::from(rope[at]), f64::from(rope[at + 1]));
                        let (p, q) = (sums[i], sums[i + 1]);
                        (sums[i], sums[i + 1]) = (p * cosine - q * sine, p * sine + q * cosine);
                    }
                }
                Epilogue::AddF32 => sums.iter_mut().enumerate().for_each(|(i, s)| *s += f64::from(old[row * n + i])),
                Epilogue::GeluF16 | Epilogue::GeluF32 => {
                    sums.iter_mut().for_each(|s| *s *= 0.5 * (1.0 + libm::erf(*s / 2f64.sqrt())))
                }
                Epilogue::StoreF32 => {}
            }
            out.extend(sums);
        }
        out
    }

    /// Every kernel on the same product: close to the reference, and the same bits as every other.
    fn check(
        kernels: &Kernels,
        [m, n, k]: [usize; 3],
        epilogue: Epilogue,
        spread: (f32, f32),
        with_bias: bool,
    ) -> Vec<Kind> {
        let device = kernels.device();
        let products = kernels.products();
        let mut random = Random::new((m * 31 + n * 17 + k + epilogue as usize) as u32);
        let x: Vec<f32> = random.spread(m * k, spread).iter().map(|&x| f16_of(&[x])).flat_map(|b| widen(&b)).collect();
        let mut w = random.spread(n * k, (-3.0, 0.0));
        w.iter_mut().for_each(|w| *w = half::bf16::from_f32(*w).to_f32());
        let bias = if with_bias { random.spread(n, (-1.0, 1.0)) } else { vec![0.0; n] };
        let head_dim = 64;
        let rope: Vec<f32> =
            random.spread(m * head_dim / 2, (0.0, 2.0)).iter().flat_map(|a| [a.cos(), a.sin()]).collect();
        let old = random.spread(m * n, (0.0, 1.0));
        let swiglu = epilogue == Epilogue::SwigluF16;
        let (weights, x16, bias32) = (packed(kernels, &w, n, k, swiglu), put(device, &f16_of(&x)), put(device, &bias));
        let rope32 = put(device, &rope);
        let width = if swiglu { n / 2 } else { n };
        let is_f16 = !matches!(epilogue, Epilogue::StoreF32 | Epilogue::AddF32 | Epilogue::GeluF32);
        let mut a = Gemm {
            weights: weights.address(),
            x: x16.address(),
            x_rows: 0,
            bias: if with_bias { bias32.address() } else { 0 },
            out: 0,
            out_rows: 0,
            rope: rope32.address(),
            x_stride: k as i32,
            out_stride: width as i32,
            m: m as i32,
            n: n as i32,
            k: k as i32,
            epilogue,
            n_turned: (n / 128 * 64) as i32,
            head_dim: head_dim as i32,
        };
        let expected = reference(&a, &x, &w, &bias, &rope, &old);
        let kinds = (0..products.tiles.len()).map(Kind::Tiles).chain([
            Kind::Few { wider: false },
            Kind::Few { wider: true },
            Kind::Wide,
        ]);
        let mut first: Option<Vec<u32>> = None;
        let kinds: Vec<Kind> = kinds.filter(|&kind| products.can(kind, &a)).collect();
        for &kind in &kinds {
            // what isn't written shows as not a number; rows beyond the last must stay so
            let blank = vec![f32::NAN; (m + 8) * width];
            let out = put(
                device,
                &if epilogue == Epilogue::AddF32 { [&old[..], &blank[..8 * width]].concat() } else { blank },
            );
            a.out = out.address();
            // SAFETY: all buffers have the product's shape.
            unsafe { products.launch_as(device, kind, &a).unwrap() };
            let mut all = vec![0u32; (m + 8) * width];
            // SAFETY: that is the buffer's size.
            unsafe { device.download(bytes_of_mut(&mut all), out.address()).unwrap() };
            let what = format!("{kind:?} {epilogue:?} {m} x {n} x {k}, spread {spread:?}");
            let (bits, beyond) = all.split_at(m * width / if is_f16 { 2 } else { 1 });
            assert!(beyond.iter().all(|&b| b == f32::NAN.to_bits()), "{what}: wrote beyond the last row");
            let bits = bits.to_vec();
            let got: Vec<f64> = if is_f16 {
                let halves = bits.iter().flat_map(|b| [*b as u16, (*b >> 16) as u16]);
                halves.map(|h| half::f16::from_bits(h).to_f64()).collect()
            } else {
                bits.iter().map(|&b| f64::from(f32::from_bits(b))).collect()
            };
            let norm: f64 = expected.iter().map(|x| x * x).sum();
            let off: f64 = expected.iter().zip(&got).map(|(x, y)| (x - y) * (x - y)).sum();
            let off = (off / norm.max(1e-30)).sqrt();
            // sums whose terms are rounded to F32 each, results to 11 bits
            assert!(off < if is_f16 { 1e-3 } else { 2e-5 }, "{what}: off by {off:.1e}");
            match &first {
                None => first = Some(bits),
                Some(first) => assert!(*first == bits, "{what}: not the bits of the other kernels"),
            }
        }
        kinds
    }

    fn widen(bits: &[u16]) -> Vec<f32> {
        bits.iter().map(|&b| half::f16::from_bits(b).to_f32()).collect()
    }

    #[test]
    fn all_products_have_the_same_bits_and_are_right() {
        let kernels = device();
        for m in [1, 4, 7, 8, 9, 16, 33, 64, 65, 130] {
            let kinds = check(&kernels, [m, 256, 128], Epilogue::StoreF32, SPREADS[0], true);
            if kernels.device().has_hopper_kernels() {
                for kind in [Kind::Few { wider: false }, Kind::Few { wider: true }, Kind::Wide] {
                    assert!(kinds.contains(&kind), "{kind:?} took no part");
                }
            }
        }
        for spread in SPREADS {
            check(&kernels, [129, 512, 384], Epilogue::StoreF32, spread, false);
            for k in [2048, 2176, 2560, 5120] {
                check(&kernels, [5, 128, k], Epilogue::StoreF32, spread, true);
            }
        }
        for epilogue in [Epilogue::AddF32, Epilogue::GeluF32, Epilogue::GeluF16, Epilogue::SwigluF16, Epilogue::QkvF16]
        {
            for [m, n, k] in [[3, 512, 256], [71, 256, 128], [300, 768, 640]] {
                check(&kernels, [m, n, k], epilogue, SPREADS[0], epilogue != Epilogue::SwigluF16);
            }
        }
    }
}
