"""The tiny Voxtral in PyTorch: the architecture of Voxtral-Mini-4B-Realtime-2602 at toy size.

The module tree is named like the tensors of the file, so a state dict is a checkpoint. Used for training (teacher
forcing, `Tiny.forward`) and as the plain reference decode (`transcribe`); `save` and `load` write and read model
folders, `wer` and `edit_distance` score texts. Run as a program it checks that the two forms of windowed attention
agree and that the cached decode equals teacher forcing.
"""

import json
import math
import re
import shutil
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "enc_dim": 256,
    "enc_layers": 6,
    "enc_heads": 4,
    "enc_hidden": 576,
    "enc_window": 256,
    "dim": 256,
    "layers": 3,
    "heads": 4,
    "kv_heads": 2,
    "head_dim": 128,
    "hidden": 512,
    "window": 256,
    "ada": 32,
    "vocab": 2816,
    "theta": 1e6,
    "eps": 1e-5,
}
ENC_HEAD_DIM = 64
BOS, EOS, PAD, WORD = 1, 2, 32, 33
LEFT = 32  # frames of zeros before the audio
RIGHT = 11  # frames of zeros behind it, besides the delay
SAMPLES_PER_FRAME = 1280
N_MELS = 128
MEL_MAX = 1.5  # log10 of the loudest mel power; what is 8 below it or less looks like silence


def params_json(c):
    """The content of params.json for a configuration."""
    return {
        "dim": c["dim"],
        "n_layers": c["layers"],
        "head_dim": c["head_dim"],
        "hidden_dim": c["hidden"],
        "n_heads": c["heads"],
        "n_kv_heads": c["kv_heads"],
        "use_biases": False,
        "causal": True,
        "rope_theta": c["theta"],
        "norm_eps": c["eps"],
        "vocab_size": c["vocab"],
        "tied_embeddings": True,
        "sliding_window": c["window"],
        "model_max_length": 131072,
        "model_parallel": 1,
        "multimodal": {
            "whisper_model_args": {
                "encoder_args": {
                    "audio_encoding_args": {
                        "sampling_rate": 16000,
                        "frame_rate": 12.5,
                        "num_mel_bins": N_MELS,
                        "hop_length": 160,
                        "window_size": 400,
                        "chunk_length_s": None,
                        "global_log_mel_max": MEL_MAX,
                        "transcription_format": "streaming",
                    },
                    "dim": c["enc_dim"],
                    "n_layers": c["enc_layers"],
                    "head_dim": ENC_HEAD_DIM,
                    "hidden_dim": c["enc_hidden"],
                    "n_heads": c["enc_heads"],
                    "vocab_size": c["vocab"],
                    "n_kv_heads": c["enc_heads"],
                    "use_biases": True,
                    "use_cache": False,
                    "rope_theta": c["theta"],
                    "causal": True,
                    "norm_eps": c["eps"],
                    "pos_embed": "rope",
                    "max_source_positions": None,
                    "ffn_type": "swiglu",
                    "norm_type": "rms_norm",
                    "sliding_window": c["enc_window"],
                },
                "downsample_args": {"downsample_factor": 4},
            }
        },
        "ada_rms_norm_t_cond": True,
        "ada_rms_norm_t_cond_dim": c["ada"],
    }


def config_from_params(params):
    encoder = params["multimodal"]["whisper_model_args"]["encoder_args"]
    return {
        "enc_dim": encoder["dim"],
        "enc_layers": encoder["n_layers"],
        "enc_heads": encoder["n_heads"],
        "enc_hidden": encoder["hidden_dim"],
        "enc_window": encoder["sliding_window"],
        "dim": params["dim"],
        "layers": params["n_layers"],
        "heads": params["n_heads"],
        "kv_heads": params["n_kv_heads"],
        "head_dim": params["head_dim"],
        "hidden": params["hidden_dim"],
        "window": params["sliding_window"],
        "ada": params["ada_rms_norm_t_cond_dim"],
        "vocab": params["vocab_size"],
        "theta": params["rope_theta"],
        "eps": params["norm_eps"],
    }


# ---- features ----


