"""The supervisor of a worker on a node: signals, status, and that nothing outlives its input."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from controller.launchers.ray import process_supervisor
from scripts.harness.processes import PATIENCE_S, is_alive, wait_until

#: Starts a grandchild in a session of its own, prints its process id, and waits.
FAMILY = (
    "import subprocess, sys, time;"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True);"
    "print(child.pid, flush=True); time.sleep(600)"
)

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="Ray's nodes run Linux")


class Supervised:
    """A supervisor with its command, as an actor has it."""

    def __init__(self, folder: Path, *command: str) -> None:
        self.folder = folder / "run"
        self.folder.mkdir()
        self.log = folder / "worker.log"
        program = shutil.copy(process_supervisor.__file__, self.folder)
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", program, str(self.log), *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def until_over(self) -> None:
        """Wait for the end of the supervisor."""
        assert self.process.stdout is not None
        self.process.stdout.read()

    def message(self) -> dict[str, int | None]:
        assert self.process.stdout is not None
        found: dict[str, int | None] = json.loads(self.process.stdout.readline())
        return found

    def send(self, text: bytes) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(text)
        self.process.stdin.flush()

    def start(self) -> tuple[int, int]:
        """Return the process ids of the command and of the supervisor."""
        found = self.message()
        return found["pid"] or 0, found["supervisor"] or 0

    def family(self) -> tuple[set[int], int]:
        """Return the command with its child, once both run, and the supervisor."""
        pid, supervisor = self.start()
        wait_until(lambda: self.log.read_text().endswith("\n"), "the grandchild")
        return {pid, int(self.log.read_text())}, supervisor


@contextlib.contextmanager
def supervised(folder: Path, *command: str) -> Iterator[Supervised]:
    made = Supervised(folder, *command)
    try:
        yield made
    finally:
        for pipe in (made.process.stdin, made.process.stdout):
            assert pipe is not None
            with contextlib.suppress(OSError):
                pipe.close()
        made.process.wait(PATIENCE_S)


@pytest.mark.parametrize(
    ("command", "sent", "status"),
    [
        ([sys.executable, "-c", "import sys; sys.exit(3)"], b"", 3),
        (["/bin/sleep", "600"], b"15\n", -15),
        (["/bin/sleep", "600"], b"9\n", -9),
        (["/does/not/exist"], b"", 127),
    ],
)
def test_status_of_the_command_is_reported(tmp_path: Path, command: list[str], sent: bytes, status: int) -> None:
    with supervised(tmp_path, *command) as own:
        assert own.message()["pid"] is not None
        if sent:
            own.send(sent)
        assert own.message() == {"status": status}
        own.until_over()
        assert not own.folder.exists(), "the key is deleted"


def test_command_that_is_missing_says_so(tmp_path: Path) -> None:
    with supervised(tmp_path, "/does/not/exist") as own:
        own.until_over()
        assert own.log.read_text() == "cannot start: /does/not/exist: No such file or directory\n"


def test_descendants_end_with_the_command(tmp_path: Path) -> None:
    with supervised(tmp_path, sys.executable, "-c", FAMILY) as own:
        pids, _ = own.family()
        own.send(b"15\n")
        assert own.message() == {"status": -15}
        assert not any(is_alive(pid) for pid in pids)


def test_nothing_outlives_the_input(tmp_path: Path) -> None:
    with supervised(tmp_path, sys.executable, "-c", FAMILY) as own:
        pids, _ = own.family()
        assert own.process.stdin is not None
        own.process.stdin.close()
        own.until_over()
        assert not own.folder.exists()
        assert not any(is_alive(pid) for pid in pids)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_nothing_outlives_a_stopped_supervisor(tmp_path: Path, signum: signal.Signals) -> None:
    with supervised(tmp_path, sys.executable, "-c", FAMILY) as own:
        pids, supervisor = own.family()
        os.kill(supervisor, signum)
        own.until_over()
        assert not any(is_alive(pid) for pid in pids)


def test_command_dies_with_a_killed_supervisor(tmp_path: Path) -> None:
    with supervised(tmp_path, "/bin/sleep", "600") as own:
        pid, supervisor = own.start()
        os.kill(supervisor, signal.SIGKILL)
        wait_until(lambda: not is_alive(pid), "the end of the command")


def test_signals_in_several_reads_arrive(tmp_path: Path) -> None:
    program = (
        "import signal, sys, time; signal.signal(signal.SIGUSR1, lambda *_: sys.exit(7)); print('up', flush=True);"
        "time.sleep(600)"
    )
    with supervised(tmp_path, sys.executable, "-c", program) as own:
        own.message()
        wait_until(lambda: own.log.read_text() == "up\n", "the command")
        number = f"{int(signal.SIGUSR1)}\n".encode()
        own.send(number[:1])
        own.send(number[1:])
        assert own.message() == {"status": 7}
