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

# ensure_venv EXTRAS   ("" for what serving needs, "dev" for tests and checks as well)
ensure_venv() {
    local extras="$1" stamp want python="${PYTHON:-python3}"
    want="$(cat "$root/constraints.txt" "$root/pyproject.toml" | sha256sum)"
    for stamp in "${extras:-serve}" dev; do  # what tests need includes what serving needs
        if [ "$(cat "$root/.venv/.muster-$stamp" 2>/dev/null)" = "$want" ]; then
            return
        fi
    done
    if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
        echo "muster: needs Python 3.11 to 3.13; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.x" >&2
        return 1
    fi
    echo "muster: setting up .venv${extras:+ for $extras} (downloads PyTorch and diffusers the first time) ..." >&2
    if [ ! -x "$root/.venv/bin/python" ] && ! "$python" -m venv "$root/.venv"; then
        echo "muster: no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2
        return 1
    fi
    "$root/.venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
        -c "$root/constraints.txt" -e "$root${extras:+[$extras]}" | show_packages >&2
    [ "${PIPESTATUS[0]}" = 0 ] || { echo "muster: installing failed" >&2; return 1; }
    echo "$want" > "$root/.venv/.muster-${extras:-serve}"
}