def mel_filters(scale=1.0):
    """Slaney's filter bank [201, 128]; `scale` warps the filters' frequencies (augmentation only)."""

    def to_mel(hertz):
        return np.where(hertz >= 1000, 15 + np.log(np.maximum(hertz, 1e-9) / 1000) * 27 / np.log(6.4), 3 * hertz / 200)

    def to_hertz(mel):
        return np.where(mel >= 15, 1000 * np.exp(np.log(6.4) / 27 * (mel - 15)), 200 * mel / 3)

    bins = np.linspace(0, 8000, 201)
    edges = to_hertz(np.linspace(0, to_mel(np.array(8000.0)), N_MELS + 2)) * scale
    width = np.diff(edges)
    slope = edges[None] - bins[:, None]
    filters = np.maximum(0, np.minimum(-slope[:, :-2] / width[:-1], slope[:, 2:] / width[1:]))
    return torch.tensor(filters * (2 / (edges[2:] - edges[:-2]))[None], dtype=torch.float32)


def stft(x):
    """[..., samples] -> complex [..., 201, frames of 10 ms]"""
    window = torch.hann_window(400, device=x.device)
    return torch.stft(x, 400, 160, window=window, return_complex=True)[..., :-1]


def log_mel(power, filters):
    """power [..., 201, T], filters [..., 128, 201] -> [..., 128, T]"""
    mel = (filters @ power).clamp_min(1e-10).log10()
    return (mel.clamp_min(MEL_MAX - 8.0) + 4) / 4


# ---- layers ----


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x):
        x = x.float()
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.weight


def rope_table(n, head_dim, theta, device):
    """cos and sin, each [n, head_dim / 2]"""
    frequency = 1.0 / theta ** (torch.arange(0, head_dim, 2, device=device).float() / head_dim)
    angle = torch.arange(0, n, device=device).float()[:, None] * frequency
    return angle.cos(), angle.sin()


def rope(x, table):
    """x [B, S, H, head_dim], rotated in interleaved pairs"""
    cos, sin = table[0][:, None], table[1][:, None]
    x1, x2 = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([x1 * cos - x2 * sin, x1 * sin + x2 * cos], -1).flatten(-2)


# "block": exact, with what PyTorch has everywhere; "flash": the fused kernel with a window, on GPUs that have it.
attention_form = "block"


def attend(q, k, v, window):
    """Causal attention over the last `window` keys; q [B, S, H, head_dim], k and v [B, S, Hkv, head_dim]."""
    n_batch, n, n_heads, head_dim = q.shape
    if k.shape[2] != n_heads:
        k = k.repeat_interleave(n_heads // k.shape[2], 2)
        v = v.repeat_interleave(n_heads // v.shape[2], 2)
    if attention_form == "flash":
        q, k, v = (t.to(torch.bfloat16) for t in (q, k, v))
        return torch.ops.aten._flash_attention_forward(
            q, k, v, None, None, n, n, 0.0, True, False, window_size_left=window - 1, window_size_right=0
        )[0]
    q, k, v = (t.to(v.dtype).transpose(1, 2) for t in (q, k, v))
    if n <= window:
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2)
    if n % window or n <= 512:
        i = torch.arange(n, device=q.device)
        mask = (i[None] <= i[:, None]) & (i[None] > i[:, None] - window)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2)

    # Blocks of `window` queries against the keys of their own block and the one before.
    n_blocks = n // window

    def blocks(t):
        return t.reshape(n_batch, n_heads, n_blocks, window, head_dim)

    def with_previous(t):
        return torch.cat([F.pad(t, (0, 0, 0, 0, 1, 0))[:, :, :-1], t], 3)

    i = torch.arange(window, device=q.device)[:, None]
    j = torch.arange(2 * window, device=q.device)[None]
    mask = ((j > i) & (j <= i + window))[None].repeat(n_blocks, 1, 1)
    mask[0] &= j >= window
    q, k, v = (
        t.transpose(1, 2).reshape(n_batch * n_blocks, n_heads, -1, head_dim)
        for t in (blocks(q), with_previous(blocks(k)), with_previous(blocks(v)))
    )
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None].repeat(n_batch, 1, 1, 1))
    out = out.reshape(n_batch, n_blocks, n_heads, window, head_dim).permute(0, 1, 3, 2, 4)
    return out.reshape(n_batch, n, n_heads, head_dim)


