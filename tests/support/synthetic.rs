//! Synthetic checkpoints: random weights of any size in the official file format, the same bits on every machine.
//!
//! A value is a hash of its index and its tensor's name, scaled so that activations keep a sensible size at any depth,
//! attention is uneven, and a set of favoured tokens gets spoken. See [`Preset`] for what there is.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use rayon::prelude::*;
use serde_json::{Value, json};

const ENCODER: &str = "mm_streams_embeddings.embedding_module.whisper_encoder";
const ADAPTER: &str = "mm_streams_embeddings.embedding_module.audio_language_projection";
const TOK_EMBEDDINGS: &str = "mm_streams_embeddings.embedding_module.tok_embeddings.weight";
const EMBEDDING_STD: f64 = 0.004;
/// Embedding rows of favoured tokens are this much larger.
const FAVOUR: f64 = 3.0;
const ADA_DIM: usize = 32;
/// Values hashed and written at once.
const CHUNK: usize = 1 << 22;

/// One transformer stack's dimensions.
#[derive(Clone, Copy)]
pub struct Dims {
    pub dim: usize,
    pub n_layers: usize,
    pub head_dim: usize,
    pub hidden_dim: usize,
    pub n_heads: usize,
    pub n_kv_heads: usize,
    pub window: usize,
}

/// A checkpoint to make.
#[derive(Clone)]
pub struct Preset {
    pub encoder: Dims,
    pub decoder: Dims,
    pub vocab_size: usize,
    pub seed: u32,
    pub favoured: Vec<usize>,
}

impl Preset {
    /// About 1 MB; both windows are shorter than the prompt.
    pub fn tiny() -> Self {
        Self {
            encoder: Dims {
                dim: 48,
                n_layers: 3,
                head_dim: 16,
                hidden_dim: 112,
                n_heads: 4,
                n_kv_heads: 4,
                window: 50,
            },
            decoder: Dims {
                dim: 96,
                n_layers: 3,
                head_dim: 16,
                hidden_dim: 160,
                n_heads: 8,
                n_kv_heads: 2,
                window: 30,
            },
            vocab_size: 1600,
            seed: 99,
            favoured: vec![32, 33, 1044, 1046, 1142, 1159, 1164, 1169, 1195, 1240, 1259, 1261, 1269],
        }
    }

    /// Like [`tiny`](Self::tiny), but it says EOS now and then.
    pub fn tiny_eos() -> Self {
        let mut preset = Self::tiny();
        preset.seed = 29;
        preset.favoured.push(2);
        preset
    }

    /// The real model's dimensions, 8.86 GB.
    pub fn full() -> Self {
        Self {
            encoder: Dims {
                dim: 1280,
                n_layers: 32,
                head_dim: 64,
                hidden_dim: 5120,
                n_heads: 32,
                n_kv_heads: 32,
                window: 750,
            },
            decoder: Dims {
                dim: 3072,
                n_layers: 26,
                head_dim: 128,
                hidden_dim: 9216,
                n_heads: 32,
                n_kv_heads: 8,
                window: 8192,
            },
            vocab_size: 131_072,
            seed: 2602,
            favoured: vec![
                32, 33, 1044, 1046, 1142, 1159, 1164, 1169, 1195, 1240, 1265, 1278, 1302, 1321, 1337, 3541, 4180, 4945,
                10350, 26668, 52528, 56914,
            ],
        }
    }

    /// Writes the three files of a model directory. `pieces` are the text tokens' bytes in base64, made up where absent.
    pub fn write(&self, dir: &Path, pieces: Option<&str>) -> io::Result<()> {
        std::fs::create_dir_all(dir)?;
        std::fs::write(dir.join("params.json"), serde_json::to_vec_pretty(&self.params())?)?;
        serde_json::to_writer(BufWriter::new(File::create(dir.join("tekken.json"))?), &self.tekken(pieces))?;
        let path = dir.join("consolidated.safetensors");
        let part = dir.join("consolidated.safetensors.part");
        self.write_weights(&part)?;
        std::fs::rename(part, path)
    }

