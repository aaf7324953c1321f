//! One GPU: probing for it, its kernels and their launches, and, in [`memory`], what is stored on it.
//!
//! Everything runs in order on one CUDA stream. The driver library is opened at run time; a machine without it, or with
//! one that is too old, gets an error that says what is missing.

mod memory;

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaFunction, CudaGraph, CudaModule, CudaStream, DriverError, result, sys};
use cudarc::nvrtc::Ptx;

pub use self::memory::{Address, Buffer, Pinned, Registered, bytes_of, bytes_of_mut};
use crate::backend::CudaOptions;
use crate::{Error, Result};

/// CUDA 13.0: what the kernels are compiled with, so the oldest driver that loads them.
const MIN_DRIVER: i32 = 13_000;
/// Compute capability of the oldest GPUs with BF16 matrix units.
const MIN_CAPABILITY: (i32, i32) = (8, 0);

/// Compute capability from which kernels can wait inside for those before them (see `wait_for_previous`).
const FIRST_OVERLAPPING: (i32, i32) = (9, 0);

pub fn failed(what: &str) -> impl FnOnce(DriverError) -> Error + '_ {
    move |e| Error::Backend(format!("CUDA: {what}: {}", describe(e)))
}

fn describe(e: DriverError) -> String {
    match e.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("error {}", e.0 as u32),
    }
}

/// An attribute whose value is not set yet.
fn flag(id: sys::CUlaunchAttributeID) -> sys::CUlaunchAttribute {
    // SAFETY: an attribute of zeros is valid.
    let mut attribute: sys::CUlaunchAttribute = unsafe { std::mem::zeroed() };
    attribute.id = id;
    attribute
}

/// A kernel and what each of its launches needs.
pub struct Kernel {
    function: CudaFunction,
    name: &'static str,
}

impl Kernel {
    /// Blocks of the clusters that the kernel was compiled for.
    pub fn cluster_width(&self) -> Result<u32> {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_REQUIRED_CLUSTER_WIDTH;
        let width = self.function.get_attribute(attribute).map_err(failed(self.name))?;
        Ok(width.max(1) as u32)
    }

    /// Lets launches have so much dynamic shared memory.
    pub fn allow_shared(&self, n_bytes: u32) -> Result<()> {
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        self.function.set_attribute(attribute, n_bytes as i32).map_err(failed(self.name))
    }
}

/// How a kernel's copy engine sees a matrix: see [`Device::tensor_map`].
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TensorMap([u64; 16]);

/// An opened GPU.
pub struct Device {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    modules: Vec<Arc<CudaModule>>,
    pub name: String,
    pub n_multiprocessors: u32,
    /// Shared memory that a block may ask for.
    pub shared_bytes: u32,
    /// Whether memory comes from the driver's pool.
    pooled: bool,
    /// Whether a kernel may start before the one before it has ended.
    overlaps: bool,
    /// Compute capability.
    capability: (i32, i32),
}

/// GPUs of this machine that the driver shows; none where there is no driver.
pub fn count() -> usize {
    let count = || if probe(0).is_ok() { CudaContext::device_count().unwrap_or(0) } else { 0 };
    std::panic::catch_unwind(count).map_or(0, |n| n.max(0) as usize)
}

/// Whether this GPU can be used; if not, why.
pub fn probe(ordinal: usize) -> std::result::Result<(), String> {
    // cudarc panics where the library or one of its functions is missing: the checks come first, this is the second net
    std::panic::catch_unwind(|| checked(ordinal)).unwrap_or_else(|_| Err("the NVIDIA driver is not usable".into()))
}

