#!/usr/bin/env bash
# Runs the program over a second of live audio, and the GPU tests one by one, under compute-sanitizer.
#
#     scripts/sanitize_cuda.sh [TOOL[,TOOL...] [TEST_PROGRAM...]]
#
# Without arguments: memcheck, initcheck, synccheck and racecheck, and all tests that run on a GPU, which are built.
# racecheck takes up to ten minutes for a test of a kernel, and leaves out programs other than the library's unless they
# are named: it keeps tens of GB of so many passes.
#
# COMPUTE_SANITIZER       the program
# SANITIZE_SECONDS        after which a test is stopped, which then counts as failed (600)
# SANITIZE_JOBS           tests at once (1); beside others the test of a thousand files may fail, which counts the GPU's memory

set -euo pipefail
# shellcheck source=scripts/common.sh
source "$(dirname "$0")/common.sh"
case ${1-} in -h | --help) usage 0 ;; esac

sanitizer=${COMPUTE_SANITIZER:-compute-sanitizer}
seconds=${SANITIZE_SECONDS:-600}
jobs=${SANITIZE_JOBS:-1}
command -v "$sanitizer" >/dev/null || die "compute-sanitizer is needed: it comes with the CUDA toolkit"
for number in "$seconds" "$jobs"; do
    case $number in *[!0-9]* | '' | 0*) die "$number: expected a number" ;; esac
done

IFS=, read -ra tools <<<"${1:-memcheck,initcheck,synccheck,racecheck}"
for tool in "${tools[@]}"; do
    case $tool in memcheck | initcheck | synccheck | racecheck) ;; *) die "$tool: no tool of compute-sanitizer" ;; esac
done
programs=("${@:2}")
named=${#programs[@]}
if ((named == 0)); then
    built=$(cd "$repository" && cargo test --release --features gpu-tests --lib --test cuda --test cuda_sessions \
        --test schedules --no-run --message-format=json) || die "cannot build the tests"
    # not the program itself, which is built with them
    mapfile -t programs < <(grep -v '"kind":\["bin"\]' <<<"$built" | grep -o '"executable":"[^"]*"' | cut -d'"' -f4)
    ((${#programs[@]} > 0)) || die "cargo built no tests"
fi

# under TOOL NAME COMMAND...: runs it, the second of audio on stdin, and says how that went.
under() {
    local tool=$1 name=$2 log status=0 start=$SECONDS
    shift 2
    log=$(mktemp -p "$scratch")
    timeout -k 10 "$seconds" "$sanitizer" --tool "$tool" --error-exitcode 9 "$@" <"$scratch/second" >"$log" 2>&1 &
    # shellcheck disable=SC2064 # of this process
    trap "kill $! 2>/dev/null" TERM
    wait $! || status=$?
    if grep -q 'test result: ok' "$log" && grep -q 'terminated before first instrumented API call' "$log"; then
        printf 'ok    %s %s, which asks nothing of a GPU\n' "$tool" "$name"
        return
    fi
    if ((status == 0)) && grep -q 'SUMMARY: 0 ' "$log"; then
        printf 'ok    %s %s, %d s\n' "$tool" "$name" $((SECONDS - start))
        return
    fi
    ((status == 124 || status == 137)) && printf 'stopped after %d s\n' "$seconds" >>"$log"
    printf 'FAIL  %s %s\n%s\n' "$tool" "$name" "$(tail -30 "$log")"
    echo "$name" >>"$scratch/failed"
}
# What is under way ends with this script.
end() {
    # shellcheck disable=SC2046 # several
    kill $(jobs -rp) 2>/dev/null || true
    wait
    rm -rf "$scratch"
}
trap end EXIT
trap 'exit 130' INT TERM
# apart COMMAND...: beside at most so many others.
apart() {
    while (($(jobs -rp | wc -l) >= jobs)); do wait -n || true; done
    "$@" &
}

# a second of samples without their header
head -c 32044 "$repository/samples/hibari_intro.wav" | tail -c +45 >"$scratch/second"
live=("$voxtral" -d "$tiny_model" --device "$device" --silent -I 0.1 --stdin --raw)
for tool in "${tools[@]}"; do apart under "$tool" 'live audio' "${live[@]}"; done
for program in "${programs[@]}"; do
    listed=$("$program" --list --format terse) || die "$program does not list its tests"
    left_out=$("$program" --list --format terse --ignored) || die "$program does not list its tests"
    tests=$(grep ': test$' <<<"$listed" | grep -vxF "$left_out" | sed 's/: test$//') || die "$program has no tests"
    # of the library, what runs on a GPU
    library=$(grep '^backend::cuda::' <<<"$tests") || library=
    tests=${library:-$tests}
    for tool in "${tools[@]}"; do
        if [[ $tool = racecheck && -z $library ]] && ((named == 0)); then
            printf -- '-     racecheck of %s, left out\n' "$program"
            continue
        fi
        for test in $tests; do apart under "$tool" "$test" "$program" --exact "$test" --test-threads 1; done
    done
done
wait
[ ! -e "$scratch/failed" ] || failures=$(wc -l <"$scratch/failed")
finish
