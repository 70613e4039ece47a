# Sourced by the other scripts: makes .venv from constraints.txt, once, and again when what it is made from changes.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# pip's whole story is too long to read: which package it is at, on one line of a terminal, or a line each in a log.
show_packages() {
    local line name end='\n'
    [ -t 2 ] && end='\r'
    while read -r line; do
        case "$line" in
            *.metadata*) continue ;;
            Downloading* | Processing*) name="${line#* }" name="${name%% *}" name="${name##*/}" ;;
            "Installing collected"*) name="installing ..." ;;
            *) continue ;;
        esac
        [ -t 2 ] && printf '\033[K'
        printf "  %.70s$end" "${name%-*-*-*.whl}"
    done
    [ -t 2 ] && printf '\033[K'
    return 0
}

# Prints "VERSION PLACE" of the interpreter in .venv; nothing, and an error, if it does not run.
venv_identity() {
    "$root/.venv/bin/python" -c \
        'import os, sys; print("%d.%d" % sys.version_info[:2], os.path.realpath(sys.prefix))' 2>/dev/null
}

# venv_is_finished WANT IDENTITY MARK...   A mark is written last. Its lines are the hash of the pins and the identity.
venv_is_finished() {
    local want="$1" identity="$2" mark
    [ -n "$identity" ] || return 1
    shift 2
    for mark; do
        [ "$(cat "$root/.venv/.muster-$mark" 2>/dev/null)" = "$want"$'\n'"$identity" ] && return 0
    done
    return 1
}

# venv_fault IDENTITY   Prints why .venv cannot be used or completed; nothing if it can be, or is not there.
venv_fault() {
    local identity="$1" mark version
    [ -e "$root/.venv" ] || [ -L "$root/.venv" ] || return 0
    if [ -z "$identity" ]; then
        echo "its interpreter does not run any more"
        return
    fi
    if [ -z "$(cat "$root"/.venv/.muster-* 2>/dev/null)" ]; then
        echo "it was not finished"
        return
    fi
    for mark in "$root"/.venv/.muster-*; do
        mark="$(sed -n 2p "$mark")"
        if [ -n "$mark" ] && [ "$mark" != "$identity" ]; then
            echo "it was made for Python $mark"
            return
        fi
    done
    if [ -n "${PYTHON:-}" ]; then
        version="$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)"
        [ "$version" = "${identity%% *}" ] || { echo "PYTHON is another version, $version"; return; }
    fi
    "$root/.venv/bin/python" -c 'import pip' 2>/dev/null || echo "it has no pip"
}

# explain_failure OUTPUT   Says in one sentence why venv or pip failed, by what they printed.
explain_failure() {
    local output="$1"
    case "$output" in
        *"No space left on device"* | *"Disk quota exceeded"*)
            echo "muster: the disk is full; PyTorch and the other packages need about 8 GB in $root and in pip's cache" ;;
        *"ensurepip is not available"* | *"No module named ensurepip"* | *"No module named venv"*)
            echo "muster: this Python makes no virtual environments; on Debian and Ubuntu: apt install python3-venv" ;;
        *"Permission denied"* | *"Read-only file system"*)
            echo "muster: $root/.venv cannot be written by this user" ;;
        *"name resolution"* | *"NewConnectionError"* | *"Network is unreachable"* | *"timed out"* | *"ProxyError"* | \
            *"Connection refused"* | *"ConnectionError"* | *"SSLError"* | *"from versions: none"*)
            echo "muster: no package index could be reached; check the network, or set HTTPS_PROXY or PIP_INDEX_URL" ;;
        *)
            output="$(grep '^ERROR' <<<"$output" | head -n 1 || true)${output:+$'\n'$output}"
            echo "muster: .venv could not be set up: $(grep -v '^ *$' <<<"$output" | head -n 1)" ;;
    esac
}

# ensure_venv EXTRAS   ("" for what serving needs, "dev" for tests and checks as well)
ensure_venv() {
    local extras="$1" mark="${1:-serve}" want identity lock status=0
    want="$(cat "$root/constraints.txt" "$root/pyproject.toml" | sha256sum)"
    identity="$(venv_identity)" || identity=""
    venv_is_finished "$want" "$identity" "$mark" dev && return  # what tests need includes what serving needs
    exec {lock}<"$root"
    if command -v flock >/dev/null && ! flock -n "$lock"; then
        echo "muster: waiting for another start, which sets up .venv ..." >&2
        flock "$lock"
    fi
    make_venv "$extras" "$mark" "$want" || status=$?
    exec {lock}<&-
    return "$status"
}

# make_venv EXTRAS MARK WANT   Completes .venv, or makes it again if it cannot be completed.
make_venv() {
    local extras="$1" mark="$2" want="$3" python="${PYTHON:-python3}" identity fault output
    identity="$(venv_identity)" || identity=""
    venv_is_finished "$want" "$identity" "$mark" dev && return  # the other start has done it
    if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
        echo "muster: needs Python 3.11 to 3.13; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.x" >&2
        return 1
    fi
    fault="$(venv_fault "$identity")"
    if [ -n "$fault" ] && [ -L "$root/.venv" ]; then
        echo "muster: .venv is a link to $(readlink "$root/.venv"), and cannot be used: $fault. Remove the link" >&2
        return 1
    fi
    if [ -n "$fault" ]; then
        echo "muster: making .venv again: $fault" >&2
        rm -rf "$root/.venv" || return 1
    fi
    echo "muster: setting up .venv${extras:+ for $extras} (downloads PyTorch and diffusers the first time) ..." >&2
    if [ ! -e "$root/.venv" ] && ! output="$("$python" -m venv "$root/.venv" 2>&1)"; then
        explain_failure "$output" >&2
        return 1
    fi
    # An interrupted update leaves packages of two versions: its marks hold for neither.
    for output in "$root"/.venv/.muster-*; do
        [ ! -e "$output" ] || sed -i '1s/.*/unfinished/' "$output" || return 1
    done
    install_packages "$extras" || return 1
    printf '%s\n%s\n' "$want" "$(venv_identity)" >"$root/.venv/.muster-$mark.new" &&
        mv "$root/.venv/.muster-$mark.new" "$root/.venv/.muster-$mark"
}

# install_packages EXTRAS   Shows what pip is at; says why it failed.
install_packages() {
    local extras="$1" errors status
    errors="$(mktemp)" || return 1
    "$root/.venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off --no-compile \
        -c "$root/constraints.txt" -e "$root${extras:+[$extras]}" 2>"$errors" | show_packages >&2
    status="${PIPESTATUS[0]}"
    [ "$status" = 0 ] || explain_failure "$(cat "$errors")" >&2
    rm -f "$errors"
    [ "$status" = 0 ] || return "$status"
    # pip would compile on one processor. What cannot be compiled, as templates of code, is left as it is.
    "$root/.venv/bin/python" -c 'import compileall, sys; compileall.compile_dir(sys.argv[1], quiet=2, workers=0)' \
        "$root/.venv/lib" 2>/dev/null || [ $? -lt 128 ]  # 128 and more: interrupted
}
