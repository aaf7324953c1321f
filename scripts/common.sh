# What the scripts that run the program have in common; sourced by them.
# shellcheck shell=bash disable=SC2034,SC2154 # variables of the sourcing script, which sets `model`
#
# VOXTRAL             the program (built in target/release unless it is there)
# VOX_BENCH_DEVICE    what stands for the GPU (cuda), as in cuda:1

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
voxtral=${VOXTRAL:-$repository/target/release/voxtral}
device=${VOX_BENCH_DEVICE:-cuda}
tiny_model=$repository/samples/tiny-model
failures=0

die() {
    printf '%s: %s\n' "$(basename "$0")" "$*" >&2
    exit 2
}

# usage STATUS: prints the comment at the top of the calling script, and ends it.
usage() {
    sed -n '2,/^$/s/^# \{0,1\}//p' "$0"
    exit "$1"
}

[ -x "$voxtral" ] || (cd "$repository" && cargo build --release --quiet) || die "cannot build the program"
command -v awk >/dev/null || die "awk is needed"

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

# check NAME COMMAND...: says whether it worked, and counts what did not.
check() {
    local name=$1
    shift
    if "$@"; then
        printf 'ok    %s\n' "$name"
    else
        printf 'FAIL  %s\n' "$name"
        failures=$((failures + 1))
    fi
}

# tokens OUTPUT [NAME=VALUE...] -- ARGUMENT...: the program's token ids, with these variables set.
tokens() {
    local output=$1 variables=()
    shift
    while [ "$1" != -- ]; do
        variables+=("$1")
        shift
    done
    shift
    env ${variables[@]+"${variables[@]}"} "$voxtral" -d "$model" --silent --tokens "$@" >"$output"
}

# mismatch REFERENCE OTHER: insertions, deletions and replacements that make one file's tokens of the other's, as a share
# of the reference's. Lines are inputs and are compared each with its own.
mismatch() {
    awk '
        FNR == NR { reference[FNR] = $0; lines = FNR; next }
        { other[FNR] = $0; if (FNR > lines) lines = FNR }
        function edits(a, b,    n, m, x, y, i, j, above, diagonal, row, best) {
            if (a == b) return 0
            n = split(a, x, " "); m = split(b, y, " ")
            for (j = 0; j <= m; j++) row[j] = j
            for (i = 1; i <= n; i++) {
                diagonal = row[0]; row[0] = i
                for (j = 1; j <= m; j++) {
                    above = row[j]
                    best = diagonal + (x[i] != y[j])
                    if (above + 1 < best) best = above + 1
                    if (row[j - 1] + 1 < best) best = row[j - 1] + 1
                    diagonal = above; row[j] = best
                }
            }
            return row[m]
        }
        END {
            for (i = 1; i <= lines; i++) {
                total += split(reference[i], unused, " ")
                wrong += edits(reference[i], other[i])
            }
            if (total == 0) { print 1; exit }
            printf "%.6f\n", wrong / total
        }' "$1" "$2"
}

# is_set VALUE: whether a variable with this value is on.
is_set() {
    case $1 in '' | 0*) return 1 ;; esac
}

# at_most A B: whether the number A is at most B.
at_most() {
    awk -v a="$1" -v b="$2" 'BEGIN { exit !(a + 0 <= b + 0) }'
}

# Ends the script: 0 if nothing failed.
finish() {
    if ((failures)); then
        printf '%d failed\n' "$failures"
        exit 1
    fi
    printf 'all well\n'
}
