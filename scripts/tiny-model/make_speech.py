"""Make rows of synthetic speech with word timings, the training data.

usage: make_speech.py rows OUT_DIR N_WORKERS DATA_DIR [ROWS_PER_WORKER]    write OUT_DIR/s_WORKER_N.bin until stopped
       make_speech.py eval OUT_DIR DATA_DIR N                              write the evaluation sets, N rows a voice

A row is 28.16 s: sentences by random voices with pauses (exact zeros; most under 0.7 s, some to 2.6 s, rarely to 8
s). It has a row of tokens for a delay of 0: each word's tokens start in the 80 ms frame in which the word ends;
[STREAMING_WORD] opens each group, and the tokens of words that come too fast queue up in the same group. The same row
serves every delay: the target for delay d is the row shifted by d frames. The META numbers of a row are the longest
pause in 10 ms and, for each sentence, its audible end in 10 ms and the end of its tokens in frames, so that the
trainer can cut a row after any sentence ("the file ends here") and place the end-of-stream token.

A shard has 32 rows as int16: audio [32, SAMPLES], tokens [32, TOKENS], meta [32, META]. Workers wait while 150 shards
are not yet used, and stop when the process that started them ends. SEED in the environment (1) changes what is made.
"""

import gzip
import importlib.util
import json
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

import numpy as np

import engines
from bpe import Tokenizer

FRAMES, SAMPLES_PER_FRAME = 352, 1280
SAMPLES = FRAMES * SAMPLES_PER_FRAME
RATE = 16000
PAD, WORD = 32, 33
TOKENS = 400  # length of a token row; what does not fit is cut
MAX_SENTENCES = 24
META = 1 + 2 * MAX_SENTENCES  # -1 where unused
SHARD_ROWS = 32

ESPEAK_LANGUAGES = (
    "en-us en-us en-us en en-gb-x-rp en-us-nyc en-gb-scotland en-gb-x-gbclan en-029".split()  # en-us most often
)
ESPEAK_VARIANTS = [
    "",
    *"""
    m1 m2 m3 m4 m6 m7 f1 f2 f3 f5 Andy Alex Gene Lee Michael Mario Annie Alicia Andrea belinda benjamin david edward
    grandpa grandma iven iven2 john kaukovalta klatt klatt2 klatt4 linda marcelo max michel miguel norbert pablo paul
    pedro quincy rob robert sandro steph steph2 travis victor zac aunty boris anika adam antonio Denis Hugo Jacky Marco
    """.split(),
]
ESPEAK_HELD_OUT = "en-us+m5 en-us+f4 en-us+m8 en-gb-x-rp+steph3 en+shelby en-us+ed en-us+Mike en-us+Diogo".split()
ENGINE_SHARES = {"espeak": 0.34, "hibari": 0.36, "slt": 0.08, "rms": 0.08, "awb": 0.06, "kal16": 0.08}
SOURCE_SHARES = {
    "templates": 0.25,
    "wn_ex": 0.20,
    "wn_def": 0.17,
    "austen": 0.15,
    "jargon": 0.06,
    "devil": 0.02,
    "bible": 0.04,
    "salad": 0.11,
}
# The voices of the evaluation sets, as arguments of Speaker.say; None: the held-out espeak voices in turn.
EVAL_VOICES = {
    "espeak en-us": ("espeak", "en-us", 165, 50, 50),
    "espeak en-gb-x-rp+f2": ("espeak", "en-gb-x-rp+f2", 165, 50, 50),
    "espeak en-us+m3": ("espeak", "en-us+m3", 175, 45, 50),
    "flite slt": ("slt", 1.0, 1.0),
    "flite rms": ("rms", 1.0, 1.0),
    "flite awb": ("awb", 1.0, 1.0),
    "flite kal16": ("kal16", 1.0, 1.0),
    "hibari heart": ("hibari", 1.0, 1.0, 1.0),
    "hibari low": ("hibari", 1.0, 0.6, 0.88),
    "HELD espeak": None,
}


