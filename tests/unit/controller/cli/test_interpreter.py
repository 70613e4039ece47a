"""An interpreter without the packages is told which one has them."""

from __future__ import annotations

import subprocess
import sys

import pytest

from scripts.harness.processes import PATIENCE_S, ROOT


@pytest.mark.parametrize("words", [["status"], ["--check-config", "x.yaml"], []])
def test_missing_packages_are_one_line(words: list[str]) -> None:
    command = [sys.executable, "-S", "-m", "controller", *words]  # -S: without the installed packages
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert found.returncode == 2
    [line] = found.stderr.splitlines()
    assert f"{sys.executable} lacks the package " in line
    assert "/.venv/bin/python" in line
