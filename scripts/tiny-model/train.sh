#!/bin/bash
# Makes speech and trains with it, side by side, on one machine with a GPU.
#
# usage: train.sh PACK_DIR WORK_DIR SECONDS [train_tiny.py options]
#
# PACK_DIR is what prepare.sh made. Results: WORK_DIR/out (model/, device_results.json, log.txt, loss.json) and
# WORK_DIR/eval, the evaluation sets. WORKERS in the environment: how many processes make speech, one less than the
# machine has cores unless given.
set -euo pipefail
[ $# -ge 3 ] || {
    sed -n '2,/^set/s/^# \{0,1\}//p' "$0"
    exit 2
}
pack=$(cd "$1" && pwd)
mkdir -p "$2"/{shards,eval}
work=$(cd "$2" && pwd)
seconds=$3
shift 3
export PYTHONUNBUFFERED=1 TINY_LIB=$pack/lib OMP_NUM_THREADS=1
cd "$pack"
python3 make_speech.py eval "$work/eval" data 64 >"$work/eval.log" 2>&1 &
nice -n 15 python3 make_speech.py rows "$work/shards" "${WORKERS:-$(($(nproc) - 1))}" data >"$work/speech.log" 2>&1 &
speech=$!
trap 'kill "$speech" 2>/dev/null || true' EXIT
python3 train_tiny.py --shards "$work/shards" --data data --out "$work/out" --eval-sets "$work/eval" \
    --seconds "$seconds" "$@"
