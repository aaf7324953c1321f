"""Writes the tiny model as a checkpoint of the real model's dimensions (8.86 GB) that computes the same thing.

    python inflate.py ../../samples/tiny-model OUT
    python inflate.py ../../samples/tiny-model OUT --windows real    # attention windows 750 and 8192

So full-size speed can be measured on a real token stream. Needs numpy; the file is the same on any machine. No weight
is rounded: each is a BF16 number of the tiny model times a power of two, or filling that has no effect:

* Residual streams are copied, not padded: full coordinate c + k*j is copy c of tiny coordinate j (k = 12 in the
  decoder, 5 in the encoder). The mean square stays what it was, and so does every RMSNorm. What writes the stream has
  its rows repeated.
* What reads the stream has each weight shared out over the copies (8 eighths, or a half and two quarters); the copies
  left over are read in pairs, +R and -R, that cancel.
* Inner axes (hidden units, heads) begin with the tiny model's; the rest are neighbours with equal input rows whose
  output columns are +R and -R. Layers that the tiny model lacks consist of such pairs alone. Layer i of n is layer
  floor((i + 1/2) N / n) of N.
* The tied embedding has its rows repeated, and the final norm's weight is shared out instead. A token id v beyond the
  tiny vocabulary has the logit of id 100 + v mod 900, special tokens that are never spoken.
"""

import argparse
import base64
import json
import math
import os
import re
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np

EMBEDDING = "mm_streams_embeddings.embedding_module"
ENC = f"{EMBEDDING}.whisper_encoder"
ADAPTER = f"{EMBEDDING}.audio_language_projection"
TOK = f"{EMBEDDING}.tok_embeddings.weight"
FULL = {
    "dec": {"dim": 3072, "n_layers": 26, "head_dim": 128, "hidden_dim": 9216, "n_heads": 32, "n_kv_heads": 8},
    "enc": {"dim": 1280, "n_layers": 32, "head_dim": 64, "hidden_dim": 5120, "n_heads": 32, "n_kv_heads": 32},
    "vocab": 131072,
}
REAL_WINDOWS = {"dec": 8192, "enc": 750}
ADA_DIM = 32
ROWS = 256  # rows made at once: whole pairs of heads
CHUNK = 1 << 18  # values made at once: stays in cache
SEED = 2602
EMBEDDING_STD = 0.05
SIGN = np.uint16(0x8000)


def widen(bits):
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def scaled(bits, factor):
    """BF16 bits times a power of two: exact."""
    y = (widen(bits) * np.float32(factor)).view(np.uint32)
    assert not (y & np.uint32(0xFFFF)).any()
    return (y >> np.uint32(16)).astype(np.uint16)


def name_seed(name):
    """FNV-1a of the name, mixed with SEED."""
    h = 0x811C9DC5
    for b in name.encode():
        h = ((h ^ b) * 0x01000193) & 0xFFFFFFFF
    return h ^ ((SEED * 0x9E3779B9) & 0xFFFFFFFF)


