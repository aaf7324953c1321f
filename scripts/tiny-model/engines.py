"""Three free speech synthesizers with word end times: espeak-ng, flite and hibari.

Each `synth` returns (float32 audio at 16 kHz, [end of each space-separated word in seconds]), or None if the engine
cannot say the text or its words do not fit. The libraries come from the system, or from the folder in TINY_LIB (made by
prepare.sh) on a machine where they are not installed; libflite_words.so is looked for beside this file otherwise.
"""

import ctypes
import json
import os
from itertools import pairwise
from math import gcd
from pathlib import Path

import numpy as np
from scipy.signal import resample_poly

RATE = 16000
LIB = os.environ.get("TINY_LIB", "")


def to_16k(audio, rate):
    if rate == RATE:
        return audio
    divisor = gcd(RATE, rate)
    return resample_poly(audio, RATE // divisor, rate // divisor).astype(np.float32)


def tighten(audio, ends, starts=None):
    """Pull each word's end back over trailing silence (38 dB under the loudest 10 ms), not past the word's start."""
    if len(audio) < 400:
        return ends
    hop = 160
    n = len(audio) // hop
    energy = np.sqrt((audio[: n * hop].reshape(n, hop) ** 2).mean(1))
    last_loud = np.maximum.accumulate(np.where(energy > energy.max() * 0.0126, np.arange(n), -1))
    out, previous = [], 0.0
    for i, end in enumerate(ends):
        loud = last_loud[min(int(end * RATE / hop), n - 1)]
        tight = min(end, (loud + 1) * hop / RATE) if loud >= 0 else end
        lowest = starts[i] + 0.04 if starts is not None else previous
        previous = max(tight, lowest, previous)
        out.append(previous)
    return out


class Espeak:
    """espeak-ng, by its C interface. The numbers are those of speak_lib.h."""

    AUDIO_OUTPUT_SYNCHRONOUS = 2
    INITIALIZE_DONT_EXIT = 0x8000
    EVENT_LIST_TERMINATED, EVENT_WORD = 0, 1
    RATE, PITCH, RANGE = 1, 3, 4
    CHARS_UTF8, ENDPAUSE = 1, 0x1000

    class Event(ctypes.Structure):
        class Id(ctypes.Union):
            _fields_ = (("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8))

        _fields_ = (
            ("type", ctypes.c_int),
            ("unique_identifier", ctypes.c_uint),
            ("text_position", ctypes.c_int),
            ("length", ctypes.c_int),
            ("audio_position", ctypes.c_int),
            ("sample", ctypes.c_int),
            ("user_data", ctypes.c_void_p),
            ("id", Id),
        )

    def __init__(self):
        for name in ("libsonic.so.0", "libpcaudio.so.0"):
            if LIB and os.path.exists(os.path.join(LIB, name)):
                ctypes.CDLL(os.path.join(LIB, name), mode=ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(os.path.join(LIB, "libespeak-ng.so.1"))
        data = LIB.encode() if LIB else None  # LIB/espeak-ng-data
        self.rate = self.lib.espeak_Initialize(self.AUDIO_OUTPUT_SYNCHRONOUS, 0, data, self.INITIALIZE_DONT_EXIT)
        assert self.rate > 0, f"espeak-ng does not start: {self.rate}"
        self.voice = None
        self.chunks, self.words = [], []

        def on_audio(samples, n, events):
            if n > 0 and samples:
                self.chunks.append(ctypes.string_at(samples, n * 2))
            i = 0
            while events[i].type != self.EVENT_LIST_TERMINATED:
                if events[i].type == self.EVENT_WORD:
                    self.words.append((events[i].text_position, events[i].audio_position))
                i += 1
            return 0

        callback_type = ctypes.CFUNCTYPE(
            ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(self.Event)
        )
        self.callback = callback_type(on_audio)  # must live as long as the library may call it
        self.lib.espeak_SetSynthCallback(self.callback)
        self.lib.espeak_Synth.argtypes = (
            ctypes.c_char_p,
            ctypes.c_size_t,
            ctypes.c_uint,
            ctypes.c_int,
            ctypes.c_uint,
            ctypes.c_uint,
            ctypes.c_void_p,
            ctypes.c_void_p,
        )

    def synth(self, text, voice="en-us+m3", rate=165, pitch=50, pitch_range=50):
        if voice != self.voice:
            if self.lib.espeak_SetVoiceByName(voice.encode()) != 0:
                return None
            self.voice = voice
        for parameter, value in ((self.RATE, rate), (self.PITCH, pitch), (self.RANGE, pitch_range)):
            self.lib.espeak_SetParameter(parameter, int(value), 0)
        self.chunks, self.words = [], []
        content = text.encode()
        self.lib.espeak_Synth(content, len(content) + 1, 0, 0, 0, self.CHARS_UTF8 | self.ENDPAUSE, None, None)
        audio = np.frombuffer(b"".join(self.chunks), np.int16).astype(np.float32) / 32768
        if len(audio) < 2000:
            return None

        # The start of each word is the first event within it; a word without one starts with the word before.
        positions, position = [], 0
        for word in text.split(" "):
            positions.append(position)
            position += len(word) + 1
        known = [None] * len(positions)
        for text_position, audio_ms in self.words:
            k = int(np.searchsorted(positions, text_position - 1, side="right")) - 1
            if 0 <= k < len(known) and known[k] is None:
                known[k] = audio_ms / 1000
        if known[0] is None:
            known[0] = 0.0
        ends, starts = [], []
        for i, start in enumerate(known):
            ends.append(next((s for s in known[i + 1 :] if s is not None), len(audio) / self.rate))
            starts.append(start if start is not None else starts[-1])
        if any(b < a - 1e-6 for a, b in pairwise(ends)):
            return None
        audio = to_16k(audio, self.rate)
        return audio, tighten(audio, ends, starts)


class Flite:
    """flite, by flite_words.c."""

    VOICES = ("slt", "rms", "awb", "kal16")
    MAX_WORDS = 256

    def __init__(self):
        names = ["libasound.so.2", "libflite.so.1", "libflite_cmulex.so.1", "libflite_usenglish.so.1"]
        for name in names + [f"libflite_cmu_us_{voice}.so.1" for voice in self.VOICES]:
            if LIB:
                ctypes.CDLL(os.path.join(LIB, name), mode=ctypes.RTLD_GLOBAL)
        self.lib = ctypes.CDLL(os.path.join(LIB or Path(__file__).resolve().parent, "libflite_words.so"))
        self.lib.flite_words_init()
        self.samples = np.empty(RATE * 60, np.int16)
        self.ends = np.empty(self.MAX_WORDS, np.float32)

    def synth(self, text, voice="slt", stretch=1.0, f0=1.0):
        n_tokens, rate = ctypes.c_int(), ctypes.c_int()
        n = self.lib.flite_words_synth(
            self.VOICES.index(voice),
            text.encode(),
            ctypes.c_float(stretch),
            ctypes.c_float(f0),
            self.samples.ctypes.data_as(ctypes.c_void_p),
            len(self.samples),
            self.ends.ctypes.data_as(ctypes.c_void_p),
            self.MAX_WORDS,
            ctypes.byref(n_tokens),
            ctypes.byref(rate),
        )
        n_words = len(text.split(" "))
        if n <= 2000 or n_tokens.value != n_words:
            return None
        ends = self.ends[:n_words].tolist()
        if min(ends) < 0:
            return None
        audio = to_16k(self.samples[:n].astype(np.float32) / 32768, rate.value)
        return audio, tighten(audio, ends)


class Hibari:
    """hibari's network, with its duration predictor read out for the word ends, and with pitch, formants and pace free.

    The signal is made at 16 kHz directly: the first 401 of 601 bins, transform size 800, hop 200.
    """

    FFT, HOP, BINS = 800, 200, 401
    PUNCTUATION = ',.?!;:—…"“” '

    def __init__(self, network, vocab, dsp):
        """The network with durations and the vocabulary are files of pack_data.py; dsp is its module hibari_dsp."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self.session = onnxruntime.InferenceSession(network, options, providers=["CPUExecutionProvider"])
        self.vocab = json.loads(Path(vocab).read_text(encoding="utf8"))
        self.symbols = {v: k for k, v in self.vocab.items()}
        self.dsp = dsp
        dsp.N_FFT, dsp.HOP, dsp.SR = self.FFT, self.HOP, RATE
        dsp.WIN = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(self.FFT) / self.FFT)).astype(np.float32)
        dsp.WIN_SRC = dsp.WIN / self.HOP

    def synth(self, phonemes, speed=1.0, f0=1.0, warp=1.0, seed=0):
        ids, last_ids = [0], []
        for symbol in phonemes:
            if symbol == " ":
                last_ids.append(len(ids) - 1)
            if symbol in self.vocab:
                ids.append(self.vocab[symbol])
        last_ids.append(len(ids) - 1)
        ids.append(0)
        *spectra, f0_curve, ends = self.session.run(
            None, {"ids": np.asarray([ids], np.int64), "speed": np.asarray([speed], np.float32)}
        )
        ends = ends.reshape(-1)
        word_ends = []
        for k in last_ids:  # a word ends with its last sound, not with the punctuation behind it
            while k > 0 and self.symbols[ids[k]] in self.PUNCTUATION:
                k -= 1
            word_ends.append(float(ends[k]))
        bins = np.round(np.arange(self.BINS) / warp)
        bins = np.minimum(bins, spectra[0].shape[1] - 1).astype(np.int64)
        warped = [np.ascontiguousarray(spectrum[0][bins]) for spectrum in spectra]
        f0_curve = np.ascontiguousarray(f0_curve[0] * f0)
        audio = (self.dsp.synth(*warped, f0_curve, np.random.default_rng(seed)) * (2 / 3)).astype(np.float32)
        seconds_per_step = len(audio) / RATE / max(float(ends[-1]), 1)
        return audio, tighten(audio, [end * seconds_per_step for end in word_ends])
