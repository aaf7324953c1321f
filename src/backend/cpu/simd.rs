//! Sixteen f32 lanes on every machine.
//!
//! Kernels are written once over one trait and compiled for each instruction set. All sets give sixteen lanes and reduce
//! them in the same order, and those with fused multiply-add (AVX-512, AVX2, NEON) give the same bits. Only the products of
//! AMX have a kernel and an order of their own.

/// Lanes of a vector.
pub(super) const LANES: usize = 16;

/// An instruction set that kernels are compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isa {
    /// Intel's matrix unit (AMX) for products, AVX-512 for the rest.
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    Amx,
    #[cfg(target_arch = "x86_64")]
    Avx512,
    #[cfg(target_arch = "x86_64")]
    Avx2,
    #[cfg(target_arch = "aarch64")]
    Neon,
    Portable,
}

impl Isa {
    /// The sets that this machine has, best first.
    pub fn available() -> Vec<Self> {
        let mut sets = Vec::new();
        #[cfg(target_arch = "x86_64")]
        {
            if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx2") {
                #[cfg(target_os = "linux")]
                if super::amx::is_available() {
                    sets.push(Self::Amx);
                }
                sets.push(Self::Avx512);
            }
            if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
                sets.push(Self::Avx2);
            }
        }
        #[cfg(target_arch = "aarch64")]
        sets.push(Self::Neon);
        sets.push(Self::Portable);
        sets
    }

    /// [`Simd::TILE_ROWS`] of the set.
    pub(super) fn tile_rows(self) -> usize {
        match self {
            #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
            Self::Amx => Avx512::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => Avx512::TILE_ROWS,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => Avx2::TILE_ROWS,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => Neon::TILE_ROWS,
            Self::Portable => Portable::TILE_ROWS,
        }
    }
}

