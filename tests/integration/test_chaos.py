"""A short run of `scripts/chaos.py`, with a fixed seed: images and texts of simulated workers, and a user's engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.harness.processes import ROOT

#: The load, and the start and stop of processes on a slow machine.
TIMEOUT_S = 900.0
PROFILES = ("sim", "calls", "texts")


@pytest.mark.timeout(TIMEOUT_S + 30)
def test_chaos_run_has_no_violations(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    command = [sys.executable, "scripts/chaos.py", "--profile", *PROFILES, "--minutes", "0.75", "--seed", "7"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(
        [*command, "--json", str(file)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    tables = json.loads(file.read_text()) if file.exists() else []
    assert finished.returncode == 0, f"{finished.stdout}\n{finished.stderr}"
    zero = ("lost", "answered twice", "wrong images", "slots leaked", "processes left", "crashes")
    for table in tables:
        assert table["violations"] == []
        assert {name: table[name] for name in zero} == dict.fromkeys(zero, 0)
        assert table["completed"] > table["requests"] // 2
        ends = table["completed"] + table["aborted by clients"] + sum(table["failed"].values()) + table["lost"]
        assert ends == table["requests"], "every request has an outcome"
    assert len(tables) == len(PROFILES)
    assert sum(table["requests"] for table in tables) >= 80
    assert sum(sum(table["faults"].values()) for table in tables) >= 6
    assert sum(table["balancers"] for table in tables) >= len(PROFILES)