    fn write_weights(&self, path: &Path) -> io::Result<()> {
        let tensors = self.tensors();
        let mut offset = 0;
        let mut header = String::from(r#"{"__metadata__":{"format":"pt"}"#);
        for t in &tensors {
            let end = offset + 2 * t.len();
            let shape = t.shape.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
            header += &format!(r#","{}":{{"dtype":"BF16","shape":[{shape}],"data_offsets":[{offset},{end}]}}"#, t.name);
            offset = end;
        }
        header.push('}');
        while header.len() % 8 != 0 {
            header.push(' ');
        }
        let mut file = File::create(path)?;
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        let mut bytes = Vec::new();
        for t in &tensors {
            for first in (0..t.len()).step_by(CHUNK) {
                bytes.resize(2 * CHUNK.min(t.len() - first), 0);
                bytes.par_chunks_mut(1 << 16).enumerate().for_each(|(i, bytes)| {
                    t.fill(self, first + i * (1 << 15), bytes);
                });
                file.write_all(&bytes)?;
            }
        }
        Ok(())
    }

    fn tensors(&self) -> Vec<Tensor> {
        let (e, d) = (&self.encoder, &self.decoder);
        let mut list = Vec::new();
        let mut add = |name: String, shape: &[usize], std: f64, mean: f64| {
            list.push(Tensor { name, shape: shape.to_vec(), std, mean });
        };
        let lin = |fan_in: usize, gain: f64| gain / (fan_in as f64).sqrt();
        let favoured_std = EMBEDDING_STD * FAVOUR;

        add(TOK_EMBEDDINGS.into(), &[self.vocab_size, d.dim], EMBEDDING_STD, 0.0);
        add(format!("{ENCODER}.conv_layers.0.conv.weight"), &[e.dim, 128, 3], lin(128 * 3, 3.0), 0.0);
        add(format!("{ENCODER}.conv_layers.0.conv.bias"), &[e.dim], 0.2, 0.0);
        add(format!("{ENCODER}.conv_layers.1.conv.weight"), &[e.dim, e.dim, 3], lin(e.dim * 3, 2.0), 0.0);
        add(format!("{ENCODER}.conv_layers.1.conv.bias"), &[e.dim], 0.2, 0.0);
        for i in 0..e.n_layers {
            let p = format!("{ENCODER}.transformer.layers.{i}");
            let (q, kv) = (e.n_heads * e.head_dim, e.n_kv_heads * e.head_dim);
            // what a branch adds shrinks with the depth that the preset has
            let branch = 1.0 / ((2 * e.n_layers) as f64).sqrt();
            add(format!("{p}.attention_norm.weight"), &[e.dim], 0.2, 1.0);
            add(format!("{p}.attention.wq.weight"), &[q, e.dim], lin(e.dim, 1.6), 0.0);
            add(format!("{p}.attention.wq.bias"), &[q], 0.3, 0.0);
            add(format!("{p}.attention.wk.weight"), &[kv, e.dim], lin(e.dim, 1.6), 0.0);
            add(format!("{p}.attention.wv.weight"), &[kv, e.dim], lin(e.dim, 1.0), 0.0);
            add(format!("{p}.attention.wv.bias"), &[kv], 0.2, 0.0);
            add(format!("{p}.attention.wo.weight"), &[e.dim, q], lin(q, 2.0 * branch), 0.0);
            add(format!("{p}.attention.wo.bias"), &[e.dim], 0.1 * branch, 0.0);
            add(format!("{p}.ffn_norm.weight"), &[e.dim], 0.2, 1.0);
            add(format!("{p}.feed_forward.w1.weight"), &[e.hidden_dim, e.dim], lin(e.dim, 1.5), 0.0);
            add(format!("{p}.feed_forward.w2.weight"), &[e.dim, e.hidden_dim], lin(e.hidden_dim, 1.5 * branch), 0.0);
            add(format!("{p}.feed_forward.w2.bias"), &[e.dim], 0.1 * branch, 0.0);
            add(format!("{p}.feed_forward.w3.weight"), &[e.hidden_dim, e.dim], lin(e.dim, 1.0), 0.0);
        }
        add(format!("{ENCODER}.transformer.norm.weight"), &[e.dim], 0.2, 1.0);
        add(format!("{ADAPTER}.0.weight"), &[d.dim, 4 * e.dim], lin(4 * e.dim, 1.5), 0.0);
        add(format!("{ADAPTER}.2.weight"), &[d.dim, d.dim], lin(d.dim, 2.0 * favoured_std), 0.0);
        for i in 0..d.n_layers {
            let p = format!("layers.{i}");
            let (q, kv) = (d.n_heads * d.head_dim, d.n_kv_heads * d.head_dim);
            let branch = 1.0 / ((2 * d.n_layers) as f64).sqrt();
            add(format!("{p}.attention_norm.weight"), &[d.dim], 0.2, 1.0);
            add(format!("{p}.attention.wq.weight"), &[q, d.dim], lin(d.dim, 1.6), 0.0);
            add(format!("{p}.attention.wk.weight"), &[kv, d.dim], lin(d.dim, 1.6), 0.0);
            add(format!("{p}.attention.wv.weight"), &[kv, d.dim], lin(d.dim, 1.0), 0.0);
            add(format!("{p}.attention.wo.weight"), &[d.dim, q], lin(q, 1.5 * branch), 0.0);
            add(format!("{p}.ffn_norm.weight"), &[d.dim], 0.2, 1.0);
            add(format!("{p}.ada_rms_norm_t_cond.0.weight"), &[ADA_DIM, d.dim], lin(d.dim, 2.5), 0.0);
            add(format!("{p}.ada_rms_norm_t_cond.2.weight"), &[d.dim, ADA_DIM], lin(ADA_DIM, 0.4), 0.0);
            add(format!("{p}.feed_forward.w1.weight"), &[d.hidden_dim, d.dim], lin(d.dim, 1.5), 0.0);
            add(format!("{p}.feed_forward.w2.weight"), &[d.dim, d.hidden_dim], lin(d.hidden_dim, 2.0 * branch), 0.0);
            add(format!("{p}.feed_forward.w3.weight"), &[d.hidden_dim, d.dim], lin(d.dim, 1.0), 0.0);
        }
        let c = 5.0 / ((d.dim as f64).sqrt() * favoured_std);
        add("norm.weight".into(), &[d.dim], 0.2 * c, c);
        list
    }

    fn params(&self) -> Value {
        let (e, d) = (&self.encoder, &self.decoder);
        json!({
            "dim": d.dim, "n_layers": d.n_layers, "head_dim": d.head_dim, "hidden_dim": d.hidden_dim,
            "n_heads": d.n_heads, "n_kv_heads": d.n_kv_heads, "use_biases": false, "causal": true,
            "rope_theta": 1e6, "norm_eps": 1e-5, "vocab_size": self.vocab_size, "model_parallel": 1,
            "tied_embeddings": true, "sliding_window": d.window, "model_max_length": 131_072,
            "multimodal": { "whisper_model_args": {
                "encoder_args": {
                    "audio_encoding_args": {
                        "sampling_rate": 16000, "frame_rate": 12.5, "num_mel_bins": 128, "hop_length": 160,
                        "window_size": 400, "chunk_length_s": null, "global_log_mel_max": 1.5,
                        "transcription_format": "streaming",
                    },
                    "dim": e.dim, "n_layers": e.n_layers, "head_dim": e.head_dim, "hidden_dim": e.hidden_dim,
                    "n_heads": e.n_heads, "vocab_size": self.vocab_size, "n_kv_heads": e.n_kv_heads,
                    "use_biases": true, "use_cache": false, "rope_theta": 1e6, "causal": true, "norm_eps": 1e-5,
                    "pos_embed": "rope", "max_source_positions": null, "ffn_type": "swiglu",
                    "norm_type": "rms_norm", "sliding_window": e.window,
                },
                "downsample_args": { "downsample_factor": 4 },
            }},
            "ada_rms_norm_t_cond": true, "ada_rms_norm_t_cond_dim": ADA_DIM,
        })
    }

    fn tekken(&self, pieces: Option<&str>) -> Value {
        use base64::Engine as _;
        let base64 = base64::engine::general_purpose::STANDARD;
        let made_up = |i: usize| match u8::try_from(i) {
            Ok(byte) => base64.encode([byte]),
            Err(_) => base64.encode(format!(" w{i}")),
        };
        let pieces: Vec<String> = match pieces {
            Some(list) => list.lines().map(str::to_owned).collect(),
            None => (0..self.vocab_size).map(made_up).collect(),
        };
        let named = |id| match id {
            1 => "<s>".into(),
            2 => "</s>".into(),
            32 => "[STREAMING_PAD]".into(),
            33 => "[STREAMING_WORD]".into(),
            id => format!("<SPECIAL_{id}>"),
        };
        let special = |id| json!({"rank": id, "token_str": named(id), "is_control": true});
        let piece = |(rank, bytes): (usize, &String)| json!({"rank": rank, "token_bytes": bytes, "token_str": null});
        json!({
            "config": {
                "pattern": "", "num_vocab_tokens": pieces.len(), "default_vocab_size": self.vocab_size,
                "default_num_special_tokens": 1000, "version": "v7",
            },
            "vocab": pieces.iter().enumerate().map(piece).collect::<Vec<_>>(),
            "special_tokens": (0..1000).map(special).collect::<Vec<_>>(),
            "audio": {
                "sampling_rate": 16000, "frame_rate": 12.5,
                "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
                "transcription_delay_ms": 480.0, "streaming_look_ahead_ms": 2.5, "streaming_look_back_ms": 52.5,
                "streaming_n_left_pad_tokens": 32, "transcription_format": "streaming",
            },
        })
    }
}

struct Tensor {
    name: String,
    shape: Vec<usize>,
    std: f64,
    mean: f64,
}

impl Tensor {
    fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Values from index `first` on, uniform around the mean, as little-endian BF16.
    fn fill(&self, preset: &Preset, first: usize, bytes: &mut [u8]) {
        let fnv = self.name.bytes().fold(0x811C_9DC5u32, |h, b| (h ^ u32::from(b)).wrapping_mul(0x0100_0193));
        let seed = fnv ^ preset.seed.wrapping_mul(0x9E37_79B9);
        let amplitude = (3f64.sqrt() * self.std) as f32;
        let mean = self.mean as f32;
        let favoured = self.name == TOK_EMBEDDINGS;
        for (i, out) in bytes.chunks_exact_mut(2).enumerate() {
            let index = first + i;
            let mut x = (index as u32).wrapping_mul(0x9E37_79B9).wrapping_add(seed);
            x = (x ^ (x >> 16)).wrapping_mul(0x7FEB_352D);
            x = (x ^ (x >> 15)).wrapping_mul(0x846C_A68B);
            x ^= x >> 16;
            let uniform = (x >> 8) as f32 * 2f32.powi(-23) - 1.0;
            let large = favoured && preset.favoured.contains(&(index / self.shape[1]));
            let amplitude = if large { FAVOUR as f32 * amplitude } else { amplitude };
            let mut value = uniform * amplitude;
            if mean != 0.0 {
                value += mean;
            }
            let bits = value.to_bits();
            let rounded = bits + (0x7FFF + ((bits >> 16) & 1));
            out.copy_from_slice(&((rounded >> 16) as u16).to_le_bytes());
        }
    }
}
