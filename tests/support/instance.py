"""A controller as its user starts it, with all that it starts, for tests: waited for, and always ended by pid."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import yaml

from configs.paths import internal_token
from tests.support.servers import PATIENCE_S, ROOT, free_port, wait_until
from wire.snapshot import Snapshot, WorkerStats

TIMES = {"heartbeat_s": 0.2, "lost_after_s": 5}


class Instance:
    """One controller and what it has started."""

    def __init__(self, folder: Path, config: dict[str, Any], *options: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port, self.options = folder, free_port(), options
        self.config = folder / "muster.yaml"
        self.config.write_text(yaml.safe_dump({"workers": TIMES} | config))
        self.pids: set[int] = set()
        self.start()

    def start(self, *prefix: str, terminal: int | None = None) -> None:
        """Start the controller; `terminal` is a file descriptor to show itself on instead of the log."""
        own = ["--config", str(self.config), "--port", str(self.port), "--data-dir", str(self.folder)]
        command = [*prefix, sys.executable, "-m", "controller", *own, *self.options]
        with (self.folder / "controller.log").open("ab") as log:
            out = log if terminal is None else terminal
            self.process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out, start_new_session=True)
        self.pids.add(self.process.pid)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def output(self) -> str:
        return (self.folder / "controller.log").read_text()

    def children(self) -> list[psutil.Process]:
        """Every live process that was started for this data directory, whoever is its parent now."""
        found = []
        for record in (self.folder / "run" / "children").glob("*.json"):
            with contextlib.suppress(psutil.Error, OSError, ValueError):
                process = psutil.Process(msgspec.json.decode(record.read_bytes())["pid"])
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        self.pids |= {process.pid for process in found}
        return found

    def workers(self) -> list[WorkerStats]:
        headers = {"authorization": f"Bearer {internal_token(self.folder)}"}
        try:
            answer = httpx.get(f"{self.url}/internal/snapshot", headers=headers, timeout=PATIENCE_S)
        except httpx.TransportError:
            return []
        if not answer.is_success:
            return []
        self.children()
        return [w for w in msgspec.json.decode(answer.content, type=Snapshot).workers if w.state == "ready" and w.slots]

    def until(self, condition: Callable[[], bool], what: str) -> None:
        def alive_and() -> bool:
            assert self.process.poll() is None, self.output()
            return condition()

        wait_until(alive_and, what)

    def until_workers(self, count: int) -> list[WorkerStats]:
        """Wait for this number of ready workers, and return them."""
        found: list[WorkerStats] = []

        def is_reached() -> bool:
            found[:] = self.workers()
            return len(found) == count

        self.until(is_reached, f"{count} workers")
        return found

    def until_logged(self, text: str) -> None:
        self.until(lambda: text in self.output(), f"the log line {text!r}")

    def end(self) -> None:
        self.children()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        for pid in self.pids:
            with contextlib.suppress(psutil.Error):
                if "muster" in " ".join(psutil.Process(pid).cmdline()):
                    psutil.Process(pid).kill()
