//! `params.json`: every dimension of the network, checked.
//!
//! Read leniently (unknown keys are ignored, as Mistral adds some from time to time) and checked strictly: whatever the
//! rest of the crate relies on is established here, and all faults are reported together.

use std::ops::RangeInclusive;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::{Error, Result};

/// Largest accepted sizes: far beyond any real model, and small enough that what is computed with them fits into memory.
const MAX_DIM: u64 = 1 << 18;
const MAX_VOCAB: u64 = 1 << 20;
const MAX_WINDOW: u64 = 1 << 22;
const MAX_LAYERS: u64 = 1 << 10;
/// Key/value rings of one stream, in f32 and with heads rounded up to 16 elements, may not be larger than this; those of
/// the real model take 2 GiB.
const MAX_KV_BYTES: u64 = 1 << 34;

/// Mel frames that make one token: convolution stride 2, downsampling 4.
pub const FRAMES_PER_TOKEN: usize = 8;
/// Samples of 16 kHz audio that make one token (80 ms).
pub const SAMPLES_PER_TOKEN: usize = 1280;
/// Neighbouring encoder rows that the adapter joins into one token.
pub const DOWNSAMPLE: usize = 4;

/// Dimensions of one transformer stack.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct TransformerParams {
    pub dim: usize,
    pub n_layers: usize,
    pub head_dim: usize,
    pub hidden_dim: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    /// Positions that a query sees, its own included.
    pub sliding_window: usize,
    pub rope_theta: f64,
    pub norm_eps: f32,
}

impl TransformerParams {
    /// Width of all query heads together.
    pub fn q_dim(&self) -> usize {
        self.n_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub fn kv_dim(&self) -> usize {
        self.n_kv_heads * self.head_dim
    }
}

/// The whole network.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Params {
    pub encoder: TransformerParams,
    pub decoder: TransformerParams,
    pub vocab_size: usize,
    /// Inner width of the delay conditioning.
    pub ada_dim: usize,
    pub n_mels: usize,
    /// Logarithms of mel energies are clamped from below to 8 under this.
    pub log_mel_max: f32,
}

#[derive(Deserialize)]
struct RawStack {
    dim: Option<Value>,
    n_layers: Option<Value>,
    head_dim: Option<Value>,
    hidden_dim: Option<Value>,
    n_heads: Option<Value>,
    n_kv_heads: Option<Value>,
    sliding_window: Option<Value>,
    rope_theta: Option<Value>,
    norm_eps: Option<Value>,
    use_biases: Option<Value>,
    causal: Option<Value>,
    vocab_size: Option<Value>,
    tied_embeddings: Option<Value>,
    ada_rms_norm_t_cond: Option<Value>,
    ada_rms_norm_t_cond_dim: Option<Value>,
    audio_encoding_args: Option<RawAudio>,
    pos_embed: Option<Value>,
    ffn_type: Option<Value>,
    norm_type: Option<Value>,
    multimodal: Option<RawMultimodal>,
}

#[derive(Deserialize)]
struct RawMultimodal {
    whisper_model_args: RawWhisper,
}

#[derive(Deserialize)]
struct RawWhisper {
    encoder_args: Box<RawStack>,
    downsample_args: RawDownsample,
}

#[derive(Deserialize)]
struct RawDownsample {
    downsample_factor: Option<Value>,
}

#[derive(Deserialize)]
struct RawAudio {
    sampling_rate: Option<Value>,
    frame_rate: Option<Value>,
    num_mel_bins: Option<Value>,
    hop_length: Option<Value>,
    window_size: Option<Value>,
    global_log_mel_max: Option<Value>,
}

/// Collects faults while values are taken out of the raw structures.
struct Checker {
    faults: Vec<String>,
}

impl Checker {
    fn integer(&mut self, name: &str, value: Option<&Value>, max: u64) -> usize {
        match value.and_then(Value::as_u64) {
            Some(n) if (1..=max).contains(&n) => return n as usize,
            _ => self.faults.push(format!("{name} is {}, expected an integer from 1 to {max}", show(value))),
        }
        1
    }

