"""Measure a model folder on the CPU with the plain decode of model.py.

usage: evaluate.py wavs MODEL_DIR WAV_DIR OUT_JSON [DELAY ...]   each recording of WAV_DIR/manifest.json (make_tests.py)
       evaluate.py rows MODEL_DIR NPZ OUT_JSON [DELAY ...]       word error rate of a set (held_out_voice.py)
       evaluate.py eos MODEL_DIR EVAL_DIR OUT_JSON [PAIRS]       end-of-stream tokens: where, how often (make_speech.py)

Delays are in tokens; 6 unless given. `wavs` gives texts, errors and token ids; `rows` per cent; `eos` joins two testing
sentences with a pause between, PAIRS (2) a voice, under each of CONDITIONS.
"""

import json
import sys
import wave
from pathlib import Path

import numpy as np
import torch

import model as M
from bpe import Tokenizer

RATE = 16000
# name: (room noise in dBFS or None, pause s, tail s, whether the noise stops in the pause, delays)
CONDITIONS = {
    "clean, pause 0.5 s, tail 0.3 s": (None, 0.5, 0.3, False, (1, 3, 6, 12, 30)),
    "clean, pause 1.5 s, tail 0.3 s": (None, 1.5, 0.3, False, (1, 6, 30)),
    "clean, pause 3.0 s, tail 0.3 s": (None, 3.0, 0.3, False, (1, 3, 6, 12, 30)),
    "clean, pause 0.5 s, tail 4 s": (None, 0.5, 4.0, False, (1, 6, 30)),
    "clean, pause 5.0 s, tail 0.3 s": (None, 5.0, 0.3, False, (6,)),
    "room noise -55 dBFS, pause 0.5 s, tail 0.3 s": (-55, 0.5, 0.3, False, (1, 3, 6, 12, 30)),
    "room noise -55 dBFS, pause 3 s, tail 1 s": (-55, 3.0, 1.0, False, (1, 6, 30)),
    "room noise -45 dBFS, pause 8 s, tail 1 s": (-45, 8.0, 1.0, False, (6,)),
    "room noise -63 dBFS, pause 3 s, tail 0.5 s": (-63, 3.0, 0.5, False, (6,)),
    "room noise -55 dBFS, pause 0.6 s of zeros, tail 0.3 s": (-55, 0.6, 0.3, True, (1, 6, 30)),
    "room noise -55 dBFS, pause 2 s of zeros, tail 0.3 s": (-55, 2.0, 0.3, True, (6,)),
}


def read_wav(path):
    with wave.open(str(path)) as file:
        samples = np.frombuffer(file.readframes(file.getnframes()), np.int16)
    return torch.from_numpy(samples.copy()).float()[None] / 32768


def read_rows(path):
    """(audio [n, samples] int16, texts)"""
    content = np.load(path)
    return content["a"], json.loads(str(content["s"]))