fn checked(ordinal: usize) -> std::result::Result<(), String> {
    // SAFETY: opening the library runs its initialisers, as any CUDA program does.
    if !unsafe { sys::is_culib_present() } {
        return Err("no NVIDIA driver (libcuda) is installed".into());
    }
    // SAFETY: the library is there; only the function's presence is looked at.
    let modern = unsafe { sys::culib().get::<*const std::ffi::c_void>(b"cuLaunchKernelEx\0").is_ok() };
    let too_old = "the NVIDIA driver is too old: version 580 or newer is needed";
    if !modern {
        return Err(too_old.into());
    }
    result::init().map_err(|e| format!("the NVIDIA driver finds no GPU: {}", describe(e)))?;
    let mut version = 0;
    // SAFETY: `version` is valid for writing.
    let status = unsafe { sys::cuDriverGetVersion(&mut version) };
    if status != sys::CUresult::CUDA_SUCCESS || version < MIN_DRIVER {
        return Err(too_old.into());
    }
    let count = CudaContext::device_count().map_err(describe)?;
    if ordinal as i64 >= i64::from(count) {
        return Err(format!("there is no GPU {ordinal}: {count} found"));
    }
    let device = result::device::get(ordinal as i32).map_err(describe)?;
    let attribute = |which| {
        // SAFETY: the device was just looked up.
        unsafe { result::device::get_attribute(device, which) }.map_err(describe)
    };
    use sys::CUdevice_attribute as Attribute;
    let major = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?;
    let minor = attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?;
    if (major, minor) < MIN_CAPABILITY {
        return Err(format!("GPU {ordinal} has compute capability {major}.{minor}; 8.0 (Ampere) or newer is needed"));
    }
    Ok(())
}