    fn number(&mut self, name: &str, value: Option<&Value>, default: Option<f64>) -> f64 {
        match value.filter(|v| !v.is_null()).map(Value::as_f64) {
            None if default.is_some() => return default.unwrap_or_default(),
            Some(Some(x)) if x.is_finite() => return x,
            _ => self.faults.push(format!("{name} is {}, expected a number", show(value))),
        }
        1.0
    }

    fn number_in(&mut self, name: &str, value: Option<&Value>, range: RangeInclusive<f64>) -> f64 {
        let x = self.number(name, value, None);
        if !range.contains(&x) {
            self.faults.push(format!("{name} is {x}, expected {} to {}", range.start(), range.end()));
        }
        x
    }

    /// A key that may be absent but, if there, must have this value.
    fn equals(&mut self, name: &str, value: Option<&Value>, expected: Value) {
        let same = match (value, expected.as_f64()) {
            (None | Some(Value::Null), _) => true,
            (Some(v), Some(x)) => v.as_f64() == Some(x),
            (Some(v), None) => *v == expected,
        };
        if !same {
            self.faults.push(format!("{name} is {}, only {expected} is supported", show(value)));
        }
    }

    /// Mistral files write windows as a number, a numeric string, or a list with one entry a layer.
    fn window(&mut self, name: &str, value: Option<&Value>) -> usize {
        let one = |v: &Value| match v {
            Value::String(s) => s.trim().parse::<u64>().ok(),
            v => v.as_u64(),
        };
        let n = match value {
            Some(Value::Array(list)) => {
                let first = list.first().and_then(one);
                if list.iter().all(|v| one(v) == first) { first } else { None }
            }
            Some(v) => one(v),
            None => None,
        };
        match n {
            Some(n) if (1..=MAX_WINDOW).contains(&n) => n as usize,
            _ => {
                self.faults.push(format!("{name} is {}, expected one window from 1 to {MAX_WINDOW}", show(value)));
                1
            }
        }
    }

    fn stack(&mut self, prefix: &str, raw: &RawStack) -> TransformerParams {
        let p = |key: &str| format!("{prefix}{key}");
        let stack = TransformerParams {
            dim: self.integer(&p("dim"), raw.dim.as_ref(), MAX_DIM),
            n_layers: self.integer(&p("n_layers"), raw.n_layers.as_ref(), MAX_LAYERS),
            head_dim: self.integer(&p("head_dim"), raw.head_dim.as_ref(), MAX_DIM),
            hidden_dim: self.integer(&p("hidden_dim"), raw.hidden_dim.as_ref(), MAX_DIM),
            n_heads: self.integer(&p("n_heads"), raw.n_heads.as_ref(), MAX_DIM),
            n_kv_heads: match &raw.n_kv_heads {
                None | Some(Value::Null) => self.integer(&p("n_heads"), raw.n_heads.as_ref(), MAX_DIM),
                some => self.integer(&p("n_kv_heads"), some.as_ref(), MAX_DIM),
            },
            sliding_window: self.window(&p("sliding_window"), raw.sliding_window.as_ref()),
            rope_theta: self.number_in(&p("rope_theta"), raw.rope_theta.as_ref(), 1.0..=1e12),
            norm_eps: self.number_in(&p("norm_eps"), raw.norm_eps.as_ref(), 1e-12..=1.0) as f32,
        };
        if !stack.head_dim.is_multiple_of(2) {
            self.faults.push(format!("{} is {}, expected an even number", p("head_dim"), stack.head_dim));
        }
        if !stack.n_heads.is_multiple_of(stack.n_kv_heads) {
            let (n, kv) = (stack.n_heads, stack.n_kv_heads);
            self.faults.push(format!("{} is {n}, not a multiple of n_kv_heads ({kv})", p("n_heads")));
        }
        if stack.q_dim() as u64 > MAX_DIM {
            self.faults.push(format!("{}: all heads together are {} wide", p("n_heads"), stack.q_dim()));
        }
        let kv_bytes = [stack.sliding_window, stack.n_layers, stack.n_kv_heads, stack.head_dim.next_multiple_of(16), 8]
            .iter()
            .try_fold(1u64, |product, &n| product.checked_mul(n as u64));
        if kv_bytes.is_none_or(|n| n > MAX_KV_BYTES) {
            self.faults.push(format!("{}: a stream would need over {MAX_KV_BYTES} bytes", p("sliding_window")));
        }
        self.equals(&p("causal"), raw.causal.as_ref(), Value::Bool(true));
        stack
    }
}

