//! A decoder pass whose products are a library's: a chain of small kernels (`kernels/decoder_steps.cu`), products and the
//! attention of `kernels/decoder.cu`. It is there to compare with, and for GPUs on which the library is faster.
//!
//! All products have [`ROWS`] rows, however many are in use; reading the weights is what takes the time.

#[cfg(all(test, feature = "gpu-tests"))]
mod tests;

use std::collections::HashMap;
use std::sync::Arc;

use super::Tracer;
use super::cublaslt::{Library, Product, Shape};
use super::decoder::weights::LayerLayout;
use super::device::{Address, Buffer, Device, Graph, Kernel};
use super::launch::DECODER_STEPS;
use super::pass::{MAX_ROWS, Pass, PassKernels, Phases};
use super::weights::{Loader, padded};
use crate::Result;
use crate::model::params::{Params, TransformerParams};
use crate::model::weights::{LayerWeights, Tensor};

/// Widths of matrices and rows in memory are multiples of this.
const ALIGN: usize = 64;
/// Rows of a pass, at most; every GPU has a kernel whose attention takes so many.
pub const ROWS: usize = 64;
const _: () = assert!(ROWS <= MAX_ROWS);
/// Shapes remembered.
const MAX_GRAPHS: usize = 64;

/// Widths of the rows that products read (`k`) and write (`n`).
#[derive(Clone, Copy)]
pub struct Widths {
    k_dim: usize,
    k_attended: usize,
    k_hidden: usize,
    n_dim: usize,
    n_qkv: usize,
    n_hidden: usize,
    n_vocab: usize,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct Steps {
    rows: Address,
    tok_embeddings: Address,
    frequencies: Address,
    residual: Address,
    rope: Address,
    normed: Address,
    qkv: Address,
    query: Address,
    attended: Address,
    attended_rows: Address,
    gates: Address,
    activated: Address,
    logits: Address,
    best: Address,
    squares: Address,
    head_normed: Address,
    dim: i32,
    width: i32,
    k_dim: i32,
    n_heads: i32,
    n_kv_heads: i32,
    n_qkv: i32,
    k_attended: i32,
    hidden: i32,
    n_hidden: i32,
    k_hidden: i32,
    vocab: i32,
    n_vocab: i32,
    eps: f32,
    layer: i32,
    norm: Address,
    last: i32,
}

/// What runs such passes.
pub struct LibraryPasses {
    device: Arc<Device>,
    library: Library,
    pub widths: Widths,
    qkv: Product,
    wo: Product,
    w13: Product,
    w2: Product,
    head: Product,
    embed: Kernel,
    norm: Kernel,
    head_input: Kernel,
    rotate: Kernel,
    attended: Kernel,
    swiglu: Kernel,
    best: Kernel,
    normed: Buffer,
    qkv_rows: Buffer,
    attended_rows: Buffer,
    gates: Buffer,
    activated: Buffer,
    /// `[ROWS, n_vocab]`, of the last pass
    pub logits: Buffer,
    /// By rows, rows of the head, and whether the pass's own logits are asked for.
    graphs: HashMap<(usize, usize, bool), Graph>,
    use_graphs: bool,
}

impl Widths {
    pub fn new(p: &Params) -> Self {
        let d = &p.decoder;
        let aligned = |width: usize| width.next_multiple_of(ALIGN);
        Self {
            k_dim: aligned(d.dim),
            k_attended: aligned(d.q_dim()),
            k_hidden: aligned(d.hidden_dim),
            n_dim: padded(d.dim),
            n_qkv: aligned(d.q_dim() + 2 * d.kv_dim()),
            n_hidden: aligned(2 * d.hidden_dim),
            n_vocab: aligned(p.vocab_size),
        }
    }

    /// Columns of a row of logits.
    pub fn n_vocab(&self) -> usize {
        self.n_vocab
    }

    /// Makes the output matrix.
    pub fn pack_head<'a>(&self, loader: &mut Loader<'a>, device: &Arc<Device>, head: &'a Tensor) -> Result<Buffer> {
        let buffer = device.alloc_zeros(self.n_vocab * self.k_dim * 2)?;
        loader.pack_rows(head, buffer.address(), self.k_dim, 0)?;
        Ok(buffer)
    }

    /// A layer's matrices, row after row.
    pub fn layer(&self) -> LayerLayout {
        let wo = self.n_qkv * self.k_dim * 2;
        let w13 = wo + self.n_dim * self.k_attended * 2;
        let w2 = w13 + self.n_hidden * self.k_dim * 2;
        LayerLayout { wo, w13, w2, n_bytes: w2 + self.n_dim * self.k_hidden * 2 }
    }

