"""A limit of open files that no server can run with."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path


def test_too_few_files_are_one_line(tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))

    command = [sys.executable, "-m", "controller", "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == "cannot start: only 32 files may be open, and 64 are needed; raise `ulimit -n`\n"
    assert not (tmp_path / "data").exists()
