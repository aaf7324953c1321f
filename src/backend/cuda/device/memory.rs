//! Memory of a GPU, page-locked memory of the host, and copies between them.

use std::marker::PhantomData;
use std::sync::Arc;

use cudarc::driver::{result, sys};

use super::{Device, describe, failed};
use crate::{Error, Result};

/// Memory is page-locked in pieces of this.
const PAGE: usize = 4096;

/// A device address; 0 is null.
pub type Address = u64;

impl Device {
    /// Memory with undefined contents.
    pub fn alloc(self: &Arc<Self>, n_bytes: usize) -> Result<Buffer> {
        let size = n_bytes.max(16);
        // SAFETY: the stream is valid. The buffer keeps the device open.
        let address = unsafe {
            if self.pooled { result::malloc_async(self.stream.cu_stream(), size) } else { result::malloc_sync(size) }
        };
        let address = address.map_err(|e| {
            let free = self.memory().map_or(0, |(free, _)| free);
            let mib = |n: usize| n >> 20;
            let (wanted, free) = (mib(n_bytes), mib(free));
            Error::Backend(format!("CUDA: {wanted} MiB of GPU memory wanted, {free} MiB free: {}", describe(e)))
        })?;
        Ok(Buffer { address, n_bytes, device: self.clone() })
    }

    /// Memory filled with zeros.
    pub fn alloc_zeros(self: &Arc<Self>, n_bytes: usize) -> Result<Buffer> {
        let buffer = self.alloc(n_bytes)?;
        // SAFETY: the range was just allocated.
        unsafe { result::memset_d8_async(buffer.address, 0, n_bytes, self.stream.cu_stream()) }
            .map_err(failed("cannot clear memory"))?;
        Ok(buffer)
    }

    /// Copies within the device.
    ///
    /// # Safety
    /// Both ranges must be allocated.
    pub unsafe fn copy(&self, destination: Address, source: Address, n_bytes: usize) -> Result<()> {
        // SAFETY: as promised by the caller.
        unsafe { result::memcpy_dtod_async(destination, source, n_bytes, self.stream.cu_stream()) }
            .map_err(failed("cannot copy"))
    }

    /// Copies rows that lie `from_stride` bytes apart to where they are `to_stride` apart, within the device.
    ///
    /// # Safety
    /// All rows must be allocated.
    pub unsafe fn copy_rows(
        &self,
        [to, from]: [Address; 2],
        [to_stride, from_stride]: [usize; 2],
        n_rows: usize,
        n_bytes: usize,
    ) -> Result<()> {
        let copy = sys::CUDA_MEMCPY2D {
            srcXInBytes: 0,
            srcY: 0,
            srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            srcHost: std::ptr::null(),
            srcDevice: from,
            srcArray: std::ptr::null_mut(),
            srcPitch: from_stride,
            dstXInBytes: 0,
            dstY: 0,
            dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
            dstHost: std::ptr::null_mut(),
            dstDevice: to,
            dstArray: std::ptr::null_mut(),
            dstPitch: to_stride,
            WidthInBytes: n_bytes,
            Height: n_rows,
        };
        // SAFETY: as promised by the caller.
        unsafe { sys::cuMemcpy2DAsync_v2(&copy, self.stream.cu_stream()) }.result().map_err(failed("cannot copy"))
    }

    /// Copies to the device, in the stream's order.
    ///
    /// # Safety
    /// The destination must be allocated, and `source` unchanged until the copy is done.
    pub unsafe fn upload(&self, destination: Address, source: &[u8]) -> Result<()> {
        // SAFETY: as promised by the caller.
        unsafe { result::memcpy_htod_async(destination, source, self.stream.cu_stream()) }
            .map_err(failed("cannot copy to the GPU"))
    }

    /// Copies from the device and waits for all work before it.
    ///
    /// # Safety
    /// The source must be allocated for as many bytes as `destination` has.
    pub unsafe fn download(&self, destination: &mut [u8], source: Address) -> Result<()> {
        // SAFETY: as promised by the caller; the copy is done when this returns.
        unsafe { result::memcpy_dtoh_async(destination, source, self.stream.cu_stream()) }
            .map_err(failed("cannot copy from the GPU"))?;
        self.finish()
    }
}

/// Device memory, freed in the stream's order, or, without a pool, when all work so far is done.
pub struct Buffer {
    address: Address,
    n_bytes: usize,
    device: Arc<Device>,
}

impl Buffer {
    pub fn address(&self) -> Address {
        self.address
    }

    pub fn n_bytes(&self) -> usize {
        self.n_bytes
    }

