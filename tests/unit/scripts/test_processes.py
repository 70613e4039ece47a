"""Child processes of tests end with their test."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from scripts.harness.processes import child_process, text_of


def test_child_is_killed_when_the_test_fails() -> None:
    with (
        pytest.raises(AssertionError, match="failed"),
        child_process([sys.executable, "-c", "import time; time.sleep(600)"]) as child,
    ):
        raise AssertionError("failed")
    assert child.returncode == -9


def test_text_of_a_file_that_does_not_exist_yet(tmp_path: Path) -> None:
    file = tmp_path / "log"
    assert text_of(file) == ""
    file.write_text("ready")
    assert text_of(file) == "ready"
