#!/usr/bin/env bash
# Quick check of a fresh build: whole files, small intervals, pipes and several files must give the same text.
#
#     scripts/runtest.sh                            # the tiny model and the shipped recordings
#     scripts/runtest.sh MODEL_DIR AUDIO...         # the real model, your recordings
#
# VOXTRAL names the program (target/release/voxtral), VOXTRAL_OPTIONS more options, such as "--device cuda".
set -euo pipefail

root=$(dirname "$0")/..
program=${VOXTRAL:-$root/target/release/voxtral}
read -r -a options <<<"${VOXTRAL_OPTIONS:-}"
model=${1:-$root/samples/tiny-model}
shift || true
shipped=()
if (($# == 0)); then
    shipped=(hibari_intro kal_computer espeak_us_garden) # the tiny model makes no mistake in these
    set -- "${shipped[@]/#/$root/samples/}"
    set -- "${@/%/.wav}"
fi
[ -x "$program" ] || { echo "$program is not there: cargo build --release" >&2 && exit 2; }

failures=0
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

run() { "$program" -d "$model" --silent "${options[@]}" "$@"; }

# same NAME EXPECTED_FILE GOT_FILE
same() {
    if cmp -s "$2" "$3"; then
        echo "ok    $1"
    else
        echo "FAIL  $1"
        diff "$2" "$3" | sed 's/^/      /' || true
        failures=$((failures + 1))
    fi
}

words() { tr -d '[:punct:]' <"$1" | tr '[:upper:]' '[:lower:]'; }

for audio in "$@"; do
    name=$(basename "$audio")
    alone="$work/$name.alone"
    run "$audio" >"$alone"
    [ -s "$alone" ] || { echo "FAIL  $name: no text" && failures=$((failures + 1)); }
    cat "$alone" >>"$work/all.alone"
    for interval in 0.08 0.5 60; do
        run -I "$interval" "$audio" >"$work/got"
        same "$name: -I $interval" "$alone" "$work/got"
    done
    run --stdin < <(cat "$audio") >"$work/got"
    same "$name: as a file from a pipe" "$alone" "$work/got"
done

run "$@" >"$work/got"
same "$# files in one run" "$work/all.alone" "$work/got"

for name in "${shipped[@]}"; do
    words "$root/samples/$name.txt" >"$work/said"
    words "$work/$name.wav.alone" >"$work/heard"
    same "$name.wav: the words that were said" "$work/said" "$work/heard"
    tail -c +45 "$root/samples/$name.wav" | run --stdin --raw >"$work/got"
    same "$name.wav: raw samples from a pipe" "$work/$name.wav.alone" "$work/got"
done

status=0
run "$work/missing.wav" >"$work/got" 2>"$work/error" || status=$?
echo 1 >"$work/expected"
echo "$status" >"$work/got"
same "a missing file ends with status 1" "$work/expected" "$work/got"

((failures == 0)) || { echo "$failures failed" && exit 1; }
echo "all well"
