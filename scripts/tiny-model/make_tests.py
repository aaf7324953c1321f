"""Write the test recordings (16 kHz, 16 bit) with reference texts and word end times.

usage: make_tests.py DATA_DIR OUT_DIR

DATA_DIR is that of pack_data.py; the hibari package must be importable, for phonemes of sentences that are not in it.
Writes OUT_DIR/NAME.wav and manifest.json: {NAME: text, voices, seconds, room_noise_dbfs, pause_s, tail_s, word_ends}.
Pauses are exact zeros unless there is room noise, which covers the whole recording.
"""

import gzip
import json
import sys
from pathlib import Path

import numpy as np
import soundfile
from hibari.g2p import G2P

import make_speech

RATE = 16000
VOICES = {
    "hibari": ("hibari", 1.0, 1.0, 1.0),
    "hibari-low": ("hibari", 1.0, 0.6, 0.88),
    "slt": ("slt", 1.0, 1.0),
    "rms": ("rms", 1.0, 1.0),
    "awb": ("awb", 1.0, 1.0),
    "kal16": ("kal16", 1.0, 1.0),
    "espeak-us": ("espeak", "en-us", 165, 50, 50),
    "espeak-f2": ("espeak", "en-gb-x-rp+f2", 165, 50, 50),
    "espeak-held": ("espeak", "en-us+m5", 165, 50, 50),
}
STORY = """\
When the sun came up over the hills, the village was still asleep.
A young woman walked slowly down the road with a basket in her hand.
She wanted to sell her bread and cheese at the market before noon.
On the way she met an old friend who had just come back from London.
They talked about the long winter, the price of coffee, and the new bridge across the river.
Have you ever seen so many people in one place, she asked with a smile.
Her friend shook his head and said that the city was much worse.
After an hour they reached the market, and the noise was terrible.
Farmers were shouting, dogs were running between the tables, and a band was playing in the corner.
By two o'clock everything was sold, and her basket was empty.
She counted the money twice and put it in her pocket.
Then she bought a blue hat for her mother and a small toy for her little brother.
The walk home was easy, because the road went down the hill.
In the evening the whole family sat by the fire and listened to her story.
Tomorrow, she said, I will stay in bed and do nothing at all.
But the next morning she was on the road again before anybody else was awake.""".split("\n")
STORY_VOICES = """
    hibari hibari slt hibari-low hibari rms hibari espeak-us hibari-low slt hibari kal16 hibari awb hibari-low hibari
    """.split()


def one_voice(voice, *sentences):
    return [(voice, sentence) for sentence in sentences]


RECORDINGS = {
    "hibari_intro": one_voice(
        "hibari",
        "Hello, this is a short test of the speech recognition system.",
        "It writes down every word while I am still speaking.",
    ),
    "hibari_story": one_voice(
        "hibari",
        "The old man opened the window and looked at the quiet street.",
        "Nobody was there, but he could hear a dog in the distance.",
    ),
    "hibari_low_weather": one_voice(
        "hibari-low",
        "The weather will be cold and windy tomorrow morning.",
        "Please take a warm coat and an umbrella with you.",
    ),
    "slt_numbers": one_voice(
        "slt",
        "The train to Boston leaves at seven thirty in the evening.",
        "The ticket costs forty two dollars and fifty cents.",
    ),
    "rms_question": one_voice(
        "rms",
        "Can you tell me where the nearest hospital is?",
        "I think my brother has broken his arm.",
    ),
    "awb_library": one_voice(
        "awb",
        "My sister works in a large library near the river.",
        "She likes to read books about history and music.",
    ),
    "kal_computer": one_voice(
        "kal16",
        "The computer was too slow, so we bought a new one last week.",
    ),
    "espeak_us_garden": one_voice(
        "espeak-us",
        "We planted three apple trees behind the house.",
        "In the summer the children play in the garden all day.",
    ),
    "espeak_f2_meeting": one_voice(
        "espeak-f2",
        "The meeting on Friday was very long, and nothing was decided.",
    ),
    "espeak_held_m5": one_voice(
        "espeak-held",
        "Every student in the class must write a letter to the president.",
        "What would you like to drink with your dinner?",
    ),
    "long_mixed": list(zip(STORY_VOICES, STORY)),
    "long_hibari": one_voice("hibari", *STORY),
}
# With room noise the end-of-stream token comes in the padding; 4 s of zeros at the end bring it too.
OPTIONS = {
    "hibari_story": {"noise": -56},
    "slt_numbers": {"noise": -50},
    "rms_question": {"noise": -60},
    "espeak_us_garden": {"noise": -56},
    "long_mixed": {"noise": -58},
    "awb_library": {"noise": -56, "gap": 3.0},
    "hibari_low_weather": {"gap": 2.5},
    "kal_computer": {"tail": 4.0},
}