    /// Puts a layer's matrices into zeros at `to`.
    pub fn pack<'a>(
        &self,
        loader: &mut Loader<'a>,
        p: &TransformerParams,
        w: &'a LayerWeights,
        to: Address,
    ) -> Result<()> {
        let (a, f, layout) = (&w.attention, &w.feed_forward, self.layer());
        let at = |offset: usize| to + offset as u64;
        loader.pack_rows(&a.wq, to, self.k_dim, 0)?;
        loader.pack_rows(&a.wk, to, self.k_dim, p.q_dim())?;
        loader.pack_rows(&a.wv, to, self.k_dim, p.q_dim() + p.kv_dim())?;
        loader.pack_rows(&a.wo, at(layout.wo), self.k_attended, 0)?;
        loader.pack_rows(&f.w1, at(layout.w13), self.k_dim, 0)?;
        loader.pack_rows(&f.w3, at(layout.w13), self.k_dim, p.hidden_dim)?;
        loader.pack_rows(&f.w2, at(layout.w2), self.k_hidden, 0)
    }
}

impl LibraryPasses {
    /// Chooses the library's algorithms. `layers` and `head` are where the matrices will be, and `residual` is the residual
    /// stream of at least [`ROWS`] rows, which is overwritten.
    pub fn new(
        device: &Arc<Device>,
        mut library: Library,
        widths: Widths,
        layers: &[Address],
        head: Address,
        residual: Address,
        use_graphs: bool,
    ) -> Result<Self> {
        let layout = widths.layer();
        let zeros = |width: usize, size: usize| device.alloc_zeros(ROWS * width * size);
        let (normed, qkv_rows) = (zeros(widths.k_dim, 2)?, zeros(widths.n_qkv, 4)?);
        let (attended_rows, gates) = (zeros(widths.k_attended, 2)?, zeros(widths.n_hidden, 4)?);
        let (activated, logits) = (zeros(widths.k_hidden, 2)?, zeros(widths.n_vocab, 4)?);
        let mut product = |n: usize, k: usize, adds: bool, at: Option<usize>, x: &Buffer, out: Address| {
            let w: Vec<Address> = match at {
                Some(offset) => layers.iter().map(|layer| layer + offset as u64).collect(),
                None => vec![head],
            };
            // SAFETY: layers, the output matrix and the rows just made have these sizes.
            unsafe { library.product(Shape { m: ROWS, n, k, adds }, &w, x.address(), out) }
        };
        let qkv = product(widths.n_qkv, widths.k_dim, false, Some(0), &normed, qkv_rows.address())?;
        let wo = product(widths.n_dim, widths.k_attended, true, Some(layout.wo), &attended_rows, residual)?;
        let w13 = product(widths.n_hidden, widths.k_dim, false, Some(layout.w13), &normed, gates.address())?;
        let w2 = product(widths.n_dim, widths.k_hidden, true, Some(layout.w2), &activated, residual)?;
        let head = product(widths.n_vocab, widths.k_dim, false, None, &normed, logits.address())?;
        let kernel = |name| device.kernel(DECODER_STEPS, name, 0);
        Ok(Self {
            device: device.clone(),
            library,
            widths,
            qkv,
            wo,
            w13,
            w2,
            head,
            embed: kernel("embed_rows")?,
            norm: kernel("norm_rows")?,
            head_input: kernel("head_input")?,
            rotate: kernel("rotate_rows")?,
            attended: kernel("attended_rows")?,
            swiglu: kernel("swiglu_rows")?,
            best: kernel("best_of_rows")?,
            normed,
            qkv_rows,
            attended_rows,
            gates,
            activated,
            logits,
            graphs: HashMap::new(),
            use_graphs,
        })
    }

    /// Runs a pass of `n_rows` rows, of which `n_wanted` are for the head; `residual` is that of `pass`, which but for what
    /// lies behind its addresses, and whether it has logits, is always the same.
    ///
    /// # Safety
    /// As for [`PassKernels::launch`], with matrices as [`Widths::pack`] leaves them.
    pub unsafe fn launch(
        &mut self,
        kernels: &PassKernels,
        pass: &Pass,
        [n_rows, n_wanted]: [usize; 2],
        residual: &Buffer,
        trace: &mut Tracer,
    ) -> Result<()> {
        let shape = [n_rows, n_wanted];
        if !self.use_graphs || trace.is_on() {
            // SAFETY: as promised by the caller.
            return unsafe { self.work(kernels, pass, shape, residual, trace) };
        }
        let key = (n_rows, n_wanted, pass.logits != 0);
        if !self.graphs.contains_key(&key) {
            if self.graphs.len() >= MAX_GRAPHS {
                self.graphs.clear();
            }
            // SAFETY: as promised by the caller.
            let graph = self.device.capture(|| unsafe { self.work(kernels, pass, shape, residual, trace) })?;
            self.graphs.insert(key, graph);
        }
        self.graphs.get_mut(&key).expect("just inserted").launch()
    }

