#!/usr/bin/env bash
# Sees that little state is enough on the GPU: a stream longer than every ring of keys and values, in the smallest pieces,
# gives the tokens of the whole file, and so it does read from a pipe.
#
#     scripts/validate_cuda_pipeline_compact.sh [MODEL_DIR [AUDIO [REPEATS]]]
#
# Without arguments: the shipped model, whose rings hold 15 and 20 s, and its longest recording, 75 s. With the real model
# the decoder's ring holds 11 minutes: give REPEATS (1) for the recording, a WAV file of 16 kHz and 16 bits, to be longer.

set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
case ${1-} in -h | --help) usage 0 ;; esac

model=${1:-$tiny_model}
audio=${2:-$repository/samples/long_mixed.wav}
repeats=${3:-1}

# samples without their header, one after the other
for ((i = 0; i < repeats; i++)); do
    tail -c +45 "$audio"
done >"$scratch/samples"
tokens "$scratch/whole" -- --device "$device" -I 60 --raw "$scratch/samples" || die "--device $device does not work"
check "$(wc -w <"$scratch/whole") tokens come out" test -s "$scratch/whole"

piped() {
    # shellcheck disable=SC2094 # nothing is written to what is read
    dd if="$scratch/samples" bs=1999 2>/dev/null | tokens "$scratch/tokens" "$@"
}
same() {
    local name=$1
    shift
    equal() { "$@" && cmp -s "$scratch/whole" "$scratch/tokens"; }
    check "$name" equal "$@"
}
same 'in pieces of 80 ms' tokens "$scratch/tokens" -- --device "$device" -I 0.08 --raw "$scratch/samples"
same 'through a pipe, 80 ms' piped -- --device "$device" -I 0.08 --stdin --raw
same 'through a pipe, 80 ms, plain launches' piped VOX_CUDA_FAST=0 -- --device "$device" -I 0.08 --stdin --raw
finish
