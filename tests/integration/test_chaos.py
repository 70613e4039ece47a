"""A minute of chaos: `scripts/chaos.py` itself, with real processes and a seed that is always the same."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from scripts.harness.processes import ROOT

#: A minute of load; the rest is for a machine that is slow to start processes, and to stop them.
LONGEST_S = 540.0


@pytest.mark.timeout(LONGEST_S + 30)
def test_nothing_is_lost_answered_twice_wrong_or_left_behind(tmp_path: Path) -> None:
    file = tmp_path / "table.json"
    command = [sys.executable, "scripts/chaos.py", "--profile", "sim", "--minutes", "1", "--seed", "7"]
    environment = os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
    told = subprocess.run(
        [*command, "--json", str(file)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=LONGEST_S,
        check=False,
    )
    [table] = json.loads(file.read_text()) if file.exists() else [{}]
    assert told.returncode == 0, f"{told.stdout}\n{told.stderr}"
    assert table["faults"] == []
    zero = ("lost", "answered twice", "wrong images", "slots leaked", "processes left", "fallen")
    assert {name: table[name] for name in zero} == dict.fromkeys(zero, 0)
    # It was a minute of work and of trouble, and every request has an end that is in the table.
    assert table["asked"] >= 100
    assert sum(table["troubles"].values()) >= 8
    assert table["balancers"] >= 2
    assert table["completed"] > table["asked"] // 2
    ends = table["completed"] + table["left by their clients"] + sum(table["failed"].values()) + table["lost"]
    assert ends == table["asked"]
