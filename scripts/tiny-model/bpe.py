"""Train a small byte-pair tokenizer of the Tekken kind, and use one.

usage: bpe.py DATA_DIR [N_MERGES]

Reads DATA_DIR/train.json (made by make_text.py) and writes DATA_DIR/tekken.json with the layout of the real file: 1000
special tokens, 256 bytes, N_MERGES (1560) merges. `Tokenizer` encodes and decodes with such a file.
"""

import base64
import collections
import json
import sys
from itertools import pairwise
from pathlib import Path

import regex

# The real tokenizer's pattern: the pieces of text inside which tokens are merged.
PATTERN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
N_SPECIAL = 1000
SPECIAL = {
    **dict(enumerate("<unk> <s> </s> [INST] [/INST] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_RESULTS]".split())),
    **dict(enumerate("[/TOOL_RESULTS] [TOOL_CALLS] [IMG] <pad> [IMG_BREAK] [IMG_END] [PREFIX] [MIDDLE]".split(), 8)),
    **dict(enumerate("[SUFFIX] [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [TOOL_CONTENT]".split(), 16)),
    **dict(enumerate("[AUDIO] [BEGIN_AUDIO]".split(), 24)),
    **dict(enumerate("[STREAMING_PAD] [STREAMING_WORD] [TRANSCRIBE]".split(), 32)),
}


def train(texts, n_merges):
    """The vocabulary as byte strings: all bytes, then the merges, most frequent pairs first."""
    pattern = regex.compile(PATTERN)
    counts = collections.Counter()
    for text in texts:
        counts.update(pattern.findall(" " + text))
    words = [([bytes([b]) for b in word.encode()], count) for word, count in counts.items()]
    pairs = collections.Counter()
    where = collections.defaultdict(set)  # the words that have a pair
    for i, (word, count) in enumerate(words):
        for pair in pairwise(word):
            pairs[pair] += count
            where[pair].add(i)
    vocabulary = [bytes([i]) for i in range(256)]
    known = set(vocabulary)
    while len(vocabulary) < 256 + n_merges:
        (left, right), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        merged = left + right
        if merged not in known:
            vocabulary.append(merged)
            known.add(merged)
        for i in list(where[(left, right)]):
            word, count = words[i]
            for pair in pairwise(word):
                pairs[pair] -= count
                if pairs[pair] <= 0:
                    del pairs[pair]
                where[pair].discard(i)
            out, j = [], 0
            while j < len(word):
                if word[j : j + 2] == [left, right]:
                    out.append(merged)
                    j += 2
                else:
                    out.append(word[j])
                    j += 1
            words[i] = (out, count)
            for pair in pairwise(out):
                pairs[pair] += count
                where[pair].add(i)
    return vocabulary


def tekken(vocabulary):
    """The content of tekken.json."""

    def text(token):
        try:
            return token.decode()
        except UnicodeDecodeError:
            return None

    return {
        "config": {
            "pattern": PATTERN,
            "num_vocab_tokens": len(vocabulary),
            "default_vocab_size": N_SPECIAL + len(vocabulary),
            "default_num_special_tokens": N_SPECIAL,
            "version": "v7",
        },
        "vocab": [
            {"rank": i, "token_bytes": base64.b64encode(token).decode(), "token_str": text(token)}
            for i, token in enumerate(vocabulary)
        ],
        "special_tokens": [
            {"rank": i, "token_str": SPECIAL.get(i, f"<SPECIAL_{i}>"), "is_control": True} for i in range(N_SPECIAL)
        ],
        "audio": {
            "sampling_rate": 16000,
            "frame_rate": 12.5,
            "audio_encoding_config": {"num_mel_bins": 128, "hop_length": 160, "window_size": 400},
            "transcription_delay_ms": 480,
            "streaming_look_ahead_ms": 2.5,
            "streaming_look_back_ms": 52.5,
            "streaming_n_left_pad_tokens": 32,
            "transcription_format": "streaming",
        },
    }


class Tokenizer:
    """Text to token ids and back, with a tekken.json."""

    def __init__(self, path):
        content = json.loads(Path(path).read_text())
        self.n_special = content["config"]["default_num_special_tokens"]
        self.pattern = regex.compile(content["config"]["pattern"])
        self.tokens = [base64.b64decode(entry["token_bytes"]) for entry in content["vocab"]]
        self.ranks = {token: rank for rank, token in enumerate(self.tokens)}
        self.cache = {}

    def _encode_piece(self, piece):
        if piece not in self.cache:
            parts = [bytes([b]) for b in piece.encode()]
            while len(parts) > 1:
                k = min(range(len(parts) - 1), key=lambda i: self.ranks.get(parts[i] + parts[i + 1], 1 << 30))
                if parts[k] + parts[k + 1] not in self.ranks:
                    break
                parts[k : k + 2] = [parts[k] + parts[k + 1]]
            self.cache[piece] = [self.n_special + self.ranks[part] for part in parts]
        return self.cache[piece]

    def encode(self, text):
        return [i for piece in self.pattern.findall(text) for i in self._encode_piece(piece)]

    def decode(self, ids):
        """The text of the ids; special tokens have none."""
        return b"".join(self.tokens[i - self.n_special] for i in ids if i >= self.n_special).decode("utf8", "replace")


def main():
    if len(sys.argv) not in (2, 3):
        sys.exit(__doc__)
    data = Path(sys.argv[1])
    n_merges = int(sys.argv[2]) if len(sys.argv) > 2 else 1560
    rows = json.loads((data / "train.json").read_text())
    vocabulary = train([text for source, text in rows if source != "salad"], n_merges)
    (data / "tekken.json").write_text(json.dumps(tekken(vocabulary), ensure_ascii=False))

    tokenizer = Tokenizer(data / "tekken.json")
    texts = [text for _, text in rows[:3000]]
    assert all(tokenizer.decode(tokenizer.encode(" " + text)) == " " + text for text in texts)
    n_tokens = sum(len(tokenizer.encode(" " + text)) for text in texts)
    print(f"{len(vocabulary)} tokens, {n_tokens / sum(len(text.split()) for text in texts):.2f} a word")


if __name__ == "__main__":
    main()