class Attention(nn.Module):
    def __init__(self, dim, n_heads, n_kv_heads, head_dim, bias):
        super().__init__()
        self.n_heads, self.n_kv_heads, self.head_dim = n_heads, n_kv_heads, head_dim
        self.wq = nn.Linear(dim, n_heads * head_dim, bias=bias)
        self.wk = nn.Linear(dim, n_kv_heads * head_dim, bias=False)
        self.wv = nn.Linear(dim, n_kv_heads * head_dim, bias=bias)
        self.wo = nn.Linear(n_heads * head_dim, dim, bias=bias)

    def qkv(self, x, table):
        n_batch, n, _ = x.shape
        q = self.wq(x).view(n_batch, n, self.n_heads, self.head_dim)
        k = self.wk(x).view(n_batch, n, self.n_kv_heads, self.head_dim)
        v = self.wv(x).view(n_batch, n, self.n_kv_heads, self.head_dim)
        return rope(q, table), rope(k, table), v

    def forward(self, x, table, window):
        return self.wo(attend(*self.qkv(x, table), window).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, dim, hidden, bias):
        super().__init__()
        self.w1 = nn.Linear(dim, hidden, bias=False)
        self.w2 = nn.Linear(hidden, dim, bias=bias)
        self.w3 = nn.Linear(dim, hidden, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class EncoderLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        dim = c["enc_dim"]
        self.attention = Attention(dim, c["enc_heads"], c["enc_heads"], ENC_HEAD_DIM, True)
        self.attention_norm = RMSNorm(dim, c["eps"])
        self.feed_forward = FeedForward(dim, c["enc_hidden"], True)
        self.ffn_norm = RMSNorm(dim, c["eps"])

    def forward(self, x, table, window):
        x = x + self.attention(self.attention_norm(x), table, window)
        return x + self.feed_forward(self.ffn_norm(x))


class ConvLayer(nn.Module):
    def __init__(self, n_in, n_out, stride):
        super().__init__()
        self.conv = nn.Conv1d(n_in, n_out, 3, stride)


class EncoderTransformer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(c) for _ in range(c["enc_layers"]))
        self.norm = RMSNorm(c["enc_dim"], c["eps"])


