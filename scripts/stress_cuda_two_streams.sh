#!/usr/bin/env bash
# Several streams on one GPU at once: each must say what it says alone.
#
#     scripts/stress_cuda_two_streams.sh [MODEL_DIR [AUDIO [STREAMS]]]
#
# Without arguments: the shipped model, a recording, two streams. They share one copy of the weights in one process, and
# then the GPU as so many processes.

set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
case ${1-} in -h | --help) usage 0 ;; esac

model=${1:-$tiny_model}
audio=${2:-$repository/samples/slt_numbers.wav}
streams=${3:-2}
case $streams in *[!0-9]* | '' | 0*) die "$streams streams: expected a number" ;; esac

tokens "$scratch/alone" -- --device "$device" "$audio" || die "--device $device does not work"
check "$(wc -w <"$scratch/alone") tokens come out" test -s "$scratch/alone"

inputs=()
for ((i = 0; i < streams; i++)); do
    inputs+=("$audio")
    cat "$scratch/alone"
done >"$scratch/expected"
together() {
    tokens "$scratch/together" -- --device "$device" "${inputs[@]}" &&
        cmp -s "$scratch/expected" "$scratch/together"
}
check "$streams streams in one process" together

jobs=()
for ((i = 0; i < streams; i++)); do
    tokens "$scratch/process-$i" -- --device "$device" "$audio" &
    jobs+=($!)
done
for ((i = 0; i < streams; i++)); do
    ended() { wait "${jobs[i]}" && cmp -s "$scratch/alone" "$scratch/process-$i"; }
    check "process $((i + 1)) of $streams" ended
done
finish
