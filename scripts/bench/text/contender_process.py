"""Runs contenders in the environment of their library, and reads what they report."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parents[3]


def run_contenders(python: Path, plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the results of contenders in one process; for one without any, the `reason`.

    Its standard error goes to a file: libraries write more of it than a pipe holds.
    """
    env = os.environ | {"PYTHONPATH": str(_ROOT), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [str(python), "-m", "scripts.bench.text.measure", json.dumps(plan)]
    with (
        tempfile.TemporaryFile("w+", errors="replace") as errors,
        subprocess.Popen(command, cwd=_ROOT, env=env, stdout=subprocess.PIPE, stderr=errors, text=True) as run,
    ):
        assert run.stdout is not None
        reported = set()
        for line in run.stdout:
            if line.startswith("RESULT "):
                result = json.loads(line.removeprefix("RESULT "))
                reported.add(result["contender"])
                yield result
        if run.wait():
            errors.seek(0)
            last = errors.read().strip().splitlines()[-1:] or [f"exit status {run.returncode}"]
            missing = [name for name in plan["contenders"] if name not in reported]
            yield from ({"contender": name, "reason": last[0]} for name in missing)
