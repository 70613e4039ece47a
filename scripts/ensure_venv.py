"""Imported first by the scripts that need what the tests need: where that is missing, they begin again in `.venv`.

It is set up if it is not there, as `scripts/test` does, so that each of them is one command on a fresh machine.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path

_AGAIN = 'source "$0" && ensure_venv dev && exec "$root/.venv/bin/python" "$@"'
_ROOT = Path(__file__).resolve().parents[1]

#: Says that it has been tried: what is still missing then is to be told, not tried for ever.
_TRIED = "TESTS_ENVIRONMENT_TRIED"

if importlib.util.find_spec("httpx") is None and os.environ.pop(_TRIED, None) is None:
    os.environ[_TRIED] = "1"
    os.execv("/bin/bash", ["bash", "-c", _AGAIN, str(_ROOT / "scripts" / "venv.sh"), *sys.argv])
os.environ.pop(_TRIED, None)