def evaluate_wavs(model, tokenizer, folder, delays):
    result = {}
    for delay in delays:
        errors = n = 0
        for name, entry in json.loads((folder / "manifest.json").read_text()).items():
            audio = read_wav(folder / f"{name}.wav")
            (text,), tokens = M.transcribe(model, audio, delay, tokenizer.decode)
            tokens = tokens[0].tolist()
            eos_at = tokens.index(M.EOS) if M.EOS in tokens else None
            ids = tokens if eos_at is None else tokens[: eos_at + 1]
            reference = M.words_of(entry["text"])
            wrong = M.edit_distance(M.words_of(text), reference)
            result.setdefault(name, {})[delay] = {
                "text": text,
                "errors": wrong,
                "words": len(reference),
                "exact": text == entry["text"],
                "eos_at": eos_at,
                "frames_of_audio": -(-audio.shape[1] // M.SAMPLES_PER_FRAME),
                "ids": ids,
            }
            print(f"delay {delay} {name}: {wrong} errors in {len(reference)} words, end-of-stream token at {eos_at}")
            if text != entry["text"]:
                print(f"    reference: {entry['text']}\n    decoded:   {text}")
            errors += wrong
            n += len(reference)
        print(f"delay {delay}: {errors} errors in {n} words, {100 * errors / n:.2f} %")
    return result


def evaluate_rows(model, tokenizer, path, delays):
    rows, texts = read_rows(path)
    audio = torch.from_numpy(rows).float() / 32768
    result = {}
    for delay in delays:
        decoded = []
        for i in range(0, len(texts), 8):
            decoded += M.transcribe(model, audio[i : i + 8], delay, tokenizer.decode)[0]
        result[f"d{delay}"] = round(100 * M.wer(decoded, texts), 2)
        print(f"delay {delay}: {result[f'd{delay}']} % word errors", flush=True)
    return result


def trim(audio):
    loud = np.flatnonzero(np.abs(audio) > 1e-3)
    return audio[loud[0] : loud[-1] + 1]


def join(first, second, condition, rng):
    """Two clips as one recording in 16-bit steps."""
    noise_db, pause, tail, gated, _ = condition
    silence = [np.zeros(int(seconds * RATE), np.float32) for seconds in (0.3, pause, tail)]
    audio = np.concatenate([silence[0], first, silence[1], second, silence[2]])
    if noise_db is not None:
        noise = rng.standard_normal(len(audio)).astype(np.float32) * 10 ** (noise_db / 20)
        if gated:
            start = len(silence[0]) + len(first)
            noise[start : start + len(silence[1])] = 0
        audio = audio + noise
    return (np.round(audio * 32767).clip(-32768, 32767) / 32768).astype(np.float32)


def evaluate_eos(model, tokenizer, folder, pairs):
    rng = np.random.default_rng(0)
    clips = []
    for path in sorted(folder.glob("*.npz")):
        rows, texts = read_rows(path)
        rows = rows.astype(np.float32) / 32768
        for k in range(0, 2 * pairs, 2):
            clips.append((trim(rows[k]), trim(rows[k + 1]), texts[k] + " " + texts[k + 1]))
    result = {}
    for name, condition in CONDITIONS.items():
        recordings = [join(first, second, condition, rng) for first, second, _ in clips]
        longest = max(map(len, recordings))
        batch = torch.zeros(len(clips), longest + -longest % M.SAMPLES_PER_FRAME)
        for row, recording in zip(batch, recordings):
            row[: len(recording)] = torch.from_numpy(recording)
        for delay in condition[-1]:
            # What follows a recording's own end is zeros, as in its padding.
            tokens = M.transcribe(model, batch, delay, tokenizer.decode)[1].tolist()
            early = without = 0
            at_end, decoded = [], []
            for row, recording, (_, _, text) in zip(tokens, recordings, clips):
                n_frames = -(-len(recording) // M.SAMPLES_PER_FRAME)
                row = row[: n_frames + M.RIGHT]  # the decode of a file stops here
                eos_at = row.index(M.EOS) if M.EOS in row else None
                decoded.append(tokenizer.decode([i for i in row[:eos_at] if i >= 1000]))
                if eos_at is None:
                    without += 1
                elif len(M.words_of(decoded[-1])) < 0.8 * len(M.words_of(text)):
                    early += 1
                else:
                    at_end.append(eos_at - n_frames)
            result[f"{name} | delay {delay}"] = {
                "utterances": len(clips),
                "eos_early": early,
                "eos_at_end": len(at_end),
                "no_eos": without,
                "wer": round(100 * M.wer(decoded, [text for _, _, text in clips]), 2),
                "eos_frame_after_file_end": sorted(at_end)[len(at_end) // 2] if at_end else None,
            }
            print(f"{name} | delay {delay}:", result[f"{name} | delay {delay}"], flush=True)
    return result


def main():
    if len(sys.argv) < 5 or sys.argv[1] not in ("wavs", "rows", "eos"):
        sys.exit(__doc__)
    kind, model_dir, data, out = sys.argv[1], *map(Path, sys.argv[2:5])
    numbers = [int(x) for x in sys.argv[5:]]
    torch.set_num_threads(1)
    model, tokenizer = M.load(model_dir), Tokenizer(model_dir / "tekken.json")
    with torch.no_grad():
        if kind == "wavs":
            result = evaluate_wavs(model, tokenizer, data, numbers or [6])
        elif kind == "rows":
            result = evaluate_rows(model, tokenizer, data, numbers or [6])
        else:
            result = evaluate_eos(model, tokenizer, data, numbers[0] if numbers else 2)
    out.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
