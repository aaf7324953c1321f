#!/usr/bin/env bash
# Sees that the GPU works: every way to launch gives the same tokens, and they are the CPU's.
#
#     scripts/validate_cuda.sh [MODEL_DIR [AUDIO [TOLERANCE]]]
#
# Without arguments: the shipped model and a recording. TOLERANCE (0) is the share of tokens that may differ from the
# CPU's, which takes its time with the real model: VOX_BENCH_SKIP_CPU=1 leaves it out.

set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
case ${1-} in -h | --help) usage 0 ;; esac

model=${1:-$tiny_model}
audio=${2:-$repository/samples/hibari_intro.wav}
tolerance=${3:-0}
"$voxtral" -d "$model" --device "$device" --silent "$audio" >"$scratch/text" || die "--device $device does not work"
check 'text comes out' test -s "$scratch/text"
printf '      %s\n' "$(head -c 200 "$scratch/text")"
tokens "$scratch/cuda" -- --device "$device" "$audio" || die "--tokens does not work"

if ! is_set "${VOX_BENCH_SKIP_CPU-}"; then
    tokens "$scratch/cpu" -- --device cpu "$audio" || die "the CPU failed"
    share=$(mismatch "$scratch/cpu" "$scratch/cuda")
    check "$share of the tokens differ from the CPU's, $tolerance may" at_most "$share" "$tolerance"
fi

# same NAME [NAME=VALUE...] -- ARGUMENT...: whether the tokens are the default's.
same() {
    local name=$1
    shift
    equal() { tokens "$scratch/tokens" "$@" && cmp -s "$scratch/cuda" "$scratch/tokens"; }
    check "$name" equal "$@"
}
same 'again' -- --device "$device" "$audio"
for off in VOX_CUDA_FAST VOX_CUDA_GRAPHS VOX_CUDA_LOGITS_FUSED VOX_CUDA_MEMPOOL; do
    same "$off=0" "$off=0" -- --device "$device" "$audio"
done
same 'without prefill' VOX_DISABLE_CUDA_PREFILL=1 -- --device "$device" "$audio"
same 'page-locked weights' VOX_CUDA_HOSTREG_GIB=1 -- --device "$device" "$audio"
same 'weights streamed from the host' VOX_CUDA_BF16_CACHE_GIB=0.001 -- --device "$device" "$audio"
same 'intervals of 0.08 s' -- --device "$device" -I 0.08 "$audio"
same 'intervals of 10 s' -- --device "$device" -I 10 "$audio"
same 'chosen by itself' -- "$audio"
finish
