#!/usr/bin/env bash
# Times the CPU and the GPU on one recording, and checks that they say the same.
#
#     scripts/benchmark_backends.sh [MODEL_DIR [AUDIO]]
#
# Without arguments: the shipped model and its longest recording. Every row is the faster one of VOX_BENCH_RUNS runs (2),
# each a process of its own; what it says must be what the first row says (variants that compute otherwise excepted).
#
# VOX_BENCH_SKIP_CPU=1    no CPU
# VOX_BENCH_SKIP_CUDA=1   no GPU
# VOX_BENCH_CUDA_OPTS=1   the GPU's variants too
# VOX_BENCH_JSON=FILE     the table as JSON too

set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
case ${1-} in -h | --help) usage 0 ;; esac

model=${1:-$tiny_model}
audio=${2:-$repository/samples/long_mixed.wav}
runs=${VOX_BENCH_RUNS:-2}

# name | exact | variables | arguments
rows=()
is_set "${VOX_BENCH_SKIP_CPU-}" || rows+=('cpu|yes||--device cpu')
if ! is_set "${VOX_BENCH_SKIP_CUDA-}"; then
    rows+=("cuda|yes||--device $device")
    if is_set "${VOX_BENCH_CUDA_OPTS-}"; then
        rows+=("cuda, plain|yes|VOX_CUDA_FAST=0|--device $device"
            "cuda, no graphs|yes|VOX_CUDA_GRAPHS=0|--device $device"
            "cuda, all logits|yes|VOX_CUDA_LOGITS_FUSED=0|--device $device"
            "cuda, no prefill|yes|VOX_DISABLE_CUDA_PREFILL=1|--device $device"
            "cuda, no pool|yes|VOX_DISABLE_CUDA_MEMPOOL=1|--device $device"
            "cuda, int8 logits|no|VOX_CUDA_LOGITS_INT8=1|--device $device"
            "cuda, cublaslt|no|VOX_CUDA_GEMM=cublaslt|--device $device"
            "cuda, cublaslt bf16|no|VOX_CUDA_GEMM=cublaslt VOX_CUDA_LT_COMPUTE=32F_FAST_16BF|--device $device")
    fi
fi
((${#rows[@]})) || die "nothing left to time"

# field LABEL PATTERN: the number after or before words in what the program printed about its times.
field() {
    sed -nE "s/$1/\\1/p" "$scratch/timings" | head -n 1
}

printf '%-20s %8s %8s %8s %8s %8s %8s %8s %8s\n' '' load encoder decoder prefill ms/step wall xRT GB/s
json=
for row in "${rows[@]}"; do
    IFS='|' read -r name exact variables arguments <<<"$row"
    best=
    for ((run = 0; run < runs; run++)); do
        # shellcheck disable=SC2086 # lists of words
        if ! env VOX_PRINT_TIMINGS=1 $variables "$voxtral" -d "$model" --tokens $arguments "$audio" \
            >"$scratch/tokens" 2>"$scratch/timings"; then
            cat "$scratch/timings" >&2
            die "$name failed"
        fi
        wall=$(field 'Wall transcribe: ([0-9]+) ms.*')
        [ -n "$wall" ] || die "no times were printed"
        if [ -z "$best" ] || ((wall < best)); then
            best=$wall
            load=$(field 'Model load: ([0-9]+) ms.*')
            encoder=$(field 'Encoder: .*\(([0-9]+) ms\).*')
            decoder=$(field 'Decoder: .* in ([0-9]+) ms.*')
            prefill=$(field '.*prefill ([0-9]+) ms.*')
            step=$(field '.*\+ ([0-9.]+) ms\/step.*')
            speed=$(field '.* ([0-9.]+) xRT.*')
            rate=$(field '.* ([0-9.]+) GB\/s.*')
        fi
    done
    [ -e "$scratch/expected" ] || cp "$scratch/tokens" "$scratch/expected"
    wrong=$(mismatch "$scratch/expected" "$scratch/tokens")
    note=
    if ! at_most "$wrong" 0; then
        note=" tokens differ: $wrong"
        [ "$exact" = no ] || failures=$((failures + 1))
    fi
    printf '%-20s %8s %8s %8s %8s %8s %8s %8s %8s%s\n' \
        "$name" "$load" "$encoder" "$decoder" "$prefill" "$step" "$best" "$speed" "$rate" "$note"
    json+="${json:+,}
  {\"name\": \"$name\", \"load_ms\": $load, \"encoder_ms\": $encoder, \"decoder_ms\": $decoder, \"prefill_ms\": $prefill,\
 \"ms_per_step\": $step, \"wall_ms\": $best, \"xrt\": $speed, \"gb_per_s\": $rate, \"token_mismatch\": $wrong}"
done
[ -z "${VOX_BENCH_JSON-}" ] || printf '[%s\n]\n' "$json" >"$VOX_BENCH_JSON"
finish