    /// The `n` F16 numbers from number `first` on, when all work so far is done.
    pub fn download(&self, device: &Device, first: usize, n: usize) -> Result<Vec<f32>> {
        assert!((first + n) * 2 <= self.n_bytes, "numbers beyond the end");
        let mut bits = vec![0u16; n];
        // SAFETY: the range was just checked.
        unsafe { device.download(bytes_of_mut(&mut bits), self.address + first as u64 * 2)? };
        Ok(bits.into_iter().map(|bits| half::f16::from_bits(bits).to_f32()).collect())
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // an error here was reported by the work that caused it
        let _ = self.device.context.bind_to_thread();
        // SAFETY: allocated on this stream or for it, and nothing launched from now on uses it.
        let _ = unsafe {
            if self.device.pooled {
                result::free_async(self.address, self.device.stream.cu_stream())
            } else {
                let _ = self.device.stream.synchronize();
                result::free_sync(self.address)
            }
        };
    }
}

/// Page-locked host memory, which copies reach without a detour.
pub struct Pinned<T> {
    pointer: *mut T,
    len: usize,
    device: Arc<Device>,
    marker: PhantomData<T>,
}

// SAFETY: it owns plain memory.
unsafe impl<T: Send> Send for Pinned<T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Pinned<T> {}

impl<T: Copy> Pinned<T> {
    /// Zeros; every bit pattern of `T` must be valid, which holds for the numbers and structures used here.
    pub fn new(device: &Arc<Device>, len: usize) -> Result<Self> {
        let n_bytes = (len * size_of::<T>()).max(16);
        // SAFETY: the context is current; the memory is written before it is read.
        let pointer = unsafe {
            let pointer = result::malloc_host(n_bytes, 0).map_err(failed("cannot get page-locked memory"))?;
            pointer.cast::<u8>().write_bytes(0, n_bytes);
            pointer.cast()
        };
        Ok(Self { pointer, len, device: device.clone(), marker: PhantomData })
    }

    pub fn as_mut_slice(&mut self) -> &mut [T] {
        // SAFETY: `len` elements were allocated and zeroed.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.len) }
    }

    pub fn as_slice(&self) -> &[T] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts(self.pointer, self.len) }
    }
}

impl<T> Drop for Pinned<T> {
    fn drop(&mut self) {
        let _ = self.device.context.bind_to_thread();
        // SAFETY: allocated by `malloc_host`; copies from it are over, since whoever starts one waits for it.
        let _ = unsafe { result::free_host(self.pointer.cast()) };
    }
}

/// Host memory of others that is page-locked for a while.
pub struct Registered<'a> {
    bytes: &'a [u8],
    device: Arc<Device>,
}

impl<'a> Registered<'a> {
    /// Page-locks the pages that lie wholly in `bytes`, which begins with one.
    ///
    /// # Errors
    /// When the system has no way to, or not so much memory.
    pub fn new(device: &Arc<Device>, bytes: &'a [u8]) -> Result<Self> {
        let bytes = &bytes[..bytes.len() / PAGE * PAGE];
        let pointer = bytes.as_ptr().cast_mut().cast();
        // SAFETY: the memory is there as long as `bytes`, and is only read.
        unsafe { sys::cuMemHostRegister_v2(pointer, bytes.len(), sys::CU_MEMHOSTREGISTER_READ_ONLY) }
            .result()
            .map_err(failed("cannot page-lock the weights"))?;
        Ok(Self { bytes, device: device.clone() })
    }

    /// Whether these bytes are among them.
    pub fn contains(&self, bytes: &[u8]) -> bool {
        let (own, other) = (self.bytes.as_ptr_range(), bytes.as_ptr_range());
        own.start <= other.start && other.end <= own.end
    }
}

impl Drop for Registered<'_> {
    fn drop(&mut self) {
        // copies from it may be under way
        let _ = self.device.context.bind_to_thread();
        let _ = self.device.stream.synchronize();
        // SAFETY: registered in `new`.
        let _ = unsafe { sys::cuMemHostUnregister(self.bytes.as_ptr().cast_mut().cast()) };
    }
}

/// The bytes of plain numbers or structures.
pub fn bytes_of<T: Copy>(values: &[T]) -> &[u8] {
    // SAFETY: any memory may be looked at as bytes; the structures passed here have no padding.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

/// As [`bytes_of`], for writing; any bit pattern must be valid.
pub fn bytes_of_mut<T: Copy>(values: &mut [T]) -> &mut [u8] {
    // SAFETY: as above.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}
