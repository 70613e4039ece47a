"""`scripts/test`: a signal ends all tests and what they have started."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from scripts.harness.processes import PATIENCE_S, ROOT, child_process, wait_until

#: In place of the interpreter with pytest: starts a process as a server, and ends it when it is interrupted.
_PYTEST = """#!{python}
import os, subprocess, sys, time
from pathlib import Path
server = subprocess.Popen(["sleep", "600"])
Path(sys.argv[0]).parents[2].joinpath(f"{{os.getpid()}}-{{server.pid}}.pids").touch()
try:
    time.sleep(600)
finally:
    server.kill()
    server.wait()
"""


@pytest.fixture
def script(tmp_path: Path) -> Path:
    (tmp_path / "scripts").mkdir()
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(_PYTEST.format(python=sys.executable))
    python.chmod(0o755)
    (tmp_path / "scripts" / "venv.sh").write_text(f"root={tmp_path}\nensure_venv() {{ :; }}\n")
    return Path(shutil.copy(ROOT / "scripts" / "test", tmp_path / "scripts"))


@pytest.mark.parametrize(
    ("signum", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=lambda case: str(case),
)
@pytest.mark.parametrize(("arguments", "runs"), [([], 2), (["tests/unit"], 1)], ids=["all", "some"])
def test_signal_ends_all_tests(
    script: Path, tmp_path: Path, signum: signal.Signals, status: int, arguments: list[str], runs: int
) -> None:
    # Where the tests run in the background of a shell, SIGINT is ignored, and a shell cannot change that.
    heeds = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    command = [sys.executable, "-c", heeds, str(script), *arguments]
    with child_process(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as shell:
        wait_until(lambda: len(list(tmp_path.glob("*.pids"))) == runs, "the tests")
        pids = [int(pid) for file in tmp_path.glob("*.pids") for pid in file.stem.split("-")]
        shell.send_signal(signum)
        assert shell.wait(PATIENCE_S) == status
    assert not [pid for pid in pids if psutil.pid_exists(pid)]
