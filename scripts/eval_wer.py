#!/usr/bin/env python3
"""Word error rate of the program over recordings with known words.

    pip install jiwer whisper-normalizer
    scripts/eval_wer.py -d voxtral-model DATA [-- --device cuda --delay 960]

DATA is one of
* a folder of recordings, NAME.wav (or .flac, .mp3, ...) with NAME.txt beside it, also in folders below;
* LibriSpeech or a part of it: folders with *.trans.txt and .flac files;
* FLEURS as its repository has it: data/LANGUAGE with SPLIT.tsv and audio/SPLIT/*.wav.

What follows `--` goes to the program. Both texts pass through Whisper's normaliser (the English one for --language en,
else the basic one; languages written without spaces are counted by character). Exit status 1 if a recording failed or
the total is above --max-wer.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

AUDIO = {".wav", ".flac", ".mp3", ".m4a", ".mp4", ".ogg", ".opus", ".aiff", ".aif", ".caf", ".mkv", ".webm"}
BY_CHARACTER = {"zh", "ja", "th", "lo", "my", "yue"}
REPOSITORY = Path(__file__).resolve().parent.parent


def with_text_beside(folder):
    for audio in sorted(p for p in folder.rglob("*") if p.suffix.lower() in AUDIO):
        text = audio.with_suffix(".txt")
        if text.exists():
            yield audio, text.read_text(encoding="utf-8")


def librispeech(folder):
    for transcript in sorted(folder.rglob("*.trans.txt")):
        for line in transcript.read_text(encoding="utf-8").splitlines():
            name, _, text = line.partition(" ")
            yield transcript.with_name(f"{name}.flac"), text


def fleurs(folder, split):
    with open(folder / f"{split}.tsv", encoding="utf-8", newline="") as table:
        for row in csv.reader(table, delimiter="\t", quoting=csv.QUOTE_NONE):
            yield folder / "audio" / split / row[1], row[2]


def recordings(folder, split):
    """[(audio file, what is said in it)]"""
    if (folder / f"{split}.tsv").exists():
        return list(fleurs(folder, split))
    return list(librispeech(folder)) or list(with_text_beside(folder))


def normaliser(language):
    from whisper_normalizer.basic import BasicTextNormalizer
    from whisper_normalizer.english import EnglishTextNormalizer

    if language == "en":
        return EnglishTextNormalizer()
    return BasicTextNormalizer(split_letters=language in BY_CHARACTER)


def transcribe(program, model, audio, options, work):
    """{audio file: text} of all files that were transcribed, by one run of the program."""
    inputs = work / "inputs"
    inputs.mkdir()
    for i, path in enumerate(audio):
        (inputs / f"{i:06}{path.suffix}").symlink_to(path.resolve())
    outputs = work / "outputs"
    command = [program, "-d", model, "-f", "json", "-o", outputs, *options, *sorted(inputs.iterdir())]
    status = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    if status not in (0, 1):
        sys.exit(f"{program} ended with status {status}")
    texts = {}
    for i, path in enumerate(audio):
        output = outputs / f"{i:06}.json"
        if output.exists():
            texts[path] = json.loads(output.read_text(encoding="utf-8"))["text"]
    return texts


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-d", "--model", default=os.environ.get("VOX_MODEL"), help="model directory")
    parser.add_argument("--program", default=shutil.which("voxtral") or REPOSITORY / "target/release/voxtral")
    parser.add_argument("--language", default="en", help="code such as en, fr, zh (en)")
    parser.add_argument("--split", default="test", help="which part of FLEURS (test)")
    parser.add_argument("--limit", type=int, help="only so many recordings")
    parser.add_argument("--json", type=Path, help="write the figures of each recording and of all to this file")
    parser.add_argument("--max-wer", type=float, help="exit status 1 if the total is above this many percent")
    arguments = sys.argv[1:]
    options = []
    if "--" in arguments:
        cut = arguments.index("--")
        arguments, options = arguments[:cut], arguments[cut + 1 :]
    a = parser.parse_args(arguments)
    if not a.model:
        parser.error("-d is needed, or VOX_MODEL")
    try:
        import jiwer

        normalise = normaliser(a.language)
    except ImportError as error:
        sys.exit(f"{error}: pip install jiwer whisper-normalizer")
    pairs = recordings(a.data, a.split)[: a.limit]
    if not pairs:
        sys.exit(f"{a.data}: no recordings with known words")

    with tempfile.TemporaryDirectory() as work:
        start = time.monotonic()
        texts = transcribe(a.program, a.model, [audio for audio, _ in pairs], options, Path(work))
        seconds = time.monotonic() - start

    rows, failed = [], [str(audio) for audio, _ in pairs if audio not in texts]
    for audio, said in pairs:
        if audio not in texts:
            continue
        reference, heard = normalise(said), normalise(texts[audio])
        if reference.strip():
            m = jiwer.process_words(reference, heard)
            counts = [m.substitutions, m.deletions, m.insertions, len(m.references[0])]
        else:
            counts = [0, 0, len(heard.split()), 0]
        rows.append((str(audio), *counts))
    print(f"{'words':>7} {'subst':>6} {'del':>6} {'ins':>6} {'error':>8}  recording")
    total = [sum(row[i] for row in rows) for i in range(1, 5)]
    for name, s, d, i, n in [*rows, ("all", *total)]:
        rate = f"{100 * (s + d + i) / n:.2f} %" if n else "-"
        print(f"{n:7} {s:6} {d:6} {i:6} {rate:>8}  {name}")
    wer = 100 * sum(total[:3]) / max(total[3], 1)
    unit = "characters" if a.language in BY_CHARACTER else "words"
    print(f"{wer:.2f} % of {total[3]} {unit} in {len(rows)} recordings, {seconds:.1f} s with loading")
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    if a.json:
        keys = ("recording", "substitutions", "deletions", "insertions", "n_words")
        result = {
            "error_percent": wer,
            "options": options,
            "seconds": seconds,
            "failed": failed,
            "total": dict(zip(keys[1:], total, strict=True)),
            "recordings": [dict(zip(keys, row, strict=True)) for row in rows],
        }
        a.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 1 if failed or (a.max_wer is not None and wer > a.max_wer) else 0


if __name__ == "__main__":
    sys.exit(main())