class Encoder(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        dim = c["enc_dim"]
        self.conv_layers = nn.ModuleList([ConvLayer(N_MELS, dim, 1), ConvLayer(dim, dim, 2)])
        self.transformer = EncoderTransformer(c)

    def forward(self, mel):
        """mel [B, 128, T] -> [B, T / 2, enc_dim]; both convolutions are causal"""
        h = F.gelu(self.conv_layers[0].conv(F.pad(mel, (2, 0))))
        h = F.gelu(self.conv_layers[1].conv(F.pad(h, (1, 0)))).transpose(1, 2)
        table = rope_table(h.shape[1], ENC_HEAD_DIM, self.c["theta"], h.device)
        for layer in self.transformer.layers:
            h = layer(h, table, self.c["enc_window"])
        return self.transformer.norm(h)


class DecoderLayer(nn.Module):
    def __init__(self, c):
        super().__init__()
        dim = c["dim"]
        self.attention_norm = RMSNorm(dim, c["eps"])
        self.attention = Attention(dim, c["heads"], c["kv_heads"], c["head_dim"], False)
        self.ffn_norm = RMSNorm(dim, c["eps"])
        self.feed_forward = FeedForward(dim, c["hidden"], False)
        self.ada_rms_norm_t_cond = nn.Sequential(
            nn.Linear(dim, c["ada"], bias=False), nn.GELU(), nn.Linear(c["ada"], dim, bias=False)
        )

    def forward(self, x, table, window, delay_embedding):
        x = x + self.attention(self.attention_norm(x), table, window)
        return x + self.feed_forward(self.ffn_norm(x) * (1 + self.ada_rms_norm_t_cond(delay_embedding)[:, None]))


class EmbeddingModule(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.whisper_encoder = Encoder(c)
        self.tok_embeddings = nn.Embedding(c["vocab"], c["dim"])
        self.audio_language_projection = nn.Sequential(
            nn.Linear(4 * c["enc_dim"], c["dim"], bias=False), nn.GELU(), nn.Linear(c["dim"], c["dim"], bias=False)
        )


class StreamsEmbeddings(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embedding_module = EmbeddingModule(c)


class Tiny(nn.Module):
    def __init__(self, c=CONFIG):
        super().__init__()
        self.c = c
        self.mm_streams_embeddings = StreamsEmbeddings(c)
        self.layers = nn.ModuleList(DecoderLayer(c) for _ in range(c["layers"]))
        self.norm = RMSNorm(c["dim"], c["eps"])
        for name, p in self.named_parameters():
            if p.dim() >= 2:
                nn.init.normal_(p, std=self._initial_std(name, p))
            elif name.endswith("bias"):
                nn.init.zeros_(p)

    def _initial_std(self, name, p):
        std = 1 / math.sqrt(p[0].numel())
        if "tok_emb" in name:
            return 0.05
        if name.endswith(("wo.weight", "w2.weight")):
            n_layers = self.c["enc_layers"] if "whisper" in name else self.c["layers"]
            return std * (1 / math.sqrt(2 * n_layers))
        if name.endswith("t_cond.2.weight"):
            return 1e-3
        return std * 0.5 if name.endswith("projection.2.weight") else std

    @property
    def embeddings(self):
        return self.mm_streams_embeddings.embedding_module.tok_embeddings.weight

    def embed_delay(self, delay):
        """delay [B] in tokens -> [B, dim]"""
        half = self.c["dim"] // 2
        frequency = torch.exp(-math.log(10000.0) * torch.arange(half, device=delay.device).float() / half)
        angle = delay.float()[:, None] * frequency
        return torch.cat([angle.cos(), angle.sin()], -1)

    def embed_audio(self, mel):
        """mel [B, 128, 8n] -> adapter output [B, n, dim]"""
        module = self.mm_streams_embeddings.embedding_module
        h = module.whisper_encoder(mel)
        return module.audio_language_projection(h.reshape(h.shape[0], -1, 4 * self.c["enc_dim"]))

    def decode(self, audio, previous, delay):
        """Teacher forcing: audio [B, n, dim], previous tokens [B, n], delay [B] -> hidden [B, n, dim]."""
        h = audio + F.embedding(previous, self.embeddings)
        delay_embedding = self.embed_delay(delay)
        table = rope_table(h.shape[1], self.c["head_dim"], self.c["theta"], h.device)
        for layer in self.layers:
            h = layer(h, table, self.c["window"], delay_embedding)
        return self.norm(h)

    def forward(self, mel, previous, delay):
        return F.linear(self.decode(self.embed_audio(mel), previous, delay), self.embeddings)

    @torch.no_grad()
    def greedy(self, audio, delay):
        """The streaming decode: audio [B, n, dim], one delay -> tokens [B, n - prompt + 1], where the prompt is BOS and
        LEFT + delay pads; one token a frame, each fed back with the next frame."""
        c = self.c
        n_batch, n, _ = audio.shape
        device = audio.device
        delay_embedding = self.embed_delay(torch.full((n_batch,), delay, device=device))
        scales = [1 + layer.ada_rms_norm_t_cond(delay_embedding)[:, None] for layer in self.layers]
        cos, sin = rope_table(n, c["head_dim"], c["theta"], device)
        keys = [torch.zeros(n_batch, c["kv_heads"], n, c["head_dim"], device=device) for _ in self.layers]
        values = [torch.zeros_like(k) for k in keys]
        repeat = c["heads"] // c["kv_heads"]

        tokens = torch.full((n_batch, 1 + LEFT + delay), PAD, device=device)
        tokens[:, 0] = BOS
        start, out = 0, []
        while True:
            end = start + tokens.shape[1]
            h = audio[:, start:end] + F.embedding(tokens, self.embeddings)
            first = max(0, start - c["window"] + 1)
            i = torch.arange(start, end, device=device)[:, None]
            j = torch.arange(first, end, device=device)[None]
            mask = (j <= i) & (j > i - c["window"])
            for x, layer in enumerate(self.layers):
                q, k, v = layer.attention.qkv(layer.attention_norm(h), (cos[start:end], sin[start:end]))
                keys[x][:, :, start:end] = k.transpose(1, 2)
                values[x][:, :, start:end] = v.transpose(1, 2)
                k = keys[x][:, :, first:end].repeat_interleave(repeat, 1)
                v = values[x][:, :, first:end].repeat_interleave(repeat, 1)
                weights = (q.transpose(1, 2).float() @ k.transpose(2, 3)) / math.sqrt(c["head_dim"])
                mixed = weights.masked_fill(~mask, -1e30).softmax(-1) @ v
                h = h + layer.attention.wo(mixed.transpose(1, 2).flatten(2).to(h.dtype))
                h = h + layer.feed_forward(layer.ffn_norm(h) * scales[x])
            tokens = F.linear(self.norm(h[:, -1:]), self.embeddings).float().argmax(-1)
            out.append(tokens)
            start = end
            if start >= n:
                return torch.cat(out, 1)


def transcribe(model, audio, delay, decode):
    """audio float [B, samples], padded as in the real pipeline -> (texts, tokens [B, n]); decode: ids to text."""
    right = -audio.shape[1] % SAMPLES_PER_FRAME + (delay + RIGHT) * SAMPLES_PER_FRAME
    padded = F.pad(audio, (LEFT * SAMPLES_PER_FRAME, right))
    mel = log_mel(stft(padded).abs() ** 2, mel_filters().T.to(audio.device))
    tokens = model.greedy(model.embed_audio(mel[..., : mel.shape[-1] // 8 * 8]), delay)
    spoken = [row[: row.index(EOS)] if EOS in row else row for row in tokens.tolist()]
    return [decode([i for i in row if i >= 1000]).strip() for row in spoken], tokens


# ---- folders and scores ----


def save(model, folder, tekken):
    """Write a model folder in BF16; `tekken` is the tokenizer file to copy."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().to(torch.bfloat16).contiguous().cpu() for k, v in model.state_dict().items()}
    save_file(tensors, folder / "consolidated.safetensors", metadata={"format": "pt"})
    (folder / "params.json").write_text(json.dumps(params_json(model.c), indent=2))
    shutil.copy(tekken, folder / "tekken.json")


def load(folder, device="cpu"):
    from safetensors.torch import load_file

    folder = Path(folder)
    model = Tiny(config_from_params(json.loads((folder / "params.json").read_text())))
    tensors = load_file(folder / "consolidated.safetensors")
    model.load_state_dict({k: v.float() for k, v in tensors.items()})
    return model.to(device).eval()


def words_of(text):
    """The words to compare: lower case, without punctuation."""
    return re.sub(r"[^a-z0-9' ]", " ", text.lower().replace("-", " ")).split()


def edit_distance(a, b):
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        diagonal, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (x != y))
    return row[-1]


def wer(texts, references):
    """Word error rate of all texts together."""
    errors = n = 0
    for text, reference in zip(texts, references):
        errors += edit_distance(words_of(text), words_of(reference))
        n += len(words_of(reference))
    return errors / max(n, 1)


def check():
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, 1024, 4, 64) for _ in range(3))
    i = torch.arange(1024)
    mask = (i[None] <= i[:, None]) & (i[None] > i[:, None] - 256)
    dense = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)), attn_mask=mask).transpose(1, 2)
    difference = (attend(q, k, v, 256) - dense).abs().max().item()
    print(f"attention in blocks and dense: largest difference {difference:.1e}")
    assert difference < 1e-5

    model = Tiny({**CONFIG, "window": 40}).eval()
    audio = torch.randn(2, 120, 256) * 0.3
    prompt = 1 + LEFT + 6
    tokens = model.greedy(audio, 6)
    previous = torch.full((2, 120), PAD)
    previous[:, 0] = BOS
    previous[:, prompt:] = tokens[:, :-1]
    with torch.no_grad():
        hidden = model.decode(audio, previous, torch.tensor([6, 6]))
    forced = F.linear(hidden, model.embeddings).argmax(-1)[:, prompt - 1 :]
    same = (tokens == forced).float().mean().item()
    print(f"cached decode and teacher forcing: {same:.1%} of the tokens equal")
    assert same == 1


if __name__ == "__main__":
    check()
