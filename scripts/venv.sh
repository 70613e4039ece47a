# Sourced by the other scripts: makes .venv from constraints.txt, once, and again when what it is made from changes.

root="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

# ensure_venv EXTRAS   ("" for what serving needs, "dev" for tests and checks as well)
ensure_venv() {
    local extras="$1" stamp want python="${PYTHON:-python3}"
    stamp="$root/.venv/.muster-${extras:-serve}"
    want="$(cat "$root/constraints.txt" "$root/pyproject.toml" | sha256sum)"
    if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$want" ]; then
        return
    fi
    if ! "$python" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; then
        echo "muster: needs Python 3.11 to 3.13; $python is $("$python" --version 2>&1). Set PYTHON=/path/to/python3.x" >&2
        return 1
    fi
    echo "muster: setting up .venv${extras:+ for $extras} (downloads PyTorch and diffusers the first time) ..." >&2
    if [ ! -x "$root/.venv/bin/python" ] && ! "$python" -m venv "$root/.venv"; then
        echo "muster: no virtual environment could be made; on Debian and Ubuntu: apt install python3-venv" >&2
        return 1
    fi
    # pip's whole story is too long to read; what it is downloading right now is worth a line each.
    "$root/.venv/bin/python" -m pip install --disable-pip-version-check --progress-bar off \
        -c "$root/constraints.txt" -e "$root${extras:+[$extras]}" |
        { grep --line-buffered -E '^ *(Downloading|Processing|Installing collected)' || true; } |
        sed -u -E 's/^ *Downloading ([^ ]*\/)?([^ ]+).*/  \2/; s/^Processing .*\///; s/^(Installing collected).*/  installing .../' >&2
    [ "${PIPESTATUS[0]}" = 0 ] || { echo "muster: installing failed" >&2; return 1; }
    echo "$want" > "$stamp"
}
