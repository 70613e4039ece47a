"""Child processes of tests, chaos runs and benchmarks: start, wait, stop."""

from __future__ import annotations

import atexit
import contextlib
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil

#: Long enough for a machine that is busy with other work.
PATIENCE_S = 180.0
ROOT = Path(__file__).resolve().parents[2]

#: Linux gives the ports above to outgoing connections: one could take a free port before its server listens.
_PORTS = range(20_000, 32_768)
_reservations: list[socket.socket] = []

Process = subprocess.Popen[bytes]


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Return as soon as the condition holds. Raises `AssertionError` if it does not in time."""
    start = time.monotonic()
    while not condition():
        waited = time.monotonic() - start
        assert waited < patience_s, f"waited {patience_s:g} s in vain for: {what}"
        time.sleep(min(0.02 + waited / 50, 0.1))  # the condition takes processor time, which what it waits for needs


def free_port() -> int:
    """Return a loopback port that no process listens on, and that no other call on this machine returns meanwhile.

    The UDP port of the same number is the reservation: it ends with this process.
    """
    while True:
        port = random.choice(_PORTS)
        reservation = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            reservation.bind(("127.0.0.1", port))
            socket.create_server(("127.0.0.1", port)).close()
        except OSError:
            reservation.close()
            continue
        _reservations.append(reservation)
        atexit.register(reservation.close)
        return port


def launch(
    program: str,
    data_dir: Path,
    *options: str,
    log: str,
    prefix: tuple[str, ...] = (),
    threads: int | None = 1,
    **popen: Any,
) -> Process:
    """Start `python -m program` without the `MUSTER_` variables of this process.

    Its output is appended to `log` in the data directory. `prefix` is a command that starts the program.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MUSTER_")}
    environment |= {"PYTHONPATH": str(ROOT)} | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    command = [*prefix, sys.executable, "-m", program, "--data-dir", str(data_dir), *options]
    with (data_dir / f"{log}.log").open("ab") as output:
        arguments: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
        arguments |= {"cwd": ROOT, "env": environment} | popen
        process: Process = subprocess.Popen(command, **arguments)
        return process


@contextlib.contextmanager
def child_process(command: Sequence[str], **popen: Any) -> Iterator[subprocess.Popen[Any]]:
    """Run the command, and kill it at the end if it still runs.

    `subprocess.Popen` as a context manager would wait for it, for ever if the test has failed.
    """
    process = subprocess.Popen(command, **popen)
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def text_of(file: Path) -> str:
    """Return the text of a file that another process creates; empty if it does not exist yet."""
    with contextlib.suppress(FileNotFoundError):
        return file.read_text()
    return ""


def stop(child: Process, signum: signal.Signals = signal.SIGTERM) -> int:
    """Send the signal and return the exit status."""
    child.send_signal(signum)
    return child.wait(PATIENCE_S)


def is_alive(pid: int) -> bool:
    """Return false for a zombie, which only waits for its parent."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
