//! The GPU's knobs: environment names that users of the C implementation's CUDA fork have in their scripts, and what they
//! mean here. Values are looked up by [`super::options`], which reads the environment.
//!
//! A name that asks for what cannot be given gets a warning; one that asks for what is done anyway gets none.

use std::ffi::OsString;

use voxtral::backend::{CublasLt, CudaOptions, LtCompute, Products};

/// What becomes of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// It is read below.
    Read,
    /// It turns on what is always done.
    AlwaysOn,
    /// It turns on what is never done.
    NeverOn,
    /// It turns off what is always done.
    NeverOff,
    /// It turns off what is never done.
    AlwaysOff,
    /// It sizes what does not exist here.
    Nothing,
}

/// Every knob of the GPU.
const KNOBS: [(&str, Role); 54] = [
    ("VOX_CUDA_FAST", Role::Read),
    ("VOX_DISABLE_CUDA_FAST", Role::Read),
    ("VOX_CUDA_GRAPHS", Role::Read),
    ("VOX_DISABLE_CUDA_GRAPHS", Role::Read),
    ("VOX_CUDA_GEMM", Role::Read),
    ("VOX_DISABLE_CUBLASLT", Role::Read),
    ("VOX_CUDA_CUBLASLT_AUTOTUNE", Role::Read),
    ("VOX_DISABLE_CUBLASLT_AUTOTUNE", Role::Read),
    ("VOX_CUDA_CUBLASLT_MAX_WS_MB", Role::Read),
    ("VOX_CUDA_LT_COMPUTE", Role::Read),
    ("VOX_CUDA_LOGITS_FUSED", Role::Read),
    ("VOX_DISABLE_CUDA_LOGITS_FUSED", Role::Read),
    ("VOX_CUDA_LOGITS_INT8", Role::Read),
    ("VOX_DISABLE_CUDA_LOGITS_INT8", Role::Read),
    ("VOX_DISABLE_CUDA_PREFILL", Role::Read),
    ("VOX_CUDA_BF16_CACHE_GIB", Role::Read),
    ("VOX_CUDA_HOSTREG_GIB", Role::Read),
    ("VOX_CUDA_MEMPOOL", Role::Read),
    ("VOX_DISABLE_CUDA_MEMPOOL", Role::Read),
    ("VOX_CUDA_PIPELINE_FULL", Role::AlwaysOn),
    ("VOX_CUDA_PREFETCH", Role::AlwaysOn),
    ("VOX_CUDA_ATTN_V3", Role::AlwaysOn),
    ("VOX_CUDA_ATTN_V4", Role::AlwaysOn),
    ("VOX_CUDA_ATTN_V5", Role::AlwaysOn),
    ("VOX_CUDA_MERGE_WEIGHTS", Role::AlwaysOn),
    ("VOX_CUDA_MERGE_QKV", Role::AlwaysOn),
    ("VOX_CUDA_MERGE_FFN13", Role::AlwaysOn),
    ("VOX_CUDA_ROPE_DEV", Role::AlwaysOn),
    ("VOX_CUDA_CONV_STEM", Role::AlwaysOn),
    ("VOX_CUDA_KV_FP16", Role::AlwaysOn),
    ("VOX_CUDA_CUBLASLT_TRANSPOSE_B", Role::AlwaysOn),
    ("VOX_CUDA_ATTN_V2", Role::NeverOn),
    ("VOX_CUDA_ATTN_V6", Role::NeverOn),
    ("VOX_CUDA_DIRECT_ATTN", Role::NeverOn),
    ("VOX_DISABLE_CUDA_PIPELINE_FULL", Role::NeverOff),
    ("VOX_DISABLE_CUDA_PREFETCH", Role::NeverOff),
    ("VOX_DISABLE_CUDA_ATTN_V3", Role::NeverOff),
    ("VOX_DISABLE_CUDA_ATTN_V4", Role::NeverOff),
    ("VOX_DISABLE_CUDA_ATTN_V5", Role::NeverOff),
    ("VOX_DISABLE_CUDA_MERGE_WEIGHTS", Role::NeverOff),
    ("VOX_DISABLE_CUDA_ROPE_DEV", Role::NeverOff),
    ("VOX_DISABLE_CUDA_CONV_STEM", Role::NeverOff),
    ("VOX_DISABLE_CUDA_ENCODER_FULL", Role::NeverOff),
    ("VOX_DISABLE_CUDA_DECODER_FULL", Role::NeverOff),
    ("VOX_DISABLE_CUDA_RMSNORM_BF16_FUSED", Role::NeverOff),
    ("VOX_DISABLE_CUBLASLT_TRANSPOSE_B", Role::NeverOff),
    ("VOX_DISABLE_CUDA_ATTN_V2", Role::AlwaysOff),
    ("VOX_DISABLE_CUDA_ATTN_V6", Role::AlwaysOff),
    ("VOX_DISABLE_CUDA_DIRECT_ATTN", Role::AlwaysOff),
    ("VOX_CUDA_CUBLASLT_AUTOTUNE_TOP", Role::Nothing),
    ("VOX_CUDA_CUBLASLT_AUTOTUNE_ITERS", Role::Nothing),
    ("VOX_CUDA_ADAPTER_CAP_TOKENS", Role::Nothing),
    ("VOX_STREAM_CHUNK_NEW_MEL", Role::Nothing),
    ("VOX_CUDA_ARCH", Role::Nothing), // the build reads it
];