class Speaker:
    """The engines, the tokenizer and a source of randomness: makes rows."""

    def __init__(self, data, seed):
        self.random = random.Random(seed)
        self.espeak = engines.Espeak()
        self.flite = engines.Flite()
        spec = importlib.util.spec_from_file_location("dsp", f"{data}/hibari_dsp.py")
        dsp = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(dsp)
        self.hibari = engines.Hibari(f"{data}/hibari_dur.onnx", f"{data}/hibari_vocab.json", dsp)
        self.tokenizer = Tokenizer(f"{data}/tekken.json")
        self.sentences = {}  # source: [(sentence, phonemes)]

    def load(self, path):
        """Read train.tsv.gz, from which random rows take their sentences."""
        with gzip.open(path, "rt", encoding="utf8") as file:
            for line in file:
                source, sentence, phonemes = line.rstrip("\n").split("\t")
                self.sentences.setdefault(source, []).append((sentence, phonemes))

    def random_voice(self):
        uniform, randint, choice = self.random.uniform, self.random.randint, self.random.choice
        engine = self.random.choices(list(ENGINE_SHARES), list(ENGINE_SHARES.values()))[0]
        if engine == "espeak":
            language, variant = choice(ESPEAK_LANGUAGES), choice(ESPEAK_VARIANTS)
            name = language + ("+" + variant if variant else "")
            return (engine, name, randint(125, 230), randint(25, 80), randint(25, 75))
        if engine == "hibari":
            if self.random.random() < 0.25:
                return (engine, uniform(0.9, 1.15), 1.0, 1.0)
            if self.random.random() < 0.55:  # male-like
                return (engine, uniform(0.78, 1.4), uniform(0.42, 0.78), uniform(0.82, 0.98))
            return (engine, uniform(0.78, 1.4), uniform(0.78, 1.35), uniform(0.9, 1.15))
        return (engine, uniform(0.8, 1.25), uniform(0.75, 1.3))

    def say(self, voice, sentence, phonemes):
        """(audio, word ends) or None; a voice is (engine, its settings...)"""
        engine, *settings = voice
        if engine == "espeak":
            return self.espeak.synth(sentence, *settings)
        if engine == "hibari":
            seed = self.random.randrange(1 << 30) if phonemes else 0
            return self.hibari.synth(phonemes, *settings, seed=seed) if phonemes else None
        return self.flite.synth(sentence, engine, *settings)

    def row(self, sentences=None, voice=None, gaps=None):
        """One row: (int16 audio, int16 tokens, text, int16 meta). Random, or given sentences by one voice with
        gaps = (seconds before the first, seconds behind each)."""
        rnd = self.random
        audio = np.zeros(SAMPLES, np.float32)
        words, texts, sentence_ends, longest = [], [], [], 0.0
        long_pauses = rnd.random() < 0.06
        if gaps is None:
            at = int(rnd.uniform(0, 1.5 if rnd.random() < 0.9 else 5) * RATE)
        else:
            at = int(gaps[0] * RATE)
        row_voice = voice or (self.random_voice() if rnd.random() < 0.55 else None)
        level = 10 ** (rnd.uniform(-30, -12) / 20) if voice is None else 10 ** (-20 / 20)
        fast = rnd.random() < 0.25
        failures = 0
        pending = list(sentences) if sentences else None
        while pending is None or pending:
            if pending is not None:
                sentence, phonemes = pending.pop(0)
            else:
                shares = [SOURCE_SHARES.get(source, 0.05) for source in self.sentences]
                source = rnd.choices(list(self.sentences), shares)[0]
                sentence, phonemes = rnd.choice(self.sentences[source])
            if len(sentence) / 16 > (SAMPLES - at) / RATE + 1.5:  # surely too long: speech has some 16 letters a second
                failures += 1
                if failures > 3:
                    break
                continue
            spoken = self.say(row_voice or self.random_voice(), sentence, phonemes)
            if spoken is None:
                failures += 1
                if failures > 6:
                    break
                continue
            speech, ends = spoken
            if at + len(speech) > SAMPLES:
                failures += 1
                if failures > 2:
                    break
                continue
            rms = np.sqrt((speech**2).mean()) + 1e-6
            speech = speech * (level * 10 ** (rnd.uniform(-2, 2) / 20) / rms)
            audio[at : at + len(speech)] += speech
            start, seconds = at / RATE, len(speech) / RATE
            words += [(start + end, word) for word, end in zip(sentence.split(" "), ends)]
            texts.append(sentence)
            loud = np.flatnonzero(np.abs(speech) > 3e-4)
            audible_end = start + (int(loud[-1]) + 1 if len(loud) else len(speech)) / RATE
            sentence_ends.append((audible_end, len(words)))

            if gaps is not None:
                gap = gaps[1]
            elif fast:
                gap = rnd.uniform(0.0, 0.3)
            else:
                gap = rnd.uniform(0.05, 0.7) if rnd.random() < 0.88 else rnd.uniform(0.7, 2.6)
            if gap >= 0.7:  # counted from the audible end
                gap = max(0.3, gap - (seconds - (audible_end - start)))
            if long_pauses and gaps is None and rnd.random() < 0.4:
                gap = rnd.uniform(2.6, 8)
            longest = max(longest, gap)
            at += len(speech) + int(gap * RATE)
            if at > SAMPLES - RATE:
                break
        peak = np.abs(audio).max()
        if peak > 0.99:
            audio *= 0.99 / peak
        tokens, token_ends = self.token_row(words)
        meta = np.full(META, -1, np.int16)
        meta[0] = int(longest * 100)
        for i, (end, n_words) in enumerate(sentence_ends[:MAX_SENTENCES]):
            meta[1 + 2 * i : 3 + 2 * i] = int(end * 100), token_ends[n_words - 1]
        return (audio * 32767).astype(np.int16), tokens, " ".join(texts), meta

    def token_row(self, words):
        """[(end in seconds, word)] -> the tokens at a delay of 0 and, for each word, the frame behind its last token.

        Every word has a leading space, the first too; only the decoded text drops that one."""
        row = np.full(TOKENS, PAD, np.int16)
        free, ends = 0, []
        for end, word in words:
            frame = int(end / 0.08)
            ids = self.tokenizer.encode(" " + word)
            if frame >= free:
                ids, at = [WORD, *ids], frame
            else:
                at = free
            ids = ids[: max(0, TOKENS - at)]
            row[at : at + len(ids)] = ids
            free = at + len(ids)
            ends.append(free)
        return row, ends


