"""A server that runs: whether it answers, what its workers leave behind, and its end."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from scripts.bench.serving.peers_lib.deployment import BODY, Deployment
from scripts.bench.serving.peers_lib.loads import Target

_START_TIMEOUT_S = 120.0
_STOP_TIMEOUT_S = 20.0


class StartError(Exception):
    """A server did not answer in time, or it ended; the text has the end of its log."""


@dataclass
class RunningServer:
    """A server that answers, and what its workers leave in the folder."""

    target: Target
    folder: Path
    deployment: Deployment
    #: The process that started all others of the server.
    pid: int
    start_s: float = 0.0

    def worker_pids(self) -> list[int]:
        """Return the workers that are alive."""
        pids = [int(file.name.removeprefix("worker-")) for file in self.folder.glob("worker-*")]
        return [pid for pid in pids if psutil.pid_exists(pid)]

    def cpu_s(self) -> float:
        """Return the CPU seconds of all processes of the server so far."""
        used = 0.0
        with contextlib.suppress(psutil.Error):
            root = psutil.Process(self.pid)
            for process in [root, *root.children(recursive=True)]:
                with contextlib.suppress(psutil.Error):
                    times = process.cpu_times()
                    used += times.user + times.system
        return used

    def batches(self) -> list[int]:
        """Return the size of every batch of the simulated accelerators so far."""
        with contextlib.suppress(FileNotFoundError):
            return [len(line) for line in (self.folder / "computed").read_text().splitlines()]
        return []

    def is_ready(self) -> bool:
        """Return whether all workers have loaded and a request is answered."""
        if len(self.worker_pids()) < self.deployment.workers:
            return False
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.post(self.target.url, content=BODY, headers=dict(self.target.headers), timeout=5)
            return answer.status_code == 200
        return False


def wait_until_ready(server: RunningServer, is_alive: Callable[[], bool], log: Callable[[], str]) -> None:
    """Return when the server answers. Raises `StartError` if it ends, or after two minutes."""
    begin = time.monotonic()
    while not server.is_ready():
        if not is_alive():
            raise StartError(f"ended while it started: {_last_line(log())}")
        if time.monotonic() - begin > _START_TIMEOUT_S:
            raise StartError(f"no answer in {_START_TIMEOUT_S:g} s: {_last_line(log())}")
        time.sleep(0.05)
    server.start_s = time.monotonic() - begin


def _last_line(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "nothing was logged"


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to stop; then kill what is left of it and of its descendants."""
    descendants: list[psutil.Process] = []
    with contextlib.suppress(psutil.Error):
        descendants = psutil.Process(process.pid).children(recursive=True)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_TIMEOUT_S)
    for one in descendants:
        with contextlib.suppress(psutil.Error):  # psutil compares start times: no other process is hit
            one.kill()
    if process.poll() is None:
        process.kill()
    process.wait(_STOP_TIMEOUT_S)
    psutil.wait_procs(descendants, _STOP_TIMEOUT_S)