/// Compiles a generic kernel for every instruction set and picks by `isa` at run time.
macro_rules! for_each_isa {
    ($(#[$doc:meta])* $vis:vis fn $name:ident ( $($arg:ident : $ty:ty),* $(,)? ) = $generic:ident) => {
        $(#[$doc])*
        $vis unsafe fn $name(isa: $crate::backend::cpu::simd::Isa, $($arg: $ty),*) {
            use $crate::backend::cpu::simd;
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx2,fma")]
            unsafe fn avx512($($arg: $ty),*) {
                unsafe { $generic::<simd::Avx512>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma")]
            unsafe fn avx2($($arg: $ty),*) {
                unsafe { $generic::<simd::Avx2>($($arg),*) }
            }
            // SAFETY: the backend refuses sets that the machine lacks; the rest is this function's contract.
            unsafe {
                match isa {
                    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
                    simd::Isa::Amx => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    simd::Isa::Avx512 => avx512($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    simd::Isa::Avx2 => avx2($($arg),*),
                    #[cfg(target_arch = "aarch64")]
                    simd::Isa::Neon => $generic::<simd::Neon>($($arg),*),
                    simd::Isa::Portable => $generic::<simd::Portable>($($arg),*),
                }
            }
        }
    };
}
pub(super) use for_each_isa;

/// Operations on sixteen lanes.
///
/// # Safety
/// Every function needs a machine with the instruction set, and pointers that are valid for sixteen elements of any
/// alignment.
pub(super) trait Simd {
    type V: Copy;
    /// Input rows of a register tile of the matrix product, at most; more than two.
    const TILE_ROWS: usize;
    /// Vectors of a value row that attention accumulates at once, for each of four queries.
    const VALUE_VECTORS: usize;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Widens sixteen BF16 numbers.
    unsafe fn load_bf16(p: *const [u8; 2]) -> Self::V;
    /// `a * b + c`
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Nearest integer, ties to even.
    unsafe fn round(a: Self::V) -> Self::V;
    /// `2^n` for integral `n` from -127 to 127; 0 for -127.
    unsafe fn exp2(n: Self::V) -> Self::V;
    /// To all levels of cache.
    unsafe fn prefetch(p: *const u8);
    /// To L2 and beyond.
    unsafe fn prefetch_l2(p: *const u8);

    /// Sum of the lanes: halves onto each other, four times.
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let mut lanes = [0.0f32; LANES];
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        let mut width = LANES / 2;
        while width > 0 {
            for i in 0..width {
                lanes[i] += lanes[i + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    #[inline(always)]
    unsafe fn max_lane(v: Self::V) -> f32 {
        let mut lanes = [0.0f32; LANES];
        unsafe { Self::store(lanes.as_mut_ptr(), v) };
        lanes.into_iter().fold(f32::NEG_INFINITY, f32::max)
    }

    /// The first `n` of sixteen elements, zeros behind them.
    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize) -> Self::V {
        let mut lanes = [0.0f32; LANES];
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            Self::load(lanes.as_ptr())
        }
    }

    /// The first `n` of sixteen elements, zeros behind them.
    #[inline(always)]
    unsafe fn load_bf16_part(p: *const [u8; 2], n: usize) -> Self::V {
        let mut lanes = [[0u8; 2]; LANES];
        unsafe {
            std::ptr::copy_nonoverlapping(p, lanes.as_mut_ptr(), n);
            Self::load_bf16(lanes.as_ptr())
        }
    }

    /// `e^x` to about 1 ulp (Cody-Waite reduction, degree-6 minimax polynomial); 0 below -88, and no more than `e^88`.
    #[inline(always)]
    unsafe fn exp(x: Self::V) -> Self::V {
        unsafe {
            let x = Self::min(Self::max(x, Self::splat(-150.0)), Self::splat(88.0));
            let n = Self::round(Self::mul(x, Self::splat(std::f32::consts::LOG2_E)));
            let n = Self::max(n, Self::splat(-127.0));
            let r = Self::fma(n, Self::splat(-0.693_359_4), x);
            let r = Self::fma(n, Self::splat(2.121_944_4e-4), r);
            let mut p = Self::splat(1.987_569_1e-4);
            for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_6e-1, 0.5] {
                p = Self::fma(p, r, Self::splat(c));
            }
            let p = Self::add(Self::fma(Self::mul(r, r), p, r), Self::splat(1.0));
            Self::mul(p, Self::exp2(n))
        }
    }
}

/// One 512-bit register.
#[cfg(target_arch = "x86_64")]
pub(super) struct Avx512;

#[cfg(target_arch = "x86_64")]
mod x86 {
    use std::arch::x86_64::*;

    use super::{Avx2, Avx512, Simd};

    impl Simd for Avx512 {
        type V = __m512;
        const TILE_ROWS: usize = 9;
        const VALUE_VECTORS: usize = 4;

        #[inline(always)]
        unsafe fn splat(x: f32) -> __m512 {
            unsafe { _mm512_set1_ps(x) }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> __m512 {
            unsafe { _mm512_loadu_ps(p) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: __m512) {
            unsafe { _mm512_storeu_ps(p, v) }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const [u8; 2]) -> __m512 {
            unsafe {
                let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
        }
        #[inline(always)]
        unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
            unsafe { _mm512_fmadd_ps(a, b, c) }
        }
        #[inline(always)]
        unsafe fn add(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_add_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn mul(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_mul_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn div(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_div_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn max(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_max_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn min(a: __m512, b: __m512) -> __m512 {
            unsafe { _mm512_min_ps(a, b) }
        }
        #[inline(always)]
        unsafe fn round(a: __m512) -> __m512 {
            unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
        }
        #[inline(always)]
        unsafe fn exp2(n: __m512) -> __m512 {
            unsafe {
                let biased = _mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127));
                _mm512_castsi512_ps(_mm512_slli_epi32::<23>(biased))
            }
        }
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn prefetch_l2(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn sum(v: __m512) -> f32 {
            unsafe {
                let high = _mm512_castps512_ps256(_mm512_shuffle_f32x4::<0b1110>(v, v));
                Avx2::sum256(_mm256_add_ps(_mm512_castps512_ps256(v), high))
            }
        }
    }

    impl Avx2 {
        #[inline(always)]
        unsafe fn sum256(v: __m256) -> f32 {
            unsafe {
                let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
                let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
                _mm_cvtss_f32(_mm_add_ss(v, _mm_shuffle_ps::<1>(v, v)))
            }
        }
    }

    impl Simd for Avx2 {
        type V = [__m256; 2];
        const TILE_ROWS: usize = 6;
        const VALUE_VECTORS: usize = 1;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            unsafe { [_mm256_set1_ps(x); 2] }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            unsafe { [_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(8))] }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            unsafe {
                _mm256_storeu_ps(p, v[0]);
                _mm256_storeu_ps(p.add(8), v[1]);
            }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const [u8; 2]) -> Self::V {
            unsafe {
                [0, 8].map(|i| {
                    let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(p.add(i).cast()));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
                })
            }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { [_mm256_fmadd_ps(a[0], b[0], c[0]), _mm256_fmadd_ps(a[1], b[1], c[1])] }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_add_ps(a[0], b[0]), _mm256_add_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_mul_ps(a[0], b[0]), _mm256_mul_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_div_ps(a[0], b[0]), _mm256_div_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_max_ps(a[0], b[0]), _mm256_max_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
            unsafe { [_mm256_min_ps(a[0], b[0]), _mm256_min_ps(a[1], b[1])] }
        }
        #[inline(always)]
        unsafe fn round(a: Self::V) -> Self::V {
            unsafe { a.map(|a| _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a)) }
        }
        #[inline(always)]
        unsafe fn exp2(n: Self::V) -> Self::V {
            unsafe {
                n.map(|n| {
                    let biased = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
                    _mm256_castsi256_ps(_mm256_slli_epi32::<23>(biased))
                })
            }
        }
        #[inline(always)]
        unsafe fn prefetch(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn prefetch_l2(p: *const u8) {
            unsafe { _mm_prefetch::<_MM_HINT_T1>(p.cast()) }
        }
        #[inline(always)]
        unsafe fn sum(v: Self::V) -> f32 {
            unsafe { Self::sum256(_mm256_add_ps(v[0], v[1])) }
        }
    }
}

/// Two 256-bit registers.
#[cfg(target_arch = "x86_64")]
pub(super) struct Avx2;

/// Four 128-bit registers.
#[cfg(target_arch = "aarch64")]
pub(super) struct Neon;

#[cfg(target_arch = "aarch64")]
mod arm {
    use std::arch::aarch64::*;

    use super::{Neon, Simd};

    #[inline(always)]
    fn quarters(f: impl FnMut(usize) -> float32x4_t) -> [float32x4_t; 4] {
        [0, 1, 2, 3].map(f)
    }

    impl Simd for Neon {
        type V = [float32x4_t; 4];
        const TILE_ROWS: usize = 6;
        const VALUE_VECTORS: usize = 1;

        #[inline(always)]
        unsafe fn splat(x: f32) -> Self::V {
            unsafe { [vdupq_n_f32(x); 4] }
        }
        #[inline(always)]
        unsafe fn load(p: *const f32) -> Self::V {
            unsafe { quarters(|i| vld1q_f32(p.add(4 * i))) }
        }
        #[inline(always)]
        unsafe fn store(p: *mut f32, v: Self::V) {
            unsafe {
                for (i, &v) in v.iter().enumerate() {
                    vst1q_f32(p.add(4 * i), v);
                }
            }
        }
        #[inline(always)]
        unsafe fn load_bf16(p: *const [u8; 2]) -> Self::V {
            unsafe { quarters(|i| vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p.add(4 * i).cast())))) }
        }
        #[inline(always)]
        unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
            unsafe { quarters(|i| vfmaq_f32(c[i], a[i], b[i])) }
        }
        #[inline(always)]
        unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
            unsafe { quarters(|i| vaddq_f32(a[i], b[i])) }
        }
        #[inline(always)]
        unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
            unsafe { quarters(|i| vmulq_f32(a[i], b[i])) }
        }
        #[inline(always)]
        unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
            unsafe { quarters(|i| vdivq_f32(a[i], b[i])) }
        }
        #[inline(always)]
        unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
            unsafe { quarters(|i| vmaxq_f32(a[i], b[i])) }
        }
        #[inline(always)]
        unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
            unsafe { quarters(|i| vminq_f32(a[i], b[i])) }
        }
        #[inline(always)]
        unsafe fn round(a: Self::V) -> Self::V {
            unsafe { quarters(|i| vrndnq_f32(a[i])) }
        }
        #[inline(always)]
        unsafe fn exp2(n: Self::V) -> Self::V {
            unsafe {
                quarters(|i| {
                    let biased = vaddq_s32(vcvtnq_s32_f32(n[i]), vdupq_n_s32(127));
                    vreinterpretq_f32_s32(vshlq_n_s32::<23>(biased))
                })
            }
        }
        #[inline(always)]
        unsafe fn prefetch(_: *const u8) {}
        #[inline(always)]
        unsafe fn prefetch_l2(_: *const u8) {}
    }
}

/// Arrays; the compiler uses what the target's baseline has. Multiplies and adds round separately.
pub(super) struct Portable;

#[inline(always)]
fn lanes(f: impl FnMut(usize) -> f32) -> [f32; LANES] {
    std::array::from_fn(f)
}

impl Simd for Portable {
    type V = [f32; LANES];
    const TILE_ROWS: usize = 3;
    const VALUE_VECTORS: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; LANES]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { p.cast::<Self::V>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { p.cast::<Self::V>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const [u8; 2]) -> Self::V {
        lanes(|i| f32::from_bits(u32::from(u16::from_le_bytes(unsafe { *p.add(i) })) << 16))
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        lanes(|i| if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn round(a: Self::V) -> Self::V {
        lanes(|i| a[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn exp2(n: Self::V) -> Self::V {
        lanes(|i| f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
    #[inline(always)]
    unsafe fn prefetch(_: *const u8) {}
    #[inline(always)]
    unsafe fn prefetch_l2(_: *const u8) {}
}
