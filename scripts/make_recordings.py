#!/usr/bin/env python3
"""Makes recordings of given lengths out of the shipped ones, for measuring speed.

    scripts/make_recordings.py clip.wav 180              # one of 180 s
    scripts/make_recordings.py DIR 10 60 --files 256     # 256 of 10 to 60 s, DIR/000.wav and so on

Each joins recordings in an order that depends on its number alone, and is cut at its length; the same every time.
"""

import argparse
import random
import wave
from pathlib import Path

SAMPLES = Path(__file__).resolve().parent.parent / "samples"
RATE = 16_000


def pcm(path):
    with wave.open(str(path)) as recording:
        assert recording.getparams()[:3] == (1, 2, RATE), path
        return recording.readframes(recording.getnframes())


def write(path, pieces, seconds, order):
    data = b""
    while len(data) < 2 * RATE * seconds:
        turn = list(pieces)
        order.shuffle(turn)
        data += b"".join(turn)
    with wave.open(str(path), "wb") as out:
        out.setparams((1, 2, RATE, 0, "NONE", None))
        out.writeframes(data[: 2 * int(RATE * seconds)])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("seconds", type=float, nargs="+", help="the length, or the shortest and the longest")
    parser.add_argument("--files", type=int, default=1)
    parser.add_argument("--source", type=Path, default=SAMPLES, help="folder of 16 kHz mono WAV files")
    a = parser.parse_args()
    pieces = [pcm(path) for path in sorted(a.source.glob("*.wav")) if path.stem != "noise_only"]
    if not pieces:
        parser.error(f"{a.source}: no recordings")
    if a.files == 1:
        write(a.out, pieces, a.seconds[0], random.Random(0))
        return
    a.out.mkdir(parents=True, exist_ok=True)
    for i in range(a.files):
        order = random.Random(i)
        write(a.out / f"{i:03}.wav", pieces, order.uniform(a.seconds[0], a.seconds[-1]), order)


if __name__ == "__main__":
    main()
