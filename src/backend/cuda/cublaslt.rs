//! Matrix products through cuBLASLt, which is loaded at run time where it is asked for.
//!
//! A product always has the same number of rows and one algorithm, which does not split the sums: so a row's bits depend
//! neither on its company nor on the other rows. Which algorithm that is may differ from one GPU to another, and with
//! autotuning from one start of the program to the next.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::Arc;

use cudarc::cublaslt::result::{self, CublasError};
use cudarc::cublaslt::sys;

use super::device::{Address, Buffer, Device};
use crate::backend::{CublasLt, LtCompute};
use crate::{Error, Result};

/// Algorithms that are timed, and how often each.
const CANDIDATES: usize = 8;
const REPEATS: usize = 10;
/// `CUBLAS_OP_T`
const TRANSPOSED: i32 = 1;

/// An open library.
pub struct Library {
    handle: sys::cublasLtHandle_t,
    operation: sys::cublasLtMatmulDesc_t,
    workspace: Buffer,
    options: CublasLt,
    device: Arc<Device>,
}

// SAFETY: the handle and the descriptor may be used from any thread, one at a time.
unsafe impl Send for Library {}

/// Shape of a product `out = x wᵀ (+ out)`: `w` is `[n, k]` in F16, `x` `[m, k]` in F16, `out` `[m, n]` in F32.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Whether it is added to what `out` holds.
    pub adds: bool,
}

/// A product that is ready to run.
pub struct Product {
    shape: Shape,
    layouts: Layouts,
    algorithm: sys::cublasLtMatmulAlgo_t,
    workspace_bytes: usize,
}

/// Of `w`, `x` and `out`.
struct Layouts([sys::cublasLtMatrixLayout_t; 3]);

// SAFETY: descriptors of plain data, used by one thread at a time.
unsafe impl Send for Layouts {}

fn failed(what: &str) -> impl FnOnce(CublasError) -> Error + '_ {
    move |e| Error::Backend(format!("cuBLASLt: {what}: {e}"))
}

impl Library {
    /// Loads the library.
    ///
    /// # Errors
    /// When there is none, or it lacks what is needed.
    pub fn open(device: &Arc<Device>, options: CublasLt) -> Result<Self> {
        // SAFETY: opening the library runs its initialisers, as any program that links it does.
        if !unsafe { sys::is_culib_present() } {
            return Err(Error::Backend("libcublasLt is not installed (it comes with the CUDA toolkit)".into()));
        }
        // a library that lacks a function makes cudarc panic
        let handle = std::panic::catch_unwind(result::create_handle)
            .map_err(|_| Error::Backend("libcublasLt is not usable".into()))?
            .map_err(failed("cannot be started"))?;
        let workspace = device.alloc(options.max_workspace_bytes)?;
        let mut library = Self { handle, operation: null_mut(), workspace, options, device: device.clone() };
        library.operation = operation(options.compute)?;
        Ok(library)
    }

    /// Prepares a product. `w` are addresses of matrices that it will multiply with, `x` and `out` those of its rows:
    /// autotuning reads the former and overwrites the latter.
    ///
    /// # Safety
    /// The addresses must be those of allocations of the shape's size, aligned to 16 bytes.
    pub unsafe fn product(&mut self, shape: Shape, w: &[Address], x: Address, out: Address) -> Result<Product> {
        let layout = |kind, rows, columns| {
            result::create_matrix_layout(kind, rows as u64, columns as u64, rows as i64).map_err(failed("a layout"))
        };
        let (f16, f32) = (sys::cudaDataType::CUDA_R_16F, sys::cudaDataType::CUDA_R_32F);
        let Shape { m, n, k, .. } = shape;
        // columns first, as the library sees it: w is [k, n], x [k, m], out [n, m]
        let layouts = Layouts([layout(f16, k, n)?, layout(f16, k, m)?, layout(f32, n, m)?]);
        let mut candidates = self.candidates(&layouts)?;
        if candidates.is_empty() && self.options.compute != LtCompute::F32 {
            tracing::warn!(
                "VOX_CUDA_LT_COMPUTE={} is not offered by cuBLASLt for F16 matrices: 32F is used",
                self.options.compute.name()
            );
            // SAFETY: made by `operation`, and nothing else has it.
            let _ = unsafe { result::destroy_matmul_desc(self.operation) };
            self.operation = null_mut();
            self.options.compute = LtCompute::F32;
            self.operation = operation(LtCompute::F32)?;
            candidates = self.candidates(&layouts)?;
        }
        let mut products = candidates.into_iter().map(|found| (found.algo, found.workspaceSize));
        let (algorithm, workspace_bytes) =
            products.next().ok_or_else(|| Error::Backend(format!("cuBLASLt: has no algorithm for {shape:?}")))?;
        let mut best = Product { shape, layouts, algorithm, workspace_bytes };
        if !self.options.autotune {
            // what is loaded at first use is not loaded while a graph is being recorded
            // SAFETY: as promised by the caller.
            unsafe { self.multiply(&best, w[0], x, out)? };
            return Ok(best);
        }
        // SAFETY: as promised by the caller.
        let mut fastest = unsafe { self.time(&best, w, x, out)? };
        for (algorithm, workspace_bytes) in products {
            let before = (best.algorithm, best.workspace_bytes);
            (best.algorithm, best.workspace_bytes) = (algorithm, workspace_bytes);
            // SAFETY: as promised by the caller.
            match unsafe { self.time(&best, w, x, out) } {
                Ok(time) if time < fastest => fastest = time,
                _ => (best.algorithm, best.workspace_bytes) = before,
            }
        }
        tracing::debug!(n, k, "cuBLASLt: {fastest:.4} ms");
        Ok(best)
    }

