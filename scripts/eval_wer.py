#!/usr/bin/env python3
"""Word error rate of the program over recordings with known words.

    pip install whisper-normalizer
    scripts/eval_wer.py -d voxtral-model DATA [-- --device cuda --delay 960]

DATA is one of
* a folder of recordings, NAME.wav (or .flac, .mp3, ...) with NAME.txt beside it, also in folders below;
* LibriSpeech or a part of it: folders with *.trans.txt and .flac files;
* FLEURS as its repository has it: data/LANGUAGE with SPLIT.tsv and audio/SPLIT/*.wav.

What follows `--` goes to the program: any device, delay, channel or number format that it knows. Both texts pass through
Whisper's normaliser (the English one for --language en, else the basic one; languages written without spaces are counted
by character); --normaliser plain needs no package, but its figures are not those that others publish. Exit status 1 if a
recording failed or the total is above --max-wer.
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
import unicodedata
from pathlib import Path

AUDIO = {
    *(".wav", ".wave", ".flac", ".mp3", ".mp2", ".m4a", ".mp4", ".mov", ".ogg", ".oga", ".opus"),
    *(".aac", ".aiff", ".aif", ".aifc", ".caf", ".mka", ".mkv", ".webm"),
}
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


def normaliser(name, language):
    by_character = language in BY_CHARACTER
    if name == "plain":
        return lambda text: plain(text, by_character)
    try:
        from whisper_normalizer.basic import BasicTextNormalizer
        from whisper_normalizer.english import EnglishTextNormalizer
    except ImportError as error:
        sys.exit(
            f"{error}: Whisper's normaliser comes with `pip install whisper-normalizer`; "
            "--normaliser plain does without, for figures of your own"
        )
    return EnglishTextNormalizer() if language == "en" else BasicTextNormalizer(split_letters=by_character)


def plain(text, by_character):
    """Lower case, with blanks for all but letters and digits, and between all of these if asked for."""
    text = unicodedata.normalize("NFKC", text).lower().replace("’", "'")
    # an apostrophe inside a word belongs to it; marks are parts of letters
    text = "".join(c if c.isalnum() or c == "'" or unicodedata.category(c)[0] == "M" else " " for c in text)
    return " ".join(text.replace(" ", "") if by_character else text.split())


def differences(reference, heard):
    """(substitutions, deletions, insertions) that make one list of words of the other, with the fewest of all."""
    # by how many words of `heard` are used: (all, substitutions, deletions, insertions)
    row = [(j, 0, 0, j) for j in range(len(heard) + 1)]
    for word in reference:
        above_left, row[0] = row[0], (row[0][0] + 1, 0, row[0][2] + 1, 0)
        for j, other in enumerate(heard, 1):
            above = row[j]
            if word == other:
                row[j] = above_left
            else:
                left = row[j - 1]
                least = min(above_left[0], above[0], left[0])
                if above_left[0] == least:
                    row[j] = (least + 1, above_left[1] + 1, above_left[2], above_left[3])
                elif above[0] == least:
                    row[j] = (least + 1, above[1], above[2] + 1, above[3])
                else:
                    row[j] = (least + 1, left[1], left[2], left[3] + 1)
            above_left = above
    return row[-1][1:]


def transcribe(program, model, audio, options, work):
    """{audio file: text} of all files that were transcribed to their end, by one run of the program."""
    inputs, outputs = work / "inputs", work / "outputs"
    inputs.write_bytes(b"".join(os.fsencode(path) + b"\0" for path in audio))
    outputs.mkdir()
    command = [program, "-d", model, "-f", "json", "-o", outputs, *options, "--list", inputs]
    try:
        status = subprocess.run(command, check=False, stdout=subprocess.DEVNULL).returncode
    except OSError as error:
        sys.exit(f"cannot run {program}: {error}")
    if status not in (0, 1):
        sys.exit(f"{program} ended with status {status}")
    transcripts = [json.loads(output.read_text(encoding="utf-8")) for output in outputs.rglob("*.json")]
    texts = {transcript["input"]: transcript["text"] for transcript in transcripts if not transcript.get("error")}
    return {path: texts[str(path)] for path in audio if str(path) in texts}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("-d", "--model", default=os.environ.get("VOX_MODEL"), help="model directory")
    parser.add_argument("--program", default=shutil.which("voxtral") or REPOSITORY / "target/release/voxtral")
    parser.add_argument("--language", default="en", help="code such as en, fr, zh (en)")
    parser.add_argument("--split", default="test", help="which part of FLEURS (test)")
    parser.add_argument("--limit", type=int, help="only so many recordings")
    parser.add_argument("--normaliser", choices=("whisper", "plain"), default="whisper", help="(whisper)")
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
    normalise = normaliser(a.normaliser, a.language)
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
        reference, heard = normalise(said).split(), normalise(texts[audio]).split()
        rows.append((str(audio), *differences(reference, heard), len(reference)))
    print(f"{'words':>7} {'subst':>6} {'del':>6} {'ins':>6} {'error':>8}  recording")
    total = [sum(row[i] for row in rows) for i in range(1, 5)]
    for name, s, d, i, n in [*rows, ("all", *total)]:
        rate = f"{100 * (s + d + i) / n:.2f} %" if n else "-"
        print(f"{n:7} {s:6} {d:6} {i:6} {rate:>8}  {name}")
    wer = 100 * sum(total[:3]) / max(total[3], 1)
    unit = "characters" if a.language in BY_CHARACTER else "words"
    print(f"{wer:.2f} % of {total[3]} {unit} in {len(rows)} recordings, {seconds:.1f} s with loading")
    if a.normaliser == "plain":
        print("without Whisper's normaliser: not to be compared with published figures", file=sys.stderr)
    for name in failed:
        print(f"failed: {name}", file=sys.stderr)
    if a.json:
        keys = ("recording", "substitutions", "deletions", "insertions", "n_words")
        result = {
            "error_percent": wer,
            "normaliser": a.normaliser,
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