fn show(value: Option<&Value>) -> String {
    value.map_or_else(|| "missing or null".to_owned(), Value::to_string)
}

impl Params {
    /// Reads and checks `params.json`.
    pub fn open(path: &Path) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| Error::Io { path: path.into(), error })?;
        Self::parse(&bytes).map_err(|faults| Error::Model { path: path.into(), faults })
    }

    /// The parameters in this JSON text, or everything that is wrong with them.
    pub fn parse(json: &[u8]) -> std::result::Result<Self, Vec<String>> {
        let raw: RawStack = serde_json::from_slice(json).map_err(|e| vec![e.to_string()])?;
        let mut check = Checker { faults: Vec::new() };
        let Some(RawMultimodal { whisper_model_args: whisper }) = &raw.multimodal else {
            return Err(vec!["multimodal.whisper_model_args is missing: not a Voxtral Realtime model".into()]);
        };
        let encoder_args = &whisper.encoder_args;
        let decoder = check.stack("", &raw);
        let encoder = check.stack("encoder_args.", encoder_args);

        check.equals("use_biases", raw.use_biases.as_ref(), Value::Bool(false));
        check.equals("encoder_args.use_biases", encoder_args.use_biases.as_ref(), Value::Bool(true));
        check.equals("tied_embeddings", raw.tied_embeddings.as_ref(), Value::Bool(true));
        check.equals("ada_rms_norm_t_cond", raw.ada_rms_norm_t_cond.as_ref(), Value::Bool(true));
        check.equals("encoder_args.pos_embed", encoder_args.pos_embed.as_ref(), "rope".into());
        check.equals("encoder_args.ffn_type", encoder_args.ffn_type.as_ref(), "swiglu".into());
        check.equals("encoder_args.norm_type", encoder_args.norm_type.as_ref(), "rms_norm".into());
        let factor = whisper.downsample_args.downsample_factor.as_ref();
        check.equals("downsample_factor", factor, DOWNSAMPLE.into());

        let (mut n_mels, mut log_mel_max) = (1, 1.5);
        match &encoder_args.audio_encoding_args {
            None => check.faults.push("encoder_args.audio_encoding_args is missing".into()),
            Some(audio) => {
                check.equals("sampling_rate", audio.sampling_rate.as_ref(), crate::audio::SAMPLE_RATE.into());
                check.equals("frame_rate", audio.frame_rate.as_ref(), 12.5.into());
                check.equals("hop_length", audio.hop_length.as_ref(), crate::audio::mel::HOP.into());
                check.equals("window_size", audio.window_size.as_ref(), crate::audio::mel::WINDOW.into());
                n_mels = check.integer("num_mel_bins", audio.num_mel_bins.as_ref(), 1024);
                log_mel_max = check.number("global_log_mel_max", audio.global_log_mel_max.as_ref(), Some(1.5)) as f32;
                if log_mel_max.abs() > 100.0 {
                    check.faults.push(format!("global_log_mel_max is {log_mel_max}, expected -100 to 100"));
                }
            }
        }
        let params = Self {
            encoder,
            decoder,
            vocab_size: check.integer("vocab_size", raw.vocab_size.as_ref(), MAX_VOCAB),
            ada_dim: check.integer("ada_rms_norm_t_cond_dim", raw.ada_rms_norm_t_cond_dim.as_ref(), MAX_DIM),
            n_mels,
            log_mel_max,
        };
        if !decoder.dim.is_multiple_of(2) {
            check.faults.push(format!("dim is {}, expected an even number", decoder.dim));
        }
        if check.faults.is_empty() { Ok(params) } else { Err(check.faults) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> Value {
        serde_json::from_str(include_str!("../../samples/tiny-model/params.json")).unwrap()
    }

    fn faults(change: impl Fn(&mut Value)) -> String {
        let mut json = tiny();
        change(&mut json);
        Params::parse(&serde_json::to_vec(&json).unwrap()).unwrap_err().join("; ")
    }

    #[test]
    fn reads_the_shipped_model() {
        let params = Params::parse(&serde_json::to_vec(&tiny()).unwrap()).unwrap();
        assert_eq!((params.encoder.n_layers, params.encoder.q_dim(), params.encoder.sliding_window), (6, 256, 256));
        assert_eq!((params.decoder.q_dim(), params.decoder.kv_dim(), params.vocab_size), (512, 256, 2816));
        assert_eq!((params.n_mels, params.ada_dim, params.log_mel_max), (128, 32, 1.5));
    }

    #[test]
    fn windows_may_be_strings_and_uniform_lists_and_unknown_keys_are_ignored() {
        let mut json = tiny();
        json["sliding_window"] = "300".into();
        json["something_new"] = serde_json::json!({"a": [1, 2]});
        json["multimodal"]["whisper_model_args"]["encoder_args"]["sliding_window"] = serde_json::json!([70, 70]);
        let params = Params::parse(&serde_json::to_vec(&json).unwrap()).unwrap();
        assert_eq!((params.decoder.sliding_window, params.encoder.sliding_window), (300, 70));
    }

    #[test]
    fn absurd_values_are_faults_and_all_are_named() {
        let both = faults(|j| {
            j["dim"] = 0.into();
            j["head_dim"] = 3.into();
        });
        assert!(both.contains("dim is 0") && both.contains("head_dim is 3"), "{both}");
        assert!(faults(|j| j["n_layers"] = u64::MAX.into()).contains("n_layers"));
        assert!(faults(|j| j["sliding_window"] = 0.into()).contains("sliding_window is 0"));
        assert!(faults(|j| j["sliding_window"] = Value::Null).contains("sliding_window is missing or null"));
        assert!(faults(|j| j["sliding_window"] = serde_json::json!([1, 2])).contains("sliding_window"));
        assert!(faults(|j| j["n_kv_heads"] = 3.into()).contains("not a multiple"));
        assert!(faults(|j| j["norm_eps"] = (-1.0).into()).contains("norm_eps"));
        assert!(faults(|j| j["norm_eps"] = 1e-60.into()).contains("norm_eps"));
        assert!(faults(|j| j["rope_theta"] = 1e-300.into()).contains("rope_theta"));
        let audio = |j: &mut Value| {
            j["multimodal"]["whisper_model_args"]["encoder_args"]["audio_encoding_args"]["global_log_mel_max"] =
                1e300.into();
        };
        assert!(faults(audio).contains("global_log_mel_max"));
        assert!(faults(|j| j["tied_embeddings"] = false.into()).contains("tied_embeddings"));
        assert!(faults(|j| j["dim"] = 2.5.into()).contains("dim is 2.5"));
        assert!(faults(|j| drop(j.as_object_mut().unwrap().remove("multimodal"))).contains("not a Voxtral"));
        let window = faults(|j| {
            j["sliding_window"] = (1 << 22).into();
            j["n_kv_heads"] = 4.into();
            j["n_layers"] = 1024.into();
        });
        assert!(window.contains("a stream would need"), "{window}");
        // heads of 2 take as much as heads of 16
        let heads = faults(|j| {
            j["sliding_window"] = (1 << 16).into();
            j["n_heads"] = 4096.into();
            j["n_kv_heads"] = 4096.into();
            j["head_dim"] = 2.into();
        });
        assert!(heads.contains("a stream would need"), "{heads}");
    }

    #[test]
    fn broken_json_is_a_fault() {
        for text in ["", "{", "[]", "{\"dim\": 1,}", "\u{0}"] {
            assert!(Params::parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }
}
