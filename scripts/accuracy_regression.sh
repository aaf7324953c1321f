#!/usr/bin/env bash
# Compares the tokens of the CPU, the GPU and the GPU's variants.
#
#     scripts/accuracy_regression.sh [MODEL_DIR [AUDIO [TOLERANCE]]]
#
# Without arguments: the shipped model and all its recordings. TOLERANCE (0.005) is the share of tokens that may differ
# from the CPU's; variants that only launch otherwise must agree with the GPU's default to the token. Fails if one is off.
#
# VOX_BENCH_SKIP_CPU=1    the GPU's default is the reference
# VOX_BENCH_SKIP_CUDA=1   only the CPU's variants

set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
case ${1-} in -h | --help) usage 0 ;; esac

model=${1:-$tiny_model}
if [ -n "${2-}" ]; then
    audio=("$2")
else
    audio=("$repository"/samples/*.wav)
fi
tolerance=${3:-0.005}
if ! at_most 0 "$tolerance" || ! at_most "$tolerance" 1; then
    die "a tolerance of $tolerance: expected 0 to 1"
fi

# compare NAME REFERENCE TOLERANCE [NAME=VALUE...] -- ARGUMENT...
compare() {
    local name=$1 reference=$2 allowed=$3 share
    shift 3
    if ! tokens "$scratch/tokens" "$@" "${audio[@]}"; then
        check "$name: failed to run" false
        return
    fi
    share=$(mismatch "$reference" "$scratch/tokens")
    check "$(printf '%-28s %s of the tokens differ, %s may' "$name" "$share" "$allowed")" at_most "$share" "$allowed"
}

reference=
if ! is_set "${VOX_BENCH_SKIP_CPU-}"; then
    reference=$scratch/cpu
    tokens "$reference" -- --device cpu "${audio[@]}" || die "the CPU failed"
    compare 'cpu, one thread' "$reference" 0 -- --device cpu --threads 1
    compare 'cpu, intervals of 0.5 s' "$reference" 0 -- --device cpu -I 0.5
fi
if ! is_set "${VOX_BENCH_SKIP_CUDA-}"; then
    tokens "$scratch/cuda" -- --device "$device" "${audio[@]}" || die "the GPU failed"
    [ -z "$reference" ] || compare cuda "$reference" "$tolerance" -- --device "$device"
    reference=${reference:-$scratch/cuda}
    compare 'cuda, plain' "$scratch/cuda" 0 VOX_CUDA_FAST=0 -- --device "$device"
    compare 'cuda, no graphs' "$scratch/cuda" 0 VOX_CUDA_GRAPHS=0 -- --device "$device"
    compare 'cuda, all logits' "$scratch/cuda" 0 VOX_CUDA_LOGITS_FUSED=0 -- --device "$device"
    compare 'cuda, no prefill' "$scratch/cuda" 0 VOX_DISABLE_CUDA_PREFILL=1 -- --device "$device"
    compare 'cuda, intervals of 0.08 s' "$scratch/cuda" 0 -- --device "$device" -I 0.08
    compare 'cuda, cublaslt' "$reference" "$tolerance" VOX_CUDA_GEMM=cublaslt -- --device "$device"
    for mode in 32F_FAST_16BF 32F_FAST_TF32 32F_FAST_16F; do
        compare "cuda, cublaslt $mode" "$reference" "$tolerance" \
            VOX_CUDA_GEMM=cublaslt VOX_CUDA_LT_COMPUTE=$mode -- --device "$device"
    done
    compare 'cuda, int8 logits' "$reference" "$tolerance" VOX_CUDA_LOGITS_INT8=1 -- --device "$device"
fi
[ -n "$reference" ] || die "nothing left to compare"
finish
