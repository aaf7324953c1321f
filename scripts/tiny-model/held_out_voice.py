"""Render testing sentences with a natural voice that was never trained on: Piper's en_US-joe-medium.

usage: held_out_voice.py VOICE_DIR TEST_JSON OUT_NPZ N

VOICE_DIR has en_US-joe-medium.onnx and its .json; TEST_JSON is that of pack_data.py. Writes the first N sentences with
0.3 s before and 0.5 s behind at -20 dB: audio a [N, samples] int16, texts s. Needs espeak-ng for the phonemes.
"""

import ctypes
import json
import re
import sys
import unicodedata
from pathlib import Path

import numpy as np
import onnxruntime

from engines import to_16k


class Joe:
    """espeak-ng's phonemes, then a network of the VITS kind."""

    RATE = 22050
    NOISE, NOISE_WIDTH = 0.667, 0.8

    def __init__(self, folder):
        network = str(Path(folder) / "en_US-joe-medium.onnx")
        self.ids_of = json.loads(Path(network + ".json").read_text())["phoneme_id_map"]
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 2
        self.session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        self.espeak = ctypes.CDLL("libespeak-ng.so.1")
        self.espeak.espeak_Initialize(2, 0, None, 0x8000)
        self.espeak.espeak_TextToPhonemes.restype = ctypes.c_char_p
        self.espeak.espeak_TextToPhonemes.argtypes = (ctypes.POINTER(ctypes.c_char_p), ctypes.c_int, ctypes.c_int)
        self.espeak.espeak_SetVoiceByName(b"en-us")

    def phonemes(self, text):
        """Clause by clause, with the punctuation kept."""
        out = ""
        for clause in re.findall(r"[^,.?!]+[,.?!]?", text):
            rest = ctypes.c_char_p(clause.strip(" ,.?!").encode())
            spoken = ""
            while rest.value:
                spoken += self.espeak.espeak_TextToPhonemes(ctypes.byref(rest), 1, 2).decode()
            out += spoken.strip() + (clause[-1] if clause[-1] in ",.?!" else "") + " "
        return unicodedata.normalize("NFD", out.strip())

    def synth(self, text):
        ids = [1, 0]
        for symbol in self.phonemes(text):
            if symbol in self.ids_of:
                ids += [*self.ids_of[symbol], 0]
        ids.append(2)
        inputs = {
            "input": np.asarray([ids], np.int64),
            "input_lengths": np.asarray([len(ids)], np.int64),
            "scales": np.asarray([self.NOISE, 1.0, self.NOISE_WIDTH], np.float32),
        }
        return to_16k(self.session.run(None, inputs)[0].reshape(-1), self.RATE)


def main():
    if len(sys.argv) != 5:
        sys.exit(__doc__)
    voice = Joe(sys.argv[1])
    test = json.loads(Path(sys.argv[2]).read_text())[: int(sys.argv[4])]
    clips = []
    for sentence, _ in test:
        audio = voice.synth(sentence)
        audio = audio * (0.1 / (np.sqrt((audio**2).mean()) + 1e-6))
        audio *= min(1, 0.99 / abs(audio).max())
        clips.append((np.concatenate([np.zeros(4800), audio, np.zeros(8000)]) * 32767).astype(np.int16))
    longest = max(map(len, clips))
    rows = np.zeros((len(clips), longest + -longest % 1280), np.int16)
    for row, clip in zip(rows, clips):
        row[: len(clip)] = clip
    np.savez(sys.argv[3], a=rows, s=json.dumps([sentence for sentence, _ in test]))


if __name__ == "__main__":
    main()