def work(out, worker, data, rows):
    """Write shards; `rows` of them in all, or without end."""
    os.environ["OMP_NUM_THREADS"] = "1"
    speaker = Speaker(data, 1000003 * worker + int(os.environ.get("SEED", "1")))
    speaker.load(data / "train.tsv.gz")
    parent = os.getppid()
    n = 0
    while (rows is None or n * SHARD_ROWS < rows) and os.getppid() == parent:
        if len(os.listdir(out)) > 150:
            time.sleep(0.5)
            continue
        made = [speaker.row() for _ in range(SHARD_ROWS)]
        temporary = out / f"s_{worker}_{n}.tmp"
        temporary.write_bytes(b"".join(np.stack([row[part] for row in made]).tobytes() for part in (0, 1, 3)))
        temporary.rename(temporary.with_suffix(".bin"))
        n += 1


def make_eval_sets(out, data, n):
    """{voice}.npz with audio a [n, SAMPLES], tokens t, texts s: one testing sentence a row, behind 0.3 s."""
    speaker = Speaker(data, 77)
    test = json.loads((data / "test.json").read_text())
    for name, voice in EVAL_VOICES.items():
        rows = []
        for i, sentence in enumerate(test, 1):
            if len(rows) == n:
                break
            held_out = ("espeak", ESPEAK_HELD_OUT[i % len(ESPEAK_HELD_OUT)], 165, 50, 50)
            audio, tokens, text, _ = speaker.row([sentence], voice or held_out, (0.3, 0.5))
            if text:
                rows.append((audio, tokens, text))
        audio, tokens, texts = zip(*rows)
        np.savez(out / name.replace(" ", "_"), a=np.stack(audio), t=np.stack(tokens), s=json.dumps(texts))
    (out / "done").write_text("ok")  # the trainer waits for it


def main():
    arguments = sys.argv[1:]
    if len(arguments) not in (4, 5) or arguments[0] not in ("rows", "eval"):
        sys.exit(__doc__)
    out = Path(arguments[1])
    out.mkdir(parents=True, exist_ok=True)
    if arguments[0] == "eval":
        make_eval_sets(out, Path(arguments[2]), int(arguments[3]))
        return
    rows = int(arguments[4]) if len(arguments) > 4 else None
    workers = [
        multiprocessing.Process(target=work, args=(out, i, Path(arguments[3]), rows)) for i in range(int(arguments[2]))
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main()