    /// # Safety
    /// As for [`launch`](Self::launch).
    unsafe fn work(
        &self,
        kernels: &PassKernels,
        pass: &Pass,
        [n_rows, n_wanted]: [usize; 2],
        residual: &Buffer,
        trace: &mut Tracer,
    ) -> Result<()> {
        let w = &self.widths;
        let steps = Steps {
            rows: pass.rows,
            tok_embeddings: pass.head,
            frequencies: pass.frequencies,
            residual: pass.residual,
            rope: pass.rope,
            normed: self.normed.address(),
            qkv: self.qkv_rows.address(),
            query: pass.query,
            attended: pass.attended,
            attended_rows: self.attended_rows.address(),
            gates: self.gates.address(),
            activated: self.activated.address(),
            logits: self.logits.address(),
            best: pass.best,
            squares: pass.squares,
            head_normed: pass.normed,
            dim: pass.dim,
            width: pass.width,
            k_dim: w.k_dim as i32,
            n_heads: pass.n_heads,
            n_kv_heads: pass.n_kv_heads,
            n_qkv: w.n_qkv as i32,
            k_attended: w.k_attended as i32,
            hidden: pass.hidden,
            n_hidden: w.n_hidden as i32,
            k_hidden: w.k_hidden as i32,
            vocab: pass.vocab,
            n_vocab: w.n_vocab as i32,
            eps: pass.eps,
            layer: 0,
            norm: 0,
            last: 0,
        };
        let phases = Phases { n_layers: pass.n_layers as usize };
        let (rows, index) = (n_rows as u32, kernels.index(n_rows));
        let wide = |width: i32| (width as u32).div_ceil(256);
        // SAFETY: as promised by the caller; the rows made in `new` have ROWS rows of the widths used.
        unsafe {
            let run = |kernel: &Kernel, grid: [u32; 2], steps: &Steps| {
                self.device.launch(kernel, [grid[0], grid[1], 1], 256, 0, steps)
            };
            let multiply = |product: &Product, weights: Address, x: &Buffer, out: Address| {
                self.library.multiply(product, weights, x.address(), out)
            };
            run(&self.embed, [rows, 1], &steps)?;
            for (i, layer) in pass.layers[..phases.n_layers].iter().enumerate() {
                let here = Steps { layer: i as i32, ..steps };
                run(&self.norm, [rows, 1], &Steps { layer: -1, norm: layer.attention_norm, ..steps })?;
                multiply(&self.qkv, layer.wqkv, &self.normed, steps.qkv)?;
                run(&self.rotate, [rows, 1], &here)?;
                kernels.launch(index, pass, phases.attention(i))?;
                run(&self.attended, [rows, 1], &here)?;
                multiply(&self.wo, layer.wo, &self.attended_rows, steps.residual)?;
                run(&self.norm, [rows, 1], &Steps { norm: layer.ffn_norm, ..here })?;
                multiply(&self.w13, layer.w13, &self.normed, steps.gates)?;
                run(&self.swiglu, [wide(steps.hidden), rows], &here)?;
                multiply(&self.w2, layer.w2, &self.activated, steps.residual)?;
                trace.f32("decoder_layer", i, residual, n_rows, pass.width as usize, pass.dim as usize)?;
            }
            if n_wanted > 0 {
                let int8 = pass.head_int8 != 0;
                if !int8 || trace.is_on() {
                    run(&self.norm, [rows, 1], &Steps { layer: -1, norm: pass.final_norm, last: 1, ..steps })?;
                    trace.f16("decoder_norm", 0, &self.normed, n_wanted, w.k_dim, pass.dim as usize)?;
                }
                if int8 {
                    run(&self.head_input, [rows, 1], &Steps { norm: pass.final_norm, ..steps })?;
                    return kernels.launch(kernels.index(n_wanted), pass, phases.head());
                }
                multiply(&self.head, pass.head, &self.normed, steps.logits)?;
                run(&self.best, [wide(steps.vocab).div_ceil(8), n_wanted as u32], &steps)?;
            }
        }
        Ok(())
    }
}
