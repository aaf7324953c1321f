//! `voxtral info`: what a model directory holds and what it will need.

use std::fs;
use std::io::{self, Write as _};

use anyhow::Context as _;
use serde::Serialize;
use voxtral::Model;
use voxtral::model::params::TransformerParams;

use super::bytes;
use crate::cli::options::InfoOptions;

/// Encoder and decoder positions in a second of audio.
const ENCODER_RATE: f64 = 50.0;
const DECODER_RATE: f64 = 12.5;

#[derive(Serialize)]
struct Info {
    model: String,
    n_parameters: u64,
    format: &'static str,
    files: Vec<FileInfo>,
    n_mels: usize,
    encoder: Stack,
    decoder: Stack,
    vocab_size: usize,
    default_delay_ms: u64,
    memory: Memory,
}

#[derive(Serialize)]
struct FileInfo {
    name: &'static str,
    bytes: u64,
}

#[derive(Serialize)]
struct Stack {
    n_layers: usize,
    dim: usize,
    n_heads: usize,
    n_kv_heads: usize,
    head_dim: usize,
    hidden_dim: usize,
    sliding_window: usize,
    window_seconds: f64,
}

/// Worked out from the dimensions, in bytes.
#[derive(Serialize)]
struct Memory {
    /// On the CPU they are mapped from the file.
    weights: u64,
    /// Keys and values of one stream once its windows are full.
    stream_cpu: u64,
    stream_gpu: u64,
}

pub fn run(options: &InfoOptions) -> anyhow::Result<()> {
    let model = Model::open(&options.model).context("cannot load the model")?;
    let params = &model.params;
    let files: Vec<_> = Model::FILES
        .into_iter()
        .map(|name| Ok(FileInfo { name, bytes: fs::metadata(options.model.join(name))?.len() }))
        .collect::<io::Result<_>>()?;
    let weights = model.weights.n_bytes();
    let elements = kv_elements(&params.encoder) + kv_elements(&params.decoder);
    let info = Info {
        model: options.model.display().to_string(),
        n_parameters: weights / 2,
        format: "BF16",
        files,
        n_mels: params.n_mels,
        encoder: stack(&params.encoder, ENCODER_RATE),
        decoder: stack(&params.decoder, DECODER_RATE),
        vocab_size: params.vocab_size,
        default_delay_ms: model.tokenizer.delay.ms(),
        memory: Memory { weights, stream_cpu: elements * 4, stream_gpu: elements * 2 },
    };
    let text = if options.json { serde_json::to_string_pretty(&info)? + "\n" } else { text(&info) };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

fn stack(p: &TransformerParams, rate: f64) -> Stack {
    let &TransformerParams { dim, n_layers, head_dim, hidden_dim, n_heads, n_kv_heads, sliding_window, .. } = p;
    let window_seconds = sliding_window as f64 / rate;
    Stack { n_layers, dim, n_heads, n_kv_heads, head_dim, hidden_dim, sliding_window, window_seconds }
}

fn kv_elements(p: &TransformerParams) -> u64 {
    (p.n_layers * 2 * p.sliding_window * p.kv_dim()) as u64
}

fn text(info: &Info) -> String {
    let stack = |name: &str, s: &Stack| {
        format!(
            "{name:<11} {} layers of {}, {} heads of {} ({} for keys and values), feed-forward {}, window {} ({:.1} s)\n",
            s.n_layers, s.dim, s.n_heads, s.head_dim, s.n_kv_heads, s.hidden_dim, s.sliding_window, s.window_seconds
        )
    };
    let millions = info.n_parameters as f64 / 1e6;
    let mut text = format!("{}: {millions:.1} million parameters in {}\n", info.model, info.format);
    text += &stack("encoder", &info.encoder);
    text += &stack("decoder", &info.decoder);
    text += &format!("mel bands   {}\n", info.n_mels);
    text += &format!("vocabulary  {}\n", info.vocab_size);
    text += &format!("delay       {} ms unless --delay says otherwise\n", info.default_delay_ms);
    for file in &info.files {
        text += &format!("file        {}, {}\n", file.name, bytes(file.bytes));
    }
    let memory = &info.memory;
    text += &format!("memory      {} for the weights, which the CPU maps from the file\n", bytes(memory.weights));
    text += &format!(
        "            at most {} (CPU) or {} (GPU) for keys and values of a stream, and working space\n",
        bytes(memory.stream_cpu),
        bytes(memory.stream_gpu)
    );
    text
}