class Studio:
    def __init__(self, data):
        self.speaker = make_speech.Speaker(data, 9)
        self.g2p = G2P()
        self.rng = np.random.default_rng(4)

    def record(self, parts, gap=0.45, lead=0.3, tail=0.6, noise=None):
        """parts [(voice, sentence)], a gap behind each -> (audio, [[word, end in seconds]])"""
        chunks = [np.zeros(int(lead * RATE), np.float32)]
        at, word_ends = len(chunks[0]), []
        for voice, sentence in parts:
            spoken = self.speaker.say(VOICES[voice], sentence, self.g2p(sentence))
            assert spoken is not None, (voice, sentence)
            audio, ends = spoken
            audio = audio * (0.1 / np.sqrt((audio**2).mean()))
            audio *= min(1, 0.95 / abs(audio).max())
            words = zip(sentence.split(" "), ends)
            word_ends += [[word, round(at / RATE + float(end), 3)] for word, end in words]
            pause = np.zeros(int(gap * RATE), np.float32)
            chunks += [audio.astype(np.float32), pause]
            at += len(audio) + len(pause)
        chunks.append(np.zeros(int(tail * RATE), np.float32))
        audio = np.concatenate(chunks)
        if noise is not None:
            audio = audio + self.rng.standard_normal(len(audio)).astype(np.float32) * 10 ** (noise / 20)
        return audio, word_ends


def main():
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    data, out = map(Path, sys.argv[1:])
    out.mkdir(parents=True, exist_ok=True)
    with gzip.open(data / "train.tsv.gz", "rt", encoding="utf8") as file:
        trained = {line.split("\t")[1].lower() for line in file}
    known = [s for parts in RECORDINGS.values() for _, s in parts if s.lower() in trained]
    assert not known, f"sentences of the training text: {known}"

    studio, manifest = Studio(data), {}
    for name, parts in RECORDINGS.items():
        options = OPTIONS.get(name, {})
        audio, word_ends = studio.record(parts, **options)
        soundfile.write(out / f"{name}.wav", audio, RATE, subtype="PCM_16")
        gap = options.get("gap", 0.45)
        manifest[name] = {
            "text": " ".join(sentence for _, sentence in parts),
            "voices": sorted({voice for voice, _ in parts}),
            "seconds": round(len(audio) / RATE, 2),
            "room_noise_dbfs": options.get("noise"),
            "pause_s": gap,
            "tail_s": round(gap + options.get("tail", 0.6), 2),
            "word_ends": word_ends,
        }
    noise = (studio.rng.standard_normal(RATE * 8) * 0.003).astype(np.float32)
    soundfile.write(out / "noise_only.wav", noise, RATE, subtype="PCM_16")
    manifest["noise_only"] = {
        "text": "",
        "voices": [],
        "seconds": 8.0,
        "room_noise_dbfs": -50.5,
        "pause_s": 0,
        "tail_s": 8.0,
        "word_ends": [],
    }
    (out / "manifest.json").write_text(json.dumps(manifest, indent=1))
    print({name: entry["seconds"] for name, entry in manifest.items()})


if __name__ == "__main__":
    main()
