"""Collect what the training machine needs to make speech and train without hibari's package.

usage: pack_data.py DATA_DIR HIBARI_DIR OUT_DIR

DATA_DIR has train.json and test.json (make_text.py) and tekken.json (bpe.py); HIBARI_DIR is the hibari Python package,
which must be importable too. Writes to OUT_DIR:
  train.tsv.gz      source, sentence and hibari's phonemes (empty where they do not fit the words) of each sentence
  test.json         [sentence, phonemes] of the testing sentences
  hibari_dur.onnx   hibari's network with one further output, the running sum of the phoneme durations (word ends)
  hibari_dsp.py, hibari_vocab.json, tekken.json   copies
"""

import gzip
import json
import multiprocessing
import shutil
import sys
from pathlib import Path

import onnx
from hibari.g2p import G2P

_g2p = None


def start_worker():
    global _g2p
    _g2p = G2P()


def phonemes(sentence):
    """hibari's phonemes, with as many words as the sentence; otherwise an empty string."""
    try:
        result = _g2p(sentence)
    except Exception:  # noqa: BLE001  (whatever it cannot say is left out)
        return ""
    return result if len(result.split(" ")) == len(sentence.split(" ")) else ""


def main():
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    data, hibari, out = map(Path, sys.argv[1:])
    train = json.loads((data / "train.json").read_text())
    test = json.loads((data / "test.json").read_text())
    test = [text for source, text in test if source not in ("salad", "bible") and len(text.split()) >= 4]
    with multiprocessing.Pool(initializer=start_worker) as pool:
        train_phonemes = pool.map(phonemes, [text for _, text in train], chunksize=1000)
        test_phonemes = pool.map(phonemes, test, chunksize=100)
    rows = sorted((source, text, p) for (source, text), p in zip(train, train_phonemes, strict=True))
    with gzip.open(out / "train.tsv.gz", "wt", encoding="utf8", compresslevel=9) as file:
        file.writelines("\t".join(row) + "\n" for row in rows)
    test_rows = [(text, p) for text, p in zip(test, test_phonemes, strict=True) if p]
    (out / "test.json").write_text(json.dumps(test_rows, ensure_ascii=False))
    print(f"{len(rows)} sentences for training, {sum(not p for _, _, p in rows)} of them without phonemes;")
    print(f"{len(test_rows)} for testing")

    network = onnx.load(hibari / "assets/hibari.onnx")
    durations = onnx.helper.make_tensor_value_info("/CumSum_output_0", onnx.TensorProto.INT64, None)
    network.graph.output.append(durations)
    onnx.save(network, out / "hibari_dur.onnx")
    shutil.copy(hibari / "dsp.py", out / "hibari_dsp.py")
    shutil.copy(hibari / "assets/vocab.json", out / "hibari_vocab.json")
    shutil.copy(data / "tekken.json", out)


if __name__ == "__main__":
    main()