def fill(name, start, n, std, mean=0.0):
    """Values `start` to `start + n` of the uniform stream called `name`, as BF16 bits, from a counter hash."""
    out = np.empty(n, np.uint16)
    seed, amplitude = np.uint32(name_seed(name)), np.float32(math.sqrt(3.0) * std)
    for i in range(0, n, CHUNK):
        x = np.arange(start + i, start + min(i + CHUNK, n), dtype=np.uint32)
        x = x * np.uint32(0x9E3779B9) + seed
        x = (x ^ (x >> np.uint32(16))) * np.uint32(0x7FEB352D)
        x = (x ^ (x >> np.uint32(15))) * np.uint32(0x846CA68B)
        x ^= x >> np.uint32(16)
        f = (x >> np.uint32(8)).astype(np.float32) * np.float32(2.0**-23) - np.float32(1.0)
        b = (f * amplitude + np.float32(mean)).view(np.uint32)
        b = b + ((b >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)  # to nearest, ties to even
        out[i : i + len(x)] = b >> np.uint32(16)
    return out


def shares(k):
    """(the parts of a weight that the first copies carry, number of cancelling pairs after them)."""
    pairs, parts = k // 5, [1.0]
    while len(parts) < k - 2 * pairs:
        parts.sort()
        parts[-1:] = [parts[-1] / 2] * 2
    return sorted(parts, reverse=True), pairs


class Inner:
    """An axis between two products: full index -> tiny index or -1. Unused ones pair up at distance `stride`."""

    def __init__(self, n_full, used, stride):
        self.map = np.full(n_full, -1)
        self.map[used] = np.arange(len(used))
        self.stride = stride
        if stride:
            free = (self.map < 0).reshape(-1, 2, stride)
            assert (free[:, 0] == free[:, 1]).all(), "unused units must come in neighbouring pairs"


def head_axis(full, tiny, key, head_dim, paired=True):
    """Heads keep their place within their group of query heads to a key/value head."""
    groups = [d["n_heads"] // d["n_kv_heads"] if key == "n_heads" else 1 for d in (full, tiny)]
    heads = [h // groups[1] * groups[0] + h % groups[1] for h in range(tiny[key])]
    used = np.concatenate([np.arange(h * head_dim, (h + 1) * head_dim) for h in heads])
    return Inner(full[key] * head_dim, used, head_dim if paired else None)


class Inflater:
    def __init__(self, directory):
        with open(os.path.join(directory, "params.json")) as f:
            self.params = json.load(f)
        with open(os.path.join(directory, "consolidated.safetensors"), "rb") as f:
            header = json.loads(f.read(struct.unpack("<Q", f.read(8))[0]))
            data = f.read()
        header.pop("__metadata__", None)
        self.tiny = {}
        for name, tensor in header.items():
            assert tensor["dtype"] == "BF16", name
            lo, hi = tensor["data_offsets"]
            self.tiny[name] = np.frombuffer(data, np.uint16, (hi - lo) // 2, lo).reshape(tensor["shape"])

        p, e = self.params, self.params["multimodal"]["whisper_model_args"]["encoder_args"]
        d_full, e_full = FULL["dec"], FULL["enc"]
        assert d_full["dim"] % p["dim"] == 0 and e_full["dim"] % e["dim"] == 0
        assert (p["head_dim"], e["head_dim"]) == (d_full["head_dim"], e_full["head_dim"])
        assert p["ada_rms_norm_t_cond_dim"] == ADA_DIM and e["n_kv_heads"] == e["n_heads"]
        self.k = (d_full["dim"] // p["dim"], e_full["dim"] // e["dim"])
        place = lambda full, tiny: {
            int((i + 0.5) * full["n_layers"] / tiny["n_layers"]): i for i in range(tiny["n_layers"])
        }
        self.places = (place(d_full, p), place(e_full, e))
        hidden = [Inner(f["hidden_dim"], np.arange(t["hidden_dim"]), 1) for f, t in ((d_full, p), (e_full, e))]
        all_heads = head_axis(e_full, e, "n_heads", e["head_dim"])
        q = [head_axis(d_full, p, "n_heads", p["head_dim"]), all_heads]
        kv = [head_axis(d_full, p, "n_kv_heads", p["head_dim"], paired=False), all_heads]
        self.axes = {"wq": q, "wo": q, "wk": kv, "wv": kv, "w1": hidden, "w2": hidden, "w3": hidden}
        self.adapter = Inner(d_full["dim"], np.arange(p["dim"]), 1)

    def full_params(self, windows):
        """params.json with the full dimensions."""
        p = json.loads(json.dumps(self.params))
        e = p["multimodal"]["whisper_model_args"]["encoder_args"]
        p.update(FULL["dec"], vocab_size=FULL["vocab"])
        e.update(FULL["enc"], vocab_size=FULL["vocab"])
        if windows == "real":
            p["sliding_window"], e["sliding_window"] = REAL_WINDOWS["dec"], REAL_WINDOWS["enc"]
        return p

    def tensors(self):
        """[(name, shape, standard deviation and mean of the filling)] in the file's order."""
        d, e = FULL["dec"], FULL["enc"]
        out = [(TOK, (FULL["vocab"], d["dim"]), EMBEDDING_STD, 0.0)]
        out += [
            (f"{ENC}.conv_layers.0.conv.weight", (e["dim"], 128, 3), 0.0, 0.0),
            (f"{ENC}.conv_layers.0.conv.bias", (e["dim"],), 0.0, 0.0),
            (f"{ENC}.conv_layers.1.conv.weight", (e["dim"], e["dim"], 3), 2 / math.sqrt(3 * e["dim"]), 0.0),
            (f"{ENC}.conv_layers.1.conv.bias", (e["dim"],), 0.0, 0.0),
        ]
        for prefix, p in ((f"{ENC}.transformer.", e), ("", d)):
            dim, hidden, q, kv = (
                p["dim"],
                p["hidden_dim"],
                p["n_heads"] * p["head_dim"],
                p["n_kv_heads"] * p["head_dim"],
            )
            residual = 1 / math.sqrt(2 * p["n_layers"])
            for i in range(p["n_layers"]):
                layer = f"{prefix}layers.{i}"
                encoder = bool(prefix)
                rows = [
                    ("attention_norm.weight", (dim,), 0.2, 1.0),
                    ("attention.wq.weight", (q, dim), 1.6 / math.sqrt(dim), 0.0),
                    ("attention.wq.bias", (q,), 0.3, 0.0),
                    ("attention.wk.weight", (kv, dim), 1.6 / math.sqrt(dim), 0.0),
                    ("attention.wv.weight", (kv, dim), 1 / math.sqrt(dim), 0.0),
                    ("attention.wv.bias", (kv,), 0.2, 0.0),
                    ("attention.wo.weight", (dim, q), (2.0 if encoder else 1.5) * residual / math.sqrt(q), 0.0),
                    ("attention.wo.bias", (dim,), 0.0, 0.0),
                    ("ffn_norm.weight", (dim,), 0.2, 1.0),
                    ("ada_rms_norm_t_cond.0.weight", (ADA_DIM, dim), 2.5 / math.sqrt(dim), 0.0),
                    ("ada_rms_norm_t_cond.2.weight", (dim, ADA_DIM), 0.4 / math.sqrt(ADA_DIM), 0.0),
                    ("feed_forward.w1.weight", (hidden, dim), 1.5 / math.sqrt(dim), 0.0),
                    (
                        "feed_forward.w2.weight",
                        (dim, hidden),
                        (1.5 if encoder else 2.0) * residual / math.sqrt(hidden),
                        0.0,
                    ),
                    ("feed_forward.w2.bias", (dim,), 0.0, 0.0),
                    ("feed_forward.w3.weight", (hidden, dim), 1 / math.sqrt(dim), 0.0),
                ]
                here = lambda part: ("ada" not in part) if encoder else ("bias" not in part)  # noqa: B023
                out += [(f"{layer}.{part}", *rest) for part, *rest in rows if here(part)]
            if prefix:
                out += [
                    (f"{ENC}.transformer.norm.weight", (dim,), 0.0, 0.0),
                    (f"{ADAPTER}.0.weight", (d["dim"], 4 * dim), 1.5 / math.sqrt(4 * dim), 0.0),
                    (f"{ADAPTER}.2.weight", (d["dim"], d["dim"]), 0.024 / math.sqrt(d["dim"]), 0.0),
                ]
        return out + [("norm.weight", (d["dim"],), 0.0, 0.0)]

    # Each of the following returns rows [lo, hi) of a full tensor, uint16 [hi - lo, columns].

    def reads_stream(self, name, t, row0, k, std, taps=1):
        """Rows [r, n * taps] over n tiny inputs -> [r, n * k * taps] over their k copies."""
        parts, pairs = shares(k)
        t = t.reshape(len(t), -1, taps)
        out = np.empty((len(t), t.shape[1], k, taps), np.uint16)
        for c, part in enumerate(parts):
            out[:, :, c] = scaled(t, part)
        size = t[0].size * pairs
        r = fill(name + "#pair", row0 * size, len(t) * size, std).reshape(len(t), t.shape[1], pairs, taps)
        for i in range(pairs):
            out[:, :, len(parts) + 2 * i] = r[:, :, i]
            out[:, :, len(parts) + 2 * i + 1] = r[:, :, i] ^ SIGN
        return out.reshape(len(t), -1)

    def inner_rows(self, name, t, axis, lo, hi, columns, k, std):
        """wq, wk, wv, w1, w3, adapter.0, and biases of q and v (k = 0). `t` is None in a layer that is not used."""
        if axis.stride:
            half = fill(name, lo // 2 * columns, (hi - lo) // 2 * columns, std).reshape(-1, 1, axis.stride, columns)
            out = np.broadcast_to(half, (len(half), 2, axis.stride, columns)).reshape(hi - lo, columns)
        else:
            out = fill(name, lo * columns, (hi - lo) * columns, std).reshape(hi - lo, columns)
        m = axis.map[lo:hi]
        if t is not None and (m >= 0).any():
            out = out.copy()
            at = np.flatnonzero(m >= 0)
            source = t[m[at]].reshape(len(at), -1)
            out[at] = self.reads_stream(name, source, lo, k, std) if k else source
        return out

    def inner_columns(self, name, t, axis, lo, hi, k, std):
        """wo, w2, adapter.2: rows write the stream, columns read an inner axis."""
        n, stride = len(axis.map), axis.stride
        out = np.empty((hi - lo, n // (2 * stride), 2, stride), np.uint16)
        half = fill(name + "#pair", lo * n // 2, (hi - lo) * n // 2, std).reshape(hi - lo, -1, stride)
        out[:, :, 0], out[:, :, 1] = half, half ^ SIGN
        out = out.reshape(hi - lo, n)
        if t is not None:
            out[:, axis.map >= 0] = t[np.arange(lo, hi) // k]
        return out

    def embedding(self, lo, hi):
        t, k = self.tiny[TOK], self.k[0]
        n_tiny, dim = t.shape
        parts, pairs = shares(k)
        used = np.repeat(t[lo : min(hi, n_tiny)], k, axis=1)
        lo = max(lo, n_tiny)
        if lo >= hi:
            return used
        n, m = hi - lo, len(parts)
        q = m // 4  # pairs among the copies that count
        assert m % 4 == 0 and len(set(parts)) == 1
        r = fill(TOK + "#pair", lo * dim * (q + pairs), n * dim * (q + pairs), EMBEDDING_STD)
        r = r.reshape(n, dim, q + pairs)
        out = np.empty((n, dim, k), np.uint16)
        for i in range(q):
            out[:, :, 2 * i], out[:, :, 2 * i + 1] = r[:, :, i], r[:, :, i] ^ SIGN
        out[:, :, 2 * q : m] = scaled(t[100 + np.arange(lo, hi) % 900], 2)[:, :, None]
        for i in range(pairs):  # the final norm's weight has opposite signs here
            out[:, :, m + 2 * i] = out[:, :, m + 2 * i + 1] = r[:, :, q + i]
        return np.concatenate([used, out.reshape(n, -1)])

    def final_norm(self):
        parts, pairs = shares(self.k[0])
        factors = parts + [parts[-1], -parts[-1]] * pairs
        return np.stack([scaled(self.tiny["norm.weight"], f) for f in factors], axis=1).reshape(-1)

    def rows(self, name, shape, std, mean, lo, hi):
        encoder = name.startswith(ENC)
        k, columns = self.k[encoder], math.prod(shape[1:])
        copied = lambda t: t.reshape(len(t), -1)[np.arange(lo, hi) // k]
        if name == TOK:
            return self.embedding(lo, hi)
        if name == "norm.weight":
            return self.final_norm()[lo:hi]
        if name == f"{ADAPTER}.0.weight":
            return self.inner_rows(name, self.tiny[name], self.adapter, lo, hi, columns, self.k[1], std)
        if name == f"{ADAPTER}.2.weight":
            return self.inner_columns(name, self.tiny[name], self.adapter, lo, hi, k, std)
        if name == f"{ENC}.conv_layers.1.conv.weight":
            return self.reads_stream(name, copied(self.tiny[name]), lo, k, std, taps=3)
        layer = re.search(r"layers\.(\d+)\.(.*)", name) if "conv_layers" not in name else None
        if not layer:
            return copied(self.tiny[name])
        place = self.places[encoder].get(int(layer[1]))
        t = None if place is None else self.tiny[f"{name[: layer.start(1)]}{place}{name[layer.end(1) :]}"]
        part = layer[2].split(".")
        if part[0] == "ada_rms_norm_t_cond" and part[1] == "0" and t is not None:
            out = np.zeros(shape, np.uint16)
            out[:, :: self.k[0]] = t  # tiny column j of each half is column k * j
            return out[lo:hi]
        if part[0] in ("attention", "feed_forward"):
            axis, bias = self.axes[part[1]][encoder], part[2] == "bias"
            if part[1] not in ("wo", "w2"):
                return self.inner_rows(name, t, axis, lo, hi, columns, 0 if bias else k, std)
            if not bias:
                return self.inner_columns(name, t, axis, lo, hi, k, std)
            return np.zeros(hi - lo, np.uint16) if t is None else copied(t)
        return fill(name, lo * columns, (hi - lo) * columns, std, mean) if t is None else copied(t)

    def write(self, path):
        header, end = {"__metadata__": {"format": "pt"}}, 0
        for name, shape, *_ in self.tensors():
            n = math.prod(shape) * 2
            header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [end, end + n]}
            end += n
        head = json.dumps(header, separators=(",", ":")).encode()
        head += b" " * (-len(head) % 8)
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644)
        os.pwrite(fd, struct.pack("<Q", len(head)) + head, 0)
        os.ftruncate(fd, 8 + len(head) + end)

        def job(name, shape, std, mean, lo):
            hi, columns = min(lo + ROWS, shape[0]), math.prod(shape[1:])
            b = np.ascontiguousarray(self.rows(name, shape, std, mean, lo, hi)).reshape(-1)
            assert b.dtype == np.uint16 and b.size == (hi - lo) * columns, name
            os.pwrite(fd, b, 8 + len(head) + header[name]["data_offsets"][0] + 2 * lo * columns)

        with ThreadPoolExecutor() as pool:
            for name, shape, std, mean in self.tensors():
                list(pool.map(lambda lo: job(name, shape, std, mean, lo), range(0, shape[0], ROWS)))  # noqa: B023
        os.close(fd)


def tekken(path):
    """The tiny vocabulary, then visible stand-ins up to the real file's 150,000 entries."""
    with open(path, encoding="utf-8") as f:
        t = json.load(f)
    total = FULL["vocab"] - t["config"]["default_num_special_tokens"] + 19_928
    for i in range(len(t["vocab"]), total):
        text = f"\u27e8{i}\u27e9"
        t["vocab"].append({"rank": i, "token_bytes": base64.b64encode(text.encode()).decode(), "token_str": text})
    t["config"].update(num_vocab_tokens=total, default_vocab_size=FULL["vocab"])
    return t


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tiny", help="directory of the tiny model")
    parser.add_argument("out", help="directory to make")
    parser.add_argument(
        "--windows",
        choices=["tiny", "real"],
        default="tiny",
        help="tiny: equal for any audio; real: equal while the audio is shorter than the tiny model's windows",
    )
    a = parser.parse_args()
    inflater = Inflater(a.tiny)
    os.makedirs(a.out, exist_ok=True)
    with open(os.path.join(a.out, "params.json"), "w") as f:
        json.dump(inflater.full_params(a.windows), f, indent=2)
    with open(os.path.join(a.out, "tekken.json"), "w", encoding="utf-8") as f:
        json.dump(tekken(os.path.join(a.tiny, "tekken.json")), f, ensure_ascii=False)
    inflater.write(os.path.join(a.out, "consolidated.safetensors"))


if __name__ == "__main__":
    main()
