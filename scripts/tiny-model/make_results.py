"""Put all measurements into one results.json, the numbers of the model card.

usage: make_results.py MODEL_DIR WAV_DIR TRAINING_DIR WAVS_JSON ROWS_JSON EOS_JSON OUT_JSON

TRAINING_DIR is what train_tiny.py wrote (device_results.json, loss.json); the next three are what evaluate.py wrote for
the test recordings (all delays), the held-out voice and the end-of-stream tokens.
"""

import json
import sys
from pathlib import Path

import numpy as np

from bpe import Tokenizer

FRAME_S = 0.08
DELAY = "6"


def read(path):
    return json.loads(Path(path).read_text())


def token_statistics(tokenizer, manifest, decoded):
    """At DELAY: the shares of pads, word marks and text, and how long after its end a word's first token comes."""
    counts, lags = np.zeros(3, int), []
    for name, entry in manifest.items():
        result = decoded[name][DELAY]
        ids = result["ids"]
        counts += [ids.count(32), ids.count(33), sum(i >= 1000 for i in ids)]
        starts = [p for p, i in enumerate(ids) if i >= 1000 and tokenizer.tokens[i - 1000].startswith(b" ")]
        if not result["errors"] and len(starts) == len(entry["word_ends"]):
            behind = int(DELAY) + 1  # the first token belongs to the frame behind the delay
            lags += [(p + behind) * FRAME_S - end for p, (_, end) in zip(starts, entry["word_ends"])]
    quantiles = {"median": np.median(lags), "p10": np.quantile(lags, 0.1), "p90": np.quantile(lags, 0.9)}
    return (
        dict(zip(("pad", "word", "text"), (counts / counts.sum()).round(3).tolist())),
        {name: round(float(x), 2) for name, x in {**quantiles, "max": max(lags)}.items()},
    )


def main():
    if len(sys.argv) != 8:
        sys.exit(__doc__)
    model_dir, wav_dir, training_dir = map(Path, sys.argv[1:4])
    decoded, held_out, eos = map(read, sys.argv[4:7])
    manifest = read(wav_dir / "manifest.json")
    training = read(training_dir / "device_results.json")
    wer = {name: rates for name, rates in training.items() if name.startswith("wer_")}
    mean = {
        name: round(float(np.mean([x for voice, x in rates.items() if not voice.startswith("HELD")])), 2)
        for name, rates in wer.items()
    }
    mix, lag = token_statistics(Tokenizer(model_dir / "tekken.json"), manifest, decoded)
    by_delay = {
        delay: {
            "errors": sum(results[delay]["errors"] for results in decoded.values()),
            "words": sum(results[delay]["words"] for results in decoded.values()),
            "files_with_eos": sum(results[delay]["eos_at"] is not None for results in decoded.values()),
        }
        for delay in decoded["noise_only"]
    }
    results = {
        "weights_bytes": (model_dir / "consolidated.safetensors").stat().st_size,
        "training": {k: training[k] for k in ("steps", "seconds", "rows", "hours", "audio_seen_hours")},
        "wer_percent_new_sentences": {
            "note": "greedy streaming decode of the exported weights, stopped at the end-of-stream token; case and"
            " punctuation ignored; delay 6: 64 sentences a voice, other delays 32",
            **wer,
            "mean_training_voices": mean,
        },
        "wer_percent_held_out_natural_voice": held_out,
        "eos": eos,
        "wav_errors_by_delay": by_delay,
        f"token_mix_delay{DELAY}": mix,
        f"lag_first_token_after_word_end_s_delay{DELAY}": lag,
        "loss_curve_step_seconds_loss_tokacc": [entry[:4] for entry in read(training_dir / "loss.json")[::12]],
    }
    Path(sys.argv[7]).write_text(json.dumps(results, indent=1))
    print(json.dumps({"mean": mean, "wav": by_delay, "mix": mix, "lag": lag}, indent=1))


if __name__ == "__main__":
    main()
