#!/bin/sh
# Fetches the model from Hugging Face, verifies it and resumes what was interrupted. `download_model.sh --help` says how.
#
# Invariants:
# - A file gets its final name only after its size and content were checked against what the repository says: the Git LFS
#   pointer (size and SHA-256) for large files, the repository's raw text for small ones.
# - HF_TOKEN goes to the endpoint's own scheme, host and port only. Requests that carry it never follow a redirect on
#   their own; it is handed over in a file that only the user can read, so no process list shows it.
set -u
export LC_ALL=C

repository=mistralai/Voxtral-Mini-4B-Realtime-2602
files='params.json tekken.json consolidated.safetensors' # the weights last: without them a directory is no model
max_tries=6                                              # in a row without any new byte
max_redirects=10
max_raw_bytes=67108864 # a raw reply larger than this is neither a pointer nor a small file

usage() {
    cat <<END
Downloads $repository (8.9 GB) and verifies it.

Usage: download_model.sh [OPTIONS]

Options:
  -d, --dir DIR        where to put the model [default: ./voxtral-model]
      --revision REV   branch, tag or commit of the repository [default: main]
      --verify-only    download no model file, only check those that are there
  -h, --help           print this help

Environment:
  HF_TOKEN              access token, if the server asks for one
  HF_ENDPOINT           server [default: https://huggingface.co]
  VOX_DOWNLOAD_TOOL     curl or wget [default: curl if there is one]
  VOX_DOWNLOAD_BACKOFF  seconds before the first new try, doubled for each further one [default: 2]

An interrupted download continues where it stopped when the script is started again.
END
}

say() { printf '%s\n' "$*"; }
note() { printf 'download_model.sh: %s\n' "$*" >&2; }
die() {
    note "error: $*"
    exit 1
}
die_usage() {
    note "error: $* (--help lists the options)"
    exit 2
}

# ---- small tools ----

bytes_of() { # FILE -> its size, 0 if there is none
    if [ -f "$1" ]; then wc -c <"$1" | tr -d ' '; else echo 0; fi
}

sha256_of() { # FILE
    if command -v sha256sum >/dev/null 2>&1; then
        sha256sum <"$1" | cut -d ' ' -f 1
    else
        shasum -a 256 <"$1" | cut -d ' ' -f 1
    fi
}

origin_of() { # URL -> scheme://host:port
    after_scheme=${1#*://}
    printf '%s\n' "${1%%://*}://${after_scheme%%[/?#]*}"
}

absolute_url() { # BASE LOCATION -> the URL that a Location header of BASE means
    case $2 in
    *://*) printf '%s\n' "$2" ;;
    //*) printf '%s\n' "${1%%://*}:$2" ;;
    /*) printf '%s\n' "$(origin_of "$1")$2" ;;
    *) printf '%s\n' "${1%/*}/$2" ;;
    esac
}

# Runs a command so that a signal reaches this script at once, not only after the command has ended.
run() {
    "$@" &
    child=$!
    child_status=0
    wait "$child" || child_status=$?
    child=
    return "$child_status"
}

on_signal() { # EXIT_STATUS
    if [ -n "$child" ]; then
        kill "$child" 2>/dev/null
        wait "$child" 2>/dev/null
    fi
    note 'interrupted; start it again to continue'
    exit "$1"
}

# ---- requests: each leaves the reply's headers in $work/headers and its HTTP status in $http_status ----

header_of_reply() { # NAME (lower case, or "status") -> its value in the last reply
    awk -v name="$1" '
        { sub(/\r$/, "") }
        /^ *HTTP\/[0-9.]+ [0-9][0-9][0-9]/ { value = name == "status" ? $2 : ""; next }
        tolower($1) == name ":" { value = $2 }
        END { print value }' "$work/headers"
}

request_head() { # URL of the endpoint itself
    : >"$work/headers"
    set -- "$1"
    if [ "$tool" = curl ]; then
        set -- --no-location --head --silent --show-error --globoff --proto =http,https \
            --connect-timeout 30 --max-time 120 --output "$work/headers" "$1"
        [ -z "$token" ] || set -- --config "$work/authorization" "$@"
    else
        set -- --spider --server-response --max-redirect=0 --tries=1 --timeout=60 -o "$work/headers" "$1"
        [ -z "$token" ] || set -- --config="$work/authorization" "$@"
    fi
    run "$tool" "$@"
    http_status=$(header_of_reply status)
}

# Follows the redirects that stay at the endpoint. Sets $url to where the file is, and $elsewhere to yes if that is another
# server, which must not see the token. Fails if there is nothing to fetch; then $http_status says why (empty: no reply).
locate() { # URL
    url=$1
    redirects=0
    while elsewhere=no && [ "$(origin_of "$url")" = "$endpoint_origin" ]; do
        request_head "$url"
        case $http_status in
        301 | 302 | 303 | 307 | 308) ;;
        2??) return 0 ;;
        *) return 1 ;;
        esac
        redirects=$((redirects + 1))
        [ "$redirects" -le "$max_redirects" ] || die "$1: too many redirects"
        url=$(absolute_url "$url" "$(header_of_reply location)")
        case $url in
        http://* | https://*) ;;
        *) die "$1: redirected to something that is not on the web" ;;
        esac
    done
    elsewhere=yes
}

# One try. What FILE already holds is kept and continued; it never gets the body of an error or of a redirect.
request_get() { # URL FILE EXPECTED_BYTES (0: unknown)
    locate "$1" || return 1
    if [ "$3" = 0 ] && [ "$elsewhere" = no ]; then
        announced=$(header_of_reply content-length)
        case $announced in
        '' | *[!0-9]*) ;;
        *) [ "$announced" -le "$max_raw_bytes" ] || die "$1: $announced bytes instead of a short text" ;;
        esac
    fi
    : >"$work/headers"
    file=$2
    expected=$3
    have=$(bytes_of "$file")
    show_progress=no
    if [ -t 2 ] && [ "$expected" -ge 1000000 ]; then show_progress=yes; fi
    if [ "$tool" = curl ]; then
        set -- --fail --show-error --globoff --proto =http,https --connect-timeout 30 --speed-limit 1000 --speed-time 60 \
            --dump-header "$work/headers" --output "$file" "$url"
        [ "$have" = 0 ] || set -- --continue-at "$have" "$@"
        if [ "$show_progress" = yes ]; then set -- --progress-bar "$@"; else set -- --silent "$@"; fi
        if [ "$elsewhere" = yes ]; then
            set -- --location --max-redirs "$max_redirects" "$@"
        else
            set -- --no-location "$@"
            [ -z "$token" ] || set -- --config "$work/authorization" "$@"
        fi
    else
        set -- --continue --server-response --tries=1 --timeout=60 -o "$work/headers" -O "$file" "$url"
        [ "$show_progress" = no ] || set -- --show-progress --progress=bar:force "$@"
        if [ "$elsewhere" = yes ]; then
            set -- --max-redirect="$max_redirects" "$@"
        else
            set -- --max-redirect=0 "$@"
            [ -z "$token" ] || set -- --config="$work/authorization" "$@"
        fi
    fi
    run "$tool" "$@"
    tool_status=$?
    http_status=$(header_of_reply status)

    case $tool$tool_status in
    curl23 | wget3) die "$file: cannot be written (is the disk full?)" ;;
    esac
    if [ "$tool" = curl ] && [ "$tool_status" = 33 ]; then
        # The server ignored the range and offers the whole file (or something else: then what we have is kept).
        if [ "$(header_of_reply content-length)" = "$expected" ]; then
            note 'the server cannot continue a download: starting again'
            rm -f "$file"
        fi
        return 1
    fi
    case $http_status in
    200 | 206) ;;
    *)
        [ "$have" != 0 ] || rm -f "$file"
        return 1
        ;;
    esac
    if [ "$tool_status" = 0 ] && [ "$have" != 0 ] && [ "$(bytes_of "$file")" = "$have" ]; then
        return 1 # a success that brought nothing
    fi
    return "$tool_status"
}

die_of_status() { # URL: ends the script if its $http_status will not change by itself
    case $http_status in
    401 | 403)
        [ "$elsewhere" = no ] || return 0 # a signed link that has expired: the next try gets a new one
        if [ -n "$token" ]; then
            die "$1: access denied (HTTP $http_status), although HF_TOKEN is set: the token must have read access," \
                "and the model's terms, if it has any, must be accepted at $endpoint/$repository"
        fi
        die "$1: access denied (HTTP $http_status): set HF_TOKEN to an access token of your account" \
            "and accept the model's terms, if it has any, at $endpoint/$repository"
        ;;
    404 | 410)
        [ "$elsewhere" = no ] || return 0
        die "$1: not found (HTTP $http_status): is the revision '$revision' right, and HF_ENDPOINT, if set?"
        ;;
    408 | 416 | 425 | 429) ;;
    4??) [ "$elsewhere" = yes ] || die "$1: the server refuses (HTTP $http_status)" ;;
    esac
}

# Tries until FILE is whole, as far as the server is concerned; what it holds is for the caller to check.
download() { # URL FILE EXPECTED_BYTES (0: unknown, then nothing is continued)
    tries=0
    pause=$backoff
    most=$(bytes_of "$2")
    while :; do
        if [ "$3" = 0 ]; then
            rm -f "$2"
        elif [ "$(bytes_of "$2")" = "$3" ]; then
            return 0
        elif [ "$(bytes_of "$2")" -gt "$3" ]; then
            rm -f "$2"
        fi
        if request_get "$1" "$2" "$3"; then return 0; fi
        die_of_status "$1"
        if [ "$(bytes_of "$2")" -gt "$most" ]; then
            most=$(bytes_of "$2")
            tries=0
            pause=$backoff
        fi
        tries=$((tries + 1))
        case $http_status in
        '') reason='no reply' ;;
        200 | 206) reason="the connection broke after $(bytes_of "$2") bytes" ;;
        *) reason="HTTP $http_status" ;;
        esac
        if [ "$tries" -ge "$max_tries" ]; then
            die "$1: $reason; gave up after $tries tries. What has been downloaded is kept: start it again to continue"
        fi
        note "$1: $reason; trying again in $pause s"
        run sleep "$pause"
        pause=$((pause * 2))
        [ "$pause" -le 60 ] || pause=60
    done
}

# ---- what a file must be ----

# Asks the repository about file $name: sets $want_bytes and, for a file in Git LFS, $want_sha256 (otherwise empty, and
# $work/raw is the file itself).
describe() { # NAME
    raw_url=$endpoint/$repository/raw/$revision/$1
    download "$raw_url" "$work/raw" 0
    want_sha256=
    want_bytes=$(bytes_of "$work/raw")
    if [ "$want_bytes" -lt 1024 ] && [ "$(head -n 1 "$work/raw")" = 'version https://git-lfs.github.com/spec/v1' ]; then
        want_sha256=$(sed -n 's/^oid sha256:\([0-9a-f]\{64\}\)$/\1/p' "$work/raw" | head -n 1)
        want_bytes=$(sed -n 's/^size \([1-9][0-9]\{0,15\}\)$/\1/p' "$work/raw" | head -n 1)
        if [ -z "$want_sha256" ] || [ -z "$want_bytes" ]; then
            die "$raw_url: a damaged Git LFS pointer; without it $1 cannot be verified"
        fi
        return
    fi
    case $1 in
    *.json)
        # The first and the last character that is not blank.
        edges=$(tr -d ' \t\r\n' <"$work/raw" | sed -e 's/^\(.\).*\(.\)$/\1\2/')
        [ "$edges" = '{}' ] || die "$raw_url: this is not the JSON file that it should be$(html_hint "$work/raw")"
        ;;
    *)
        die "$raw_url: this is not a Git LFS pointer, without which $1 cannot be verified$(html_hint "$work/raw")"
        ;;
    esac
}

html_hint() { # FILE
    case $(head -c 200 "$1" | tr 'A-Z\0\n' 'a-z  ') in
    *'<html'* | *'<!doctype'*) printf ' (it is a web page: a proxy or a login page in between?)' ;;
    esac
}

# Whether FILE is what `describe` asked for; $mismatch says why not.
matches() { # FILE
    mismatch=
    size=$(bytes_of "$1")
    if [ "$size" != "$want_bytes" ]; then
        mismatch="$size bytes instead of $want_bytes$(html_hint "$1")"
    elif [ -z "$want_sha256" ]; then
        cmp -s "$work/raw" "$1" || mismatch="not the text that the repository has"
    else
        sha256=$(sha256_of "$1")
        [ "$sha256" = "$want_sha256" ] || mismatch="SHA-256 $sha256 instead of $want_sha256"
    fi
    [ -z "$mismatch" ]
}

check_disk_space() { # BYTES
    free_kib=$(df -Pk "$dir" 2>/dev/null | awk 'NR == 2 { print $4 }')
    case $free_kib in
    '' | *[!0-9]*) return ;; # unknown
    esac
    need_kib=$(($1 / 1024 + 1))
    [ "$free_kib" -ge "$need_kib" ] ||
        die "$dir: not enough disk space: $((need_kib / 1024)) MiB needed, $((free_kib / 1024)) MiB free"
}

verify_file() { # NAME
    describe "$1"
    if [ ! -f "$dir/$1" ]; then
        note "$dir/$1: missing"
        verified=no
    elif matches "$dir/$1"; then
        say "$dir/$1: verified"
    else
        note "$dir/$1: $mismatch"
        verified=no
    fi
}

fetch_file() { # NAME
    describe "$1"
    target=$dir/$1
    part=$target.part
    if [ -e "$target" ]; then
        if [ -f "$target" ] && matches "$target"; then
            say "$target: already there, verified"
            return
        fi
        note "$target: ${mismatch:-not a file}; moved to $target.bad (delete it if you do not need it)"
        mv -f "$target" "$target.bad" || die "$target: cannot be moved out of the way"
    fi

    started_with=$(bytes_of "$part")
    [ "$started_with" -gt "$want_bytes" ] || check_disk_space $((want_bytes - started_with))
    if [ "$started_with" = 0 ]; then
        say "$target: downloading $want_bytes bytes"
    else
        say "$target: continuing after $started_with of $want_bytes bytes"
    fi
    resolve_url=$endpoint/$repository/resolve/$revision/$1
    download "$resolve_url" "$part" "$want_bytes"
    if ! matches "$part" && [ "$started_with" != 0 ]; then
        note "$part: $mismatch; the part from an earlier run did not fit: starting again"
        rm -f "$part"
        download "$resolve_url" "$part" "$want_bytes"
        matches "$part"
    fi
    if [ -n "$mismatch" ]; then
        rm -f "$part"
        die "$resolve_url: not the right file: $mismatch. It has been removed"
    fi
    mv -f "$part" "$target" || die "$part: cannot be renamed to $target"
    say "$target: verified"
}

# ---- options ----

dir=./voxtral-model
revision=main
verify_only=no
while [ $# -gt 0 ]; do
    case $1 in
    -d | --dir | --revision)
        [ $# -ge 2 ] || die_usage "$1 needs a value"
        if [ "$1" = --revision ]; then revision=$2; else dir=$2; fi
        shift
        ;;
    --dir=*) dir=${1#*=} ;;
    --revision=*) revision=${1#*=} ;;
    --verify-only) verify_only=yes ;;
    -h | --help)
        usage
        exit 0
        ;;
    *) die_usage "unknown argument '$1'" ;;
    esac
    shift
done
[ -n "$dir" ] || die_usage '--dir must not be empty'
case $dir in
/* | ./* | ../*) ;;
*) dir=./$dir ;; # a name may begin with a dash
esac
case $revision in
'' | *[!A-Za-z0-9._/-]*) die_usage "'$revision' is not a revision" ;;
esac

endpoint=${HF_ENDPOINT:-https://huggingface.co}
while [ "${endpoint%/}" != "$endpoint" ]; do endpoint=${endpoint%/}; done
case $endpoint in
http://?* | https://?*) ;;
*) die_usage "HF_ENDPOINT must begin with http:// or https://" ;;
esac
endpoint_origin=$(origin_of "$endpoint")

token=${HF_TOKEN:-}
case $token in
*[!A-Za-z0-9._~+/=-]*) die_usage 'HF_TOKEN has characters that no token has' ;;
esac

backoff=${VOX_DOWNLOAD_BACKOFF:-2}
case $backoff in
'' | *[!0-9]* | ????*) die_usage 'VOX_DOWNLOAD_BACKOFF must be a number of seconds below 1000' ;;
esac

tool=${VOX_DOWNLOAD_TOOL:-}
if [ -z "$tool" ]; then
    for tool in curl wget ''; do
        if [ -z "$tool" ] || command -v "$tool" >/dev/null 2>&1; then break; fi
    done
    [ -n "$tool" ] || die 'curl or wget is needed'
fi
case $tool in
curl | wget) ;;
*) die_usage 'VOX_DOWNLOAD_TOOL must be curl or wget' ;;
esac
command -v "$tool" >/dev/null 2>&1 || die "$tool is not installed"
if [ "$tool" = wget ]; then
    case $(wget --version 2>/dev/null) in
    *'GNU Wget'*) ;;
    *) die 'this wget is not GNU Wget, whose options are needed: install curl or GNU Wget' ;;
    esac
fi
command -v sha256sum >/dev/null 2>&1 || command -v shasum >/dev/null 2>&1 || die 'sha256sum or shasum is needed'

# ---- work ----

child=
http_status=
work=$(mktemp -d "${TMPDIR:-/tmp}/voxtral-download.XXXXXX") || die 'no temporary directory'
trap 'rm -rf "$work"' EXIT
trap 'on_signal 129' HUP
trap 'on_signal 130' INT
trap 'on_signal 143' TERM
if [ -n "$token" ]; then
    # One line that curl and wget each read as configuration; the directory is the user's alone.
    case $tool in
    curl) printf 'header = "Authorization: Bearer %s"\n' "$token" ;;
    wget) printf 'header = Authorization: Bearer %s\n' "$token" ;;
    esac >"$work/authorization"
fi

if [ "$verify_only" = yes ]; then
    verified=yes
    for name in $files; do verify_file "$name"; done
    [ "$verified" = yes ] || die "$dir: not a complete and correct model"
    exit 0
fi
mkdir -p "$dir" || die "$dir: cannot be made"
[ -w "$dir" ] || die "$dir: cannot be written to"
for name in $files; do
    fetch_file "$name"
    printf '%s  %s\n' "${want_sha256:-$(sha256_of "$dir/$name")}" "$name" >>"$work/sums"
done
# what `voxtral verify` and `sha256sum -c` compare the files with later
cp "$work/sums" "$dir/SHA256SUMS.part" || die "$dir: cannot be written to"
mv "$dir/SHA256SUMS.part" "$dir/SHA256SUMS"
say "$dir: ready"
