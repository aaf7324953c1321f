"""Write the recordings that the project ships, with their texts and expected results.

usage: make_samples.py WAV_DIR WAVS_JSON OUT_DIR

WAV_DIR is that of make_tests.py, WAVS_JSON what evaluate.py wrote for it (delays 1, 3, 6, 12, 30). Writes NAME.wav,
NAME.txt, decoded.json and word_ends.json, which the README of the samples describes.
"""

import json
import shutil
import sys
from pathlib import Path

NAMES = "hibari_intro kal_computer awb_library slt_numbers espeak_us_garden long_mixed noise_only".split()
DELAYS = "1 3 6 12 30".split()


def compact(value):
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def json_lines(entries):
    """An object with one entry a line; the values are JSON already."""
    return "{\n" + ",\n".join(f"{key}:{value}" for key, value in entries) + "\n}"


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    wav_dir, out = Path(sys.argv[1]), Path(sys.argv[3])
    manifest = json.loads((wav_dir / "manifest.json").read_text())
    decoded = json.loads(Path(sys.argv[2]).read_text())
    out.mkdir(parents=True, exist_ok=True)
    results, word_ends = [], []
    for name in NAMES:
        shutil.copy(wav_dir / f"{name}.wav", out)
        text = manifest[name]["text"]
        (out / f"{name}.txt").write_text(text + "\n" if text else "")
        by_delay = {delay: decoded[name][delay] for delay in DELAYS}
        rows = [(f' "{d}"', compact({"text": r["text"], "ids": r["ids"]})) for d, r in by_delay.items()]
        results.append((compact(name), json_lines(rows)))
        word_ends.append((compact(name), compact(manifest[name]["word_ends"])))
    (out / "decoded.json").write_text(json_lines(results) + "\n")
    (out / "word_ends.json").write_text(json_lines(word_ends) + "\n")


if __name__ == "__main__":
    main()