impl Device {
    /// Opens a GPU and loads these fatbins onto it.
    pub fn open(options: &CudaOptions, fatbins: &[&[u8]]) -> Result<Arc<Self>> {
        let ordinal = options.ordinal;
        probe(ordinal).map_err(Error::Backend)?;
        let context = CudaContext::new(ordinal).map_err(failed("cannot open the GPU"))?;
        // SAFETY: no slice of cudarc's is used on more than one stream: none is used at all.
        unsafe { context.disable_event_tracking() };
        let stream = context.new_stream().map_err(failed("cannot create a stream"))?;
        let pooled = options.mempool && has_pool(&context)?;
        if pooled {
            keep_freed_memory(ordinal)?;
        }
        let modules = fatbins
            .iter()
            .map(|bytes| context.load_module(Ptx::from_binary(bytes.to_vec())))
            .collect::<std::result::Result<_, _>>()
            .map_err(failed("cannot load the kernels"))?;
        let name = context.name().map_err(failed("cannot ask for the GPU's name"))?;
        let n = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)
            .map_err(failed("cannot ask for the GPU's size"))?;
        let shared_bytes = context
            .attribute(sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)
            .map_err(failed("cannot ask for the GPU's shared memory"))? as u32;
        let capability = context.compute_capability().map_err(failed("cannot ask for the GPU's capability"))?;
        let overlaps = capability >= FIRST_OVERLAPPING;
        let n_multiprocessors = n as u32;
        Ok(Arc::new(Self {
            context,
            stream,
            modules,
            name,
            n_multiprocessors,
            shared_bytes,
            pooled,
            overlaps,
            capability,
        }))
    }

    /// Whether there are kernels with the instructions that only compute capability 9.0 has.
    pub fn has_hopper_kernels(&self) -> bool {
        cfg!(hopper_kernels) && self.capability == (9, 0)
    }

    /// Makes this GPU the calling thread's; every entry into the backend does that first.
    pub fn enter(&self) -> Result<()> {
        self.context.bind_to_thread().map_err(failed("cannot use the GPU from this thread"))
    }

    /// Free and total memory in bytes.
    pub fn memory(&self) -> Result<(usize, usize)> {
        self.context.mem_get_info().map_err(failed("cannot ask for free memory"))
    }

    /// A kernel of the fatbin of this index, whose launches have so much dynamic shared memory.
    pub fn kernel(&self, fatbin: usize, name: &'static str, shared_bytes: u32) -> Result<Kernel> {
        let function = self.modules[fatbin].load_function(name).map_err(failed(name))?;
        let kernel = Kernel { function, name };
        if shared_bytes > 48 << 10 {
            kernel.allow_shared(shared_bytes)?;
        }
        // one division of the memory for all: multiprocessors don't change theirs while kernels overlap
        let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT;
        kernel.function.set_attribute(attribute, 100).map_err(failed(name))?;
        Ok(kernel)
    }

    /// As [`kernel`](Self::kernel), for kernels that only some GPUs have.
    pub fn optional_kernel(&self, fatbin: usize, name: &'static str, shared_bytes: u32) -> Result<Option<Kernel>> {
        match self.modules[fatbin].load_function(name) {
            Err(DriverError(sys::CUresult::CUDA_ERROR_NOT_FOUND)) => Ok(None),
            _ => self.kernel(fatbin, name, shared_bytes).map(Some),
        }
    }

    /// A matrix `[rows, columns]` of F16 whose rows begin `stride` numbers apart, to be copied in boxes of `box_rows` rows
    /// by 64 columns, which lie in shared memory as `kernels/hopper.cuh` says. For compute capability 9.0 and newer.
    pub fn tensor_map(
        &self,
        address: Address,
        [rows, columns]: [usize; 2],
        stride: usize,
        box_rows: u32,
    ) -> Result<TensorMap> {
        encode_map(address, [columns as u64, rows as u64], &[2 * stride as u64], [64, box_rows])
    }

    /// As [`tensor_map`](Self::tensor_map), with boxes of two times 64 columns, one after the other.
    pub fn tensor_map_of_pairs(
        &self,
        address: Address,
        [rows, columns]: [usize; 2],
        stride: usize,
        box_rows: u32,
    ) -> Result<TensorMap> {
        let sizes = [64, rows as u64, columns as u64 / 64];
        encode_map(address, sizes, &[2 * stride as u64, 128], [64, box_rows, 2])
    }

    /// Starts a kernel that takes one structure.
    ///
    /// # Safety
    /// `arguments` must be laid out as the kernel's parameter, and what it points to must be large enough and stay
    /// allocated until the kernel has run.
    pub unsafe fn launch<A: Copy>(
        &self,
        kernel: &Kernel,
        grid: [u32; 3],
        block: u32,
        shared_bytes: u32,
        arguments: &A,
    ) -> Result<()> {
        use sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION as OVERLAP;
        let mut attribute = flag(OVERLAP);
        attribute.value.programmaticStreamSerializationAllowed = 1;
        let attributes = if self.overlaps { std::slice::from_mut(&mut attribute) } else { &mut [] };
        // SAFETY: as promised by the caller.
        unsafe { self.start(kernel, self.config(grid, block, shared_bytes, attributes), arguments) }
    }

    /// Starts a kernel whose blocks wait for each other, when all work before it is done. The grid is at most what
    /// [`resident_blocks`](Self::resident_blocks) says.
    ///
    /// # Safety
    /// As for [`launch`](Self::launch).
    pub unsafe fn launch_cooperative<A: Copy>(
        &self,
        kernel: &Kernel,
        grid: u32,
        block: u32,
        shared_bytes: u32,
        arguments: &A,
    ) -> Result<()> {
        let mut attribute = flag(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_COOPERATIVE);
        attribute.value.cooperative = 1;
        let config = self.config([grid, 1, 1], block, shared_bytes, std::slice::from_mut(&mut attribute));
        // SAFETY: as promised by the caller.
        unsafe { self.start(kernel, config, arguments) }
    }

    fn config(
        &self,
        grid: [u32; 3],
        block: u32,
        shared_bytes: u32,
        attributes: &mut [sys::CUlaunchAttribute],
    ) -> sys::CUlaunchConfig {
        sys::CUlaunchConfig {
            gridDimX: grid[0],
            gridDimY: grid[1],
            gridDimZ: grid[2],
            blockDimX: block,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: shared_bytes,
            hStream: self.stream.cu_stream(),
            attrs: attributes.as_mut_ptr(),
            numAttrs: attributes.len() as u32,
        }
    }

    /// # Safety
    /// As for [`launch`](Self::launch); the configuration's attributes must still be there.
    unsafe fn start<A: Copy>(&self, kernel: &Kernel, config: sys::CUlaunchConfig, arguments: &A) -> Result<()> {
        let mut parameters = [std::ptr::from_ref(arguments).cast_mut().cast()];
        // SAFETY: as promised by the caller; the driver copies the parameter before it returns.
        unsafe {
            sys::cuLaunchKernelEx(&config, kernel.function.cu_function(), parameters.as_mut_ptr(), std::ptr::null_mut())
        }
        .result()
        .map_err(failed(kernel.name))
    }

    /// How many blocks of a kernel, in its clusters, the GPU holds at once if it runs nothing else; at most one for each
    /// multiprocessor.
    pub fn resident_blocks(&self, kernel: &Kernel, block: u32, shared_bytes: u32) -> Result<u32> {
        let width = kernel.cluster_width()?;
        let n = if width > 1 {
            let mut attribute = flag(sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION);
            attribute.value.clusterDim = sys::CUlaunchAttributeValue_union__bindgen_ty_1 { x: width, y: 1, z: 1 };
            let grid = self.n_multiprocessors / width * width;
            let config = self.config([grid, 1, 1], block, shared_bytes, std::slice::from_mut(&mut attribute));
            let mut n = 0;
            // SAFETY: `n` is valid for writing, and the configuration's attribute is still there.
            unsafe { sys::cuOccupancyMaxActiveClusters(&mut n, kernel.function.cu_function(), &config) }
                .result()
                .map_err(failed(kernel.name))?;
            n as u32 * width
        } else {
            let n = kernel.function.occupancy_max_active_blocks_per_multiprocessor(block, shared_bytes as usize, None);
            n.map_err(failed(kernel.name))? * self.n_multiprocessors
        };
        Ok(n.min(self.n_multiprocessors))
    }

    /// Waits for all work so far.
    pub fn finish(&self) -> Result<()> {
        self.stream.synchronize().map_err(failed("work on the GPU failed"))
    }

    /// An event after all work so far.
    pub fn mark(&self) -> Result<cudarc::driver::CudaEvent> {
        self.stream.record_event(None).map_err(failed("cannot record an event"))
    }

    /// An event after all work so far that tells the time.
    pub fn mark_time(&self) -> Result<cudarc::driver::CudaEvent> {
        let timed = sys::CUevent_flags::CU_EVENT_DEFAULT;
        self.stream.record_event(Some(timed)).map_err(failed("cannot record an event"))
    }

    /// The stream that everything runs on, for libraries.
    pub fn raw_stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    /// Turns what `work` launches into a graph instead of running it.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        self.stream.begin_capture(mode).map_err(failed("cannot record a graph"))?;
        let worked = work();
        let graph = self.stream.end_capture(sys::CUgraphInstantiate_flags(0));
        worked?;
        let graph = graph.map_err(failed("cannot build a graph"))?;
        graph.map(Graph).ok_or_else(|| Error::Backend("CUDA: a graph without work".into()))
    }
}

