"""Each program says in one line why its data directory cannot be used."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from configs.cli import EXIT_USAGE
from scripts.harness.processes import PATIENCE_S, free_port

_PROGRAMS = {
    "server": ["controller", "--port", str(free_port())],
    "balancer": ["loadbalancer", "--port", str(free_port())],
    "status": ["controller", "status"],
    "worker": ["worker", "--model", "digits"],
}


@pytest.mark.parametrize("program", _PROGRAMS)
@pytest.mark.parametrize("kind", ["file", "loop"])
def test_unusable_data_dir_is_named(tmp_path: Path, program: str, kind: str) -> None:
    data_dir = tmp_path / kind
    if kind == "loop":
        data_dir.symlink_to(data_dir)
    else:
        data_dir.touch()
    command = [sys.executable, "-m", *_PROGRAMS[program], "--data-dir", str(data_dir)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode in (1, EXIT_USAGE), done.stderr
    assert str(data_dir) in done.stderr
    assert "Traceback" not in done.stderr
