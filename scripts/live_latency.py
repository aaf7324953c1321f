#!/usr/bin/env python3
"""How long after its audio text appears, live: recordings are piped in at the pace of a microphone.

    scripts/live_latency.py samples/*.wav                                    # the shipped model
    scripts/live_latency.py -d voxtral-model --device cuda -I 0.5 talk.wav
    scripts/live_latency.py --seconds 7.9 talk.wav                           # that end there, say with a word

A token needs the audio up to its own time plus the model's delay, or up to the end of the stream; its lag is counted
from the moment when that audio had been written. Before the end, audio is gathered for `-I` seconds first. The last piece
of text is counted from the end of the stream, or from its own audio if it came before that. 16 kHz, mono, 16 bits.
"""

import argparse
import json
import statistics
import subprocess
import sys
import threading
import time
import wave
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RATE = 16_000
PIECE = RATE // 50  # samples written at a time: 20 ms


def lags(command, path, most_seconds):
    """Lags in seconds of all pieces of text, and of the last."""
    try:
        with wave.open(str(path)) as recording:
            shape, pcm = recording.getparams()[:3], recording.readframes(recording.getnframes())
            pcm = pcm if most_seconds is None else pcm[: 2 * int(most_seconds * RATE)]
    except (OSError, EOFError, wave.Error) as error:
        sys.exit(f"{path}: no WAV file: {str(error) or 'it ends early'}")
    if shape != (1, 2, RATE):
        sys.exit(f"{path}: expected 16 kHz mono 16-bit WAV")
    program = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    # the model is loaded before it says what it works with
    line = first_line(program, pcm)
    if not line:
        sys.exit(f"{path}: {' '.join(command)} failed")
    head = json.loads(line)
    delay = head["delay_ms"] / 1000
    seconds = len(pcm) / 2 / RATE
    arrived = []

    def listen():
        for line in program.stdout:
            event = json.loads(line)
            if event["type"] == "delta":
                arrived.append((time.monotonic(), event["time"]))

    listener = threading.Thread(target=listen)
    listener.start()
    start = time.monotonic()
    for at in range(2 * PIECE, len(pcm), 2 * PIECE):
        time.sleep(max(0.0, start + (at + 2 * PIECE) / 2 / RATE - time.monotonic()))
        program.stdin.write(pcm[at : at + 2 * PIECE])
        program.stdin.flush()
    program.stdin.close()
    listener.join()
    if program.wait() != 0:
        sys.exit(f"{path}: {' '.join(command)} failed")
    if not arrived:
        sys.exit(f"{path}: no text")
    all_lags = [at - (start + min(when + delay, seconds)) for at, when in arrived]
    after_end = arrived[-1][0] - (start + seconds)
    return all_lags, after_end if after_end > 0 else all_lags[-1]


def first_line(program, pcm):
    program.stdin.write(pcm[: 2 * PIECE])
    program.stdin.flush()
    return program.stdout.readline()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recordings", type=Path, nargs="+")
    parser.add_argument("-d", "--model", type=Path, default=ROOT / "samples" / "tiny-model")
    parser.add_argument("-I", "--interval", default="0.5")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--voxtral", type=Path, default=ROOT / "target" / "release" / "voxtral")
    parser.add_argument("--seconds", type=float, help="of each recording; all of it when absent")
    parser.add_argument("--json", action="store_true")
    a = parser.parse_args()
    command = [a.voxtral, "-d", a.model, "--stdin", "--raw", "-I", a.interval, "-f", "jsonl", "--device", a.device]
    command = [str(part) for part in command]
    runs = [lags(command, path, a.seconds) for path in a.recordings]
    middle = sorted(lag for run, _ in runs for lag in run)
    last = [lag for _, lag in runs]
    ms = [round(1000 * x) for x in (statistics.median(middle), middle[-1], statistics.median(last), max(last))]
    version = subprocess.run([a.voxtral, "-V"], capture_output=True, text=True, check=True).stdout.strip()
    result = dict(zip(("median_ms", "max_ms", "end_median_ms", "end_max_ms"), ms))
    if a.json:
        print(json.dumps({"version": version, "interval": float(a.interval), "recordings": len(runs), **result}))
        return
    print(f"{version}, -I {a.interval}, {len(runs)} recordings, beyond the model's delay:")
    print(f"text as it is said: {ms[0]} ms median, {ms[1]} ms at most")
    print(f"the last of it after the end: {ms[2]} ms median, {ms[3]} ms at most")


if __name__ == "__main__":
    main()
