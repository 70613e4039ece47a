"""The limit of open files: what no program can run with, and how the files are divided."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from configs.open_files import MIN_OPEN_FILES, connections_within, is_reserved, raise_open_file_limit

AGENT = ("worker", "--agent", "--join", "tcp://127.0.0.1:1", "--key-file", "missing")


@pytest.mark.parametrize(
    ("command", "status"),
    [(("controller",), 2), (("loadbalancer",), 2), (("worker",), 4), (AGENT, 2)],
    ids=["controller", "loadbalancer", "worker", "agent"],
)
def test_too_few_files_are_one_line(command: tuple[str, ...], status: int, tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 100))

    arguments = [sys.executable, "-m", *command, "--data-dir", str(tmp_path / "data")]
    done = subprocess.run(arguments, preexec_fn=limit, capture_output=True, text=True, timeout=180, check=False)
    assert done.returncode == status
    assert done.stderr.endswith("cannot start: only 100 files may be open, and 128 are needed; raise `ulimit -n`\n")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("files", "expected"), [(1 << 20, 4096), (1024, 682), (256, 170), (200, 120), (MIN_OPEN_FILES, 56)]
)
def test_connections_leave_files_for_others(files: int, expected: int) -> None:
    assert connections_within(files, 4096) == expected


def test_last_descriptors_are_reserved() -> None:
    last = raise_open_file_limit() - 1
    assert [is_reserved(each) for each in (0, last // 2, last, last + 1)] == [False, False, True, True]
