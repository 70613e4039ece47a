"""Child processes of tests end with their test."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from scripts.harness.processes import child_process, free_port, text_of


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


def test_free_port_is_returned_to_one_caller_only() -> None:
    ports = [free_port() for _ in range(200)]
    assert len(set(ports)) == len(ports)
    with socket.create_server(("127.0.0.1", ports[0])) as listener:
        assert listener.getsockname()[1] == ports[0]