/// Names of all of them.
pub fn names() -> impl Iterator<Item = &'static str> {
    KNOBS.iter().map(|&(name, _)| name)
}

/// Knobs are off when empty or starting with `0`, as in the C implementation.
pub fn is_on(value: &OsString) -> bool {
    !matches!(value.as_encoded_bytes(), [] | [b'0', ..])
}

/// The GPU's options, but for its number, and warnings about values that cannot be had.
pub fn read(environment: impl Fn(&str) -> Option<OsString>) -> (CudaOptions, Vec<String>) {
    let mut warnings = Vec::new();
    for (name, role) in KNOBS {
        let Some(on) = environment(name).map(|value| is_on(&value)) else { continue };
        match role {
            Role::AlwaysOn if !on => warnings.push(format!("{name} cannot be turned off: it is how the GPU is used")),
            Role::NeverOff if on => warnings.push(format!("{name} has no effect: what it turns off is always on here")),
            Role::NeverOn if on => warnings.push(format!("{name} has no effect: there is no such variant here")),
            _ => {}
        }
    }

    let flag = |name, default| environment(name).map_or(default, |value| is_on(&value));
    // a name, unless its other form turns it off
    let pair = |name, disable, default| flag(name, default) && !flag(disable, false);
    let fast = pair("VOX_CUDA_FAST", "VOX_DISABLE_CUDA_FAST", true);
    let mut odd = |name: &str, value: &OsString, expected: &str| {
        warnings.push(format!("{name}={} is not understood: expected {expected}", value.to_string_lossy()));
    };

    let mut cublaslt = match environment("VOX_CUDA_GEMM") {
        Some(value) if value == "cublaslt" => true,
        Some(value) if !value.is_empty() && value != "own" => {
            odd("VOX_CUDA_GEMM", &value, "own or cublaslt");
            false
        }
        _ => false,
    };
    cublaslt &= !flag("VOX_DISABLE_CUBLASLT", false);

    let mut max_workspace_bytes = CublasLt::default().max_workspace_bytes;
    if let Some(value) = environment("VOX_CUDA_CUBLASLT_MAX_WS_MB").filter(|v| !v.is_empty() && v != "auto") {
        match value.to_str().and_then(|mb| mb.parse::<usize>().ok()).filter(|&mb| mb <= 2048) {
            Some(mb) => max_workspace_bytes = mb << 20,
            None => odd("VOX_CUDA_CUBLASLT_MAX_WS_MB", &value, "auto or 0 to 2048"),
        }
    }

    let mut compute = LtCompute::default();
    if let Some(value) = environment("VOX_CUDA_LT_COMPUTE").filter(is_on) {
        let named = |mode: &&LtCompute| value.to_str().is_some_and(|text| text.eq_ignore_ascii_case(mode.name()));
        match LtCompute::ALL.iter().find(named) {
            Some(&mode) => compute = mode,
            None => odd("VOX_CUDA_LT_COMPUTE", &value, &LtCompute::ALL.map(LtCompute::name).join(", ")),
        }
    }

    let mut gib = |name: &str| {
        let value = environment(name).filter(|value| !value.is_empty())?;
        match value.to_str().and_then(|text| text.parse::<f64>().ok()).filter(|gib| (0.0..=4096.0).contains(gib)) {
            Some(gib) => Some((gib * f64::from(1 << 30)) as u64),
            None => {
                odd(name, &value, "0 to 4096");
                None
            }
        }
    };

    let autotune = pair("VOX_CUDA_CUBLASLT_AUTOTUNE", "VOX_DISABLE_CUBLASLT_AUTOTUNE", fast);
    let options = CudaOptions {
        ordinal: 0,
        graphs: pair("VOX_CUDA_GRAPHS", "VOX_DISABLE_CUDA_GRAPHS", fast),
        products: match cublaslt {
            true => Products::CublasLt(CublasLt { autotune, max_workspace_bytes, compute }),
            false => Products::Own,
        },
        logits_fused: pair("VOX_CUDA_LOGITS_FUSED", "VOX_DISABLE_CUDA_LOGITS_FUSED", true),
        logits_int8: pair("VOX_CUDA_LOGITS_INT8", "VOX_DISABLE_CUDA_LOGITS_INT8", false),
        prefill: !flag("VOX_DISABLE_CUDA_PREFILL", false),
        // 0 is as in the C implementation: as much as fits
        weight_cache_bytes: gib("VOX_CUDA_BF16_CACHE_GIB").filter(|&bytes| bytes > 0),
        host_register_bytes: gib("VOX_CUDA_HOSTREG_GIB").unwrap_or(0),
        mempool: pair("VOX_CUDA_MEMPOOL", "VOX_DISABLE_CUDA_MEMPOOL", true),
    };
    (options, warnings)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(environment: &[(&str, &str)]) -> (CudaOptions, Vec<String>) {
        super::read(|name| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v)))
    }

    fn options(environment: &[(&str, &str)]) -> CudaOptions {
        let (options, warnings) = read(environment);
        assert_eq!(warnings, [""; 0], "{environment:?}");
        options
    }

    #[test]
    fn an_empty_environment_gives_the_defaults() {
        assert_eq!(options(&[]), CudaOptions::default());
    }

    #[test]
    fn graphs_are_on_unless_turned_off() {
        let graphs = |environment: &[_]| options(environment).graphs;
        assert!(!graphs(&[("VOX_CUDA_FAST", "0")]));
        assert!(!graphs(&[("VOX_DISABLE_CUDA_FAST", "1")]));
        assert!(graphs(&[("VOX_CUDA_FAST", "0"), ("VOX_CUDA_GRAPHS", "1")]));
        assert!(!graphs(&[("VOX_CUDA_GRAPHS", "0")]));
        assert!(!graphs(&[("VOX_CUDA_GRAPHS", "1"), ("VOX_DISABLE_CUDA_GRAPHS", "1")]));
        assert!(graphs(&[("VOX_DISABLE_CUDA_GRAPHS", "0")]));
    }

    #[test]
    fn cublaslt_is_asked_for_by_name() {
        let lt = |environment: &[_]| match options(environment).products {
            Products::CublasLt(lt) => Some(lt),
            Products::Own => None,
        };
        let on = ("VOX_CUDA_GEMM", "cublaslt");
        assert_eq!(lt(&[on]), Some(CublasLt::default()));
        assert_eq!(lt(&[("VOX_CUDA_GEMM", "own")]), None);
        assert_eq!(lt(&[on, ("VOX_DISABLE_CUBLASLT", "1")]), None);
        assert_eq!(lt(&[("VOX_CUDA_LT_COMPUTE", "32F")]), None);
        for off in [("VOX_DISABLE_CUBLASLT_AUTOTUNE", "1"), ("VOX_CUDA_CUBLASLT_AUTOTUNE", "0"), ("VOX_CUDA_FAST", "0")]
        {
            assert!(!lt(&[on, off]).unwrap().autotune, "{off:?}");
        }
        let workspace = |mb| lt(&[on, ("VOX_CUDA_CUBLASLT_MAX_WS_MB", mb)]).unwrap().max_workspace_bytes >> 20;
        assert_eq!(["auto", "0", "256"].map(workspace), [32, 0, 256]);
        let compute = |mode| lt(&[on, ("VOX_CUDA_LT_COMPUTE", mode)]).unwrap().compute;
        assert_eq!(LtCompute::ALL.map(LtCompute::name).map(compute), LtCompute::ALL);
        assert_eq!(compute("32f_fast_tf32"), LtCompute::FastTf32);
    }

    #[test]
    fn the_rest_is_typed_too() {
        assert!(!options(&[("VOX_CUDA_LOGITS_FUSED", "0")]).logits_fused);
        assert!(!options(&[("VOX_DISABLE_CUDA_LOGITS_FUSED", "1")]).logits_fused);
        assert!(options(&[("VOX_CUDA_LOGITS_INT8", "1")]).logits_int8);
        assert!(!options(&[("VOX_CUDA_LOGITS_INT8", "1"), ("VOX_DISABLE_CUDA_LOGITS_INT8", "1")]).logits_int8);
        assert!(!options(&[("VOX_DISABLE_CUDA_PREFILL", "1")]).prefill);
        assert!(!options(&[("VOX_CUDA_MEMPOOL", "0")]).mempool);
        assert!(!options(&[("VOX_DISABLE_CUDA_MEMPOOL", "1")]).mempool);
        assert_eq!(options(&[("VOX_CUDA_BF16_CACHE_GIB", "1.5")]).weight_cache_bytes, Some(3 << 29));
        assert_eq!(options(&[("VOX_CUDA_BF16_CACHE_GIB", "0")]).weight_cache_bytes, None);
        assert_eq!(options(&[("VOX_CUDA_HOSTREG_GIB", "2")]).host_register_bytes, 2 << 30);
    }

    #[test]
    fn what_cannot_be_had_is_warned_about() {
        let warned = |name, value| read(&[(name, value)]).1.iter().any(|warning| warning.contains(name));
        for (name, value) in [
            ("VOX_CUDA_PREFETCH", "0"),
            ("VOX_CUDA_ATTN_V6", "1"),
            ("VOX_DISABLE_CUDA_ATTN_V3", "1"),
            ("VOX_CUDA_GEMM", "mkl"),
            ("VOX_CUDA_LT_COMPUTE", "64F"),
            ("VOX_CUDA_CUBLASLT_MAX_WS_MB", "-1"),
            ("VOX_CUDA_CUBLASLT_MAX_WS_MB", "99999999999999999999"),
            ("VOX_CUDA_BF16_CACHE_GIB", "nan"),
            ("VOX_CUDA_HOSTREG_GIB", "lots"),
        ] {
            assert!(warned(name, value), "{name}={value}");
        }
        for (name, value) in [
            ("VOX_CUDA_PREFETCH", "1"),
            ("VOX_CUDA_ATTN_V6", "0"),
            ("VOX_DISABLE_CUDA_ATTN_V3", "0"),
            ("VOX_DISABLE_CUDA_ATTN_V2", "1"),
            ("VOX_CUDA_ADAPTER_CAP_TOKENS", "4096"),
            ("VOX_CUDA_GEMM", ""),
            ("VOX_CUDA_LT_COMPUTE", ""),
            ("VOX_CUDA_CUBLASLT_MAX_WS_MB", ""),
            ("VOX_CUDA_HOSTREG_GIB", ""),
        ] {
            assert!(!warned(name, value), "{name}={value}");
        }
    }

    #[test]
    fn every_name_stands_once() {
        let mut all: Vec<_> = names().collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), KNOBS.len());
    }
}