    /// Algorithms for matrices of these layouts, the best guess first; none where the mode does not exist for them.
    fn candidates(&self, layouts: &Layouts) -> Result<Vec<sys::cublasLtMatmulHeuristicResult_t>> {
        use sys::cublasLtMatmulPreferenceAttributes_t as Attribute;
        let [w, x, out] = layouts.0;
        let preference = result::create_matmul_pref().map_err(failed("a preference"))?;
        let workspace = self.options.max_workspace_bytes;
        let no_splits = sys::cublasLtReductionScheme_t::CUBLASLT_REDUCTION_SCHEME_NONE as u32;
        // SAFETY: a result of zeros is valid.
        let mut found: [sys::cublasLtMatmulHeuristicResult_t; CANDIDATES] = unsafe { std::mem::zeroed() };
        let mut n = 0;
        // SAFETY: the descriptors are valid, attributes have the sizes of their values, and `found` has room for so many.
        let status = unsafe {
            let set = |attribute, value: *const c_void, size| {
                result::set_matmul_pref_attribute(preference, attribute, value, size).map_err(failed("a preference"))
            };
            let set = set(
                Attribute::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                std::ptr::from_ref(&workspace).cast(),
                size_of::<usize>(),
            )
            .and_then(|()| {
                set(
                    Attribute::CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                    std::ptr::from_ref(&no_splits).cast(),
                    size_of::<u32>(),
                )
            });
            let status = sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                self.operation,
                w,
                x,
                out,
                out,
                preference,
                CANDIDATES as i32,
                found.as_mut_ptr(),
                &mut n,
            );
            let _ = result::destroy_matmul_pref(preference);
            set.map(|()| status)?
        };
        if status == sys::cublasStatus_t::CUBLAS_STATUS_NOT_SUPPORTED {
            return Ok(Vec::new());
        }
        status.result().map_err(failed("cannot be asked for algorithms"))?;
        let usable =
            |found: &sys::cublasLtMatmulHeuristicResult_t| found.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS;
        Ok(found[..n as usize].iter().copied().filter(usable).collect())
    }

    /// Milliseconds of one run, over different matrices.
    ///
    /// # Safety
    /// As for [`product`](Self::product).
    unsafe fn time(&self, product: &Product, w: &[Address], x: Address, out: Address) -> Result<f32> {
        let run = |i: usize| {
            // SAFETY: as promised by the caller.
            unsafe { self.multiply(product, w[i % w.len()], x, out) }
        };
        run(0)?;
        let start = self.device.mark_time()?;
        (1..=REPEATS).try_for_each(run)?;
        let end = self.device.mark_time()?;
        Ok(start.elapsed_ms(&end).map_err(super::device::failed("timing cuBLASLt"))? / REPEATS as f32)
    }

    /// Runs a product.
    ///
    /// # Safety
    /// The addresses must be those of allocations of the shape's size, aligned to 16 bytes.
    pub unsafe fn multiply(&self, product: &Product, w: Address, x: Address, out: Address) -> Result<()> {
        let [w_layout, x_layout, out_layout] = product.layouts.0;
        let (one, adds) = (1.0f32, f32::from(u8::from(product.shape.adds)));
        // SAFETY: as promised by the caller; the scalars are read before the call returns.
        unsafe {
            result::matmul(
                self.handle,
                self.operation,
                std::ptr::from_ref(&one).cast(),
                std::ptr::from_ref(&adds).cast(),
                w as *const c_void,
                w_layout,
                x as *const c_void,
                x_layout,
                out as *const c_void,
                out_layout,
                out as *mut c_void,
                out_layout,
                &product.algorithm,
                self.workspace.address() as *mut c_void,
                product.workspace_bytes,
                self.device.raw_stream().cast(),
            )
        }
        .map_err(failed("a product"))
    }
}

/// What is computed, but for shapes: F32 sums of `wᵀ x` in this mode.
fn operation(compute: LtCompute) -> Result<sys::cublasLtMatmulDesc_t> {
    use sys::cublasComputeType_t as Type;
    let kind = match compute {
        LtCompute::F32 => Type::CUBLAS_COMPUTE_32F,
        LtCompute::FastBf16 => Type::CUBLAS_COMPUTE_32F_FAST_16BF,
        LtCompute::FastTf32 => Type::CUBLAS_COMPUTE_32F_FAST_TF32,
        LtCompute::FastF16 => Type::CUBLAS_COMPUTE_32F_FAST_16F,
    };
    let operation = result::create_matmul_desc(kind, sys::cudaDataType::CUDA_R_32F).map_err(failed("a description"))?;
    let transposed = TRANSPOSED;
    let attribute = sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA;
    let value = std::ptr::from_ref(&transposed).cast();
    // SAFETY: the description was just made, and the value has the attribute's size.
    unsafe { result::set_matmul_desc_attribute(operation, attribute, value, size_of::<i32>()) }
        .map_err(failed("a description"))?;
    Ok(operation)
}

impl Drop for Library {
    fn drop(&mut self) {
        // SAFETY: both were made in `open` or `product`, and products in flight keep what they need.
        unsafe {
            if !self.operation.is_null() {
                let _ = result::destroy_matmul_desc(self.operation);
            }
            let _ = result::destroy_handle(self.handle);
        }
    }
}

impl Drop for Layouts {
    fn drop(&mut self) {
        for layout in self.0 {
            // SAFETY: made in `product`.
            let _ = unsafe { result::destroy_matrix_layout(layout) };
        }
    }
}