/// A map of F16 numbers in `sizes`, innermost first; `strides`, in bytes, are those of all but the innermost.
fn encode_map<const D: usize>(
    address: Address,
    sizes: [u64; D],
    strides: &[u64],
    shape: [u32; D],
) -> Result<TensorMap> {
    assert_eq!(strides.len() + 1, D);
    let mut map = TensorMap([0; 16]);
    // SAFETY: the map has the size and the alignment of a CUtensorMap, the arrays as many elements as there are dimensions
    // (the strides one less), and the address is only written down.
    unsafe {
        sys::cuTensorMapEncodeTiled(
            std::ptr::from_mut(&mut map).cast(),
            sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_FLOAT16,
            D as u32,
            address as *mut std::ffi::c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            shape.as_ptr(),
            [1; D].as_ptr(),
            sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .map_err(failed("cannot describe a matrix"))?;
    Ok(map)
}

/// Whether the driver has a pool that memory can be taken from in the stream's order.
fn has_pool(context: &CudaContext) -> Result<bool> {
    let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED;
    Ok(context.attribute(attribute).map_err(failed("cannot ask for the memory pool"))? != 0)
}

/// Lets freed memory stay with the process: streams come and go.
fn keep_freed_memory(ordinal: usize) -> Result<()> {
    let what = "cannot set up the memory pool";
    let device = result::device::get(ordinal as i32).map_err(failed(what))?;
    let mut all = u64::MAX;
    // SAFETY: the device is valid, and the attribute's value is a u64.
    unsafe {
        let pool = result::device::get_default_mem_pool(device).map_err(failed(what))?;
        let attribute = sys::CUmemPool_attribute_enum::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, std::ptr::from_mut(&mut all).cast()).result().map_err(failed(what))
    }
}

/// Launches that were recorded once.
pub struct Graph(CudaGraph);

// SAFETY: a graph may be used from any thread, one at a time; it is launched through `&mut` of its owner only.
unsafe impl Send for Graph {}

impl Graph {
    pub fn launch(&mut self) -> Result<()> {
        self.0.launch().map_err(failed("cannot launch a graph"))
    }
}
