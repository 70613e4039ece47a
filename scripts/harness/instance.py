"""A controller with all the processes that it starts."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import psutil
import yaml

from configs.paths import children_dir, internal_token
from host.processes import ProcessRecord
from scripts.harness.balancer import PATIENT
from scripts.harness.processes import PATIENCE_S, ROOT, free_port, is_alive, launch, wait_until
from wire.scaling import ControllerReport
from wire.snapshot import Snapshot, WorkerStats

#: The section `workers` of an instance whose configuration has none.
TIMES = {"heartbeat_s": 0.2} | PATIENT


class Instance:
    """A controller and the processes that it has started, on loopback."""

    def __init__(
        self, folder: Path, config: dict[str, Any], *options: str, cwd: Path = ROOT, threads: int | None = 1
    ) -> None:
        """Start it. `folder` is the data directory, with the configuration and the controller's log."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.port, self.options = folder.resolve(), free_port(), options
        self._cwd, self._threads = cwd, threads
        self.config = self.folder / "muster.yaml"
        self.config.write_text(yaml.safe_dump({"workers": TIMES} | config))
        self.pids: set[int] = set()
        self.start()

    def start(self, *prefix: str, **popen: Any) -> None:
        """Start the controller, by the command `prefix` if there is one; it adopts processes of an earlier one."""
        self.process = launch(
            "controller",
            self.folder,
            *("--config", str(self.config), "--port", str(self.port), *self.options),
            log="controller",
            prefix=prefix,
            threads=self._threads,
            cwd=self._cwd,
            start_new_session=True,
            **popen,
        )
        self.pids.add(self.process.pid)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def admin(self) -> dict[str, str]:
        """Headers of the controller's own requests."""
        return {"authorization": f"Bearer {internal_token(self.folder)}"}

    def output(self) -> str:
        return (self.folder / "controller.log").read_text()

    def records(self) -> dict[str, ProcessRecord]:
        """Return the recorded children of this or of the last controller by name."""
        found = {}
        for file in children_dir(self.folder).glob("*.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError):  # it is being written or removed
                record = msgspec.json.decode(file.read_bytes(), type=ProcessRecord)
                found[record.id] = record
        return found

    def children(self) -> list[psutil.Process]:
        """Return every recorded process that is alive, whichever process is its parent now."""
        found = []
        for record in self.records().values():
            with contextlib.suppress(psutil.Error):
                if is_alive(record.pid):
                    found.append(psutil.Process(record.pid))
        self.pids |= {process.pid for process in found}
        return found

    def _internal(self, name: str) -> bytes | None:
        """Return what the balancer says at `/internal/NAME`; None if it has nothing, or does not answer."""
        with contextlib.suppress(httpx.TransportError):
            answer = httpx.get(f"{self.url}/internal/{name}", headers=self.admin, timeout=PATIENCE_S)
            return answer.content if answer.is_success else None
        return None

    def snapshot(self) -> Snapshot | None:
        content = self._internal("snapshot")
        return None if content is None else msgspec.json.decode(content, type=Snapshot)

    def workers(self) -> list[WorkerStats]:
        """Return the ready workers; none if the balancer does not answer."""
        snapshot = self.snapshot()
        if snapshot is None:
            return []
        self.children()
        return [worker for worker in snapshot.workers if worker.state == "ready" and worker.slots]

    def next_reports(self, count: int = 1) -> list[ControllerReport]:
        """Wait for so many reports of the controller that the balancer does not have yet: one for each control loop."""
        content = self._internal("controller")
        before = 0.0 if content is None else msgspec.json.decode(content, type=ControllerReport).time
        found: dict[float, ControllerReport] = {}

        def has_come() -> bool:
            content = self._internal("controller")
            if content is not None:
                report = msgspec.json.decode(content, type=ControllerReport)
                if report.time > before:
                    found[report.time] = report
            return len(found) >= count

        self.until(has_come, f"{count} reports of the controller")
        return list(found.values())

    def until(self, condition: Callable[[], bool], what: str) -> None:
        """Wait for the condition. Raises `AssertionError` if it does not hold in time, or if the controller ends."""

        def is_alive_and_true() -> bool:
            assert self.process.poll() is None, self.output()
            return condition()

        wait_until(is_alive_and_true, what)

    def is_ready(self) -> bool:
        with contextlib.suppress(httpx.TransportError):
            return httpx.get(f"{self.url}/readyz", timeout=PATIENCE_S).is_success
        return False

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
        """Stop the controller, and kill what is left after 20 s."""
        self.children()
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(20)
        for pid in self.pids:
            with contextlib.suppress(psutil.Error):
                if "muster" in " ".join(psutil.Process(pid).cmdline()):
                    psutil.Process(pid).kill()
        self.process.kill()
        self.process.wait(PATIENCE_S)


@contextlib.contextmanager
def serving(folder: Path, config: dict[str, Any], *options: str) -> Iterator[str]:
    """Run a controller for a benchmark, and yield its URL once every model has a ready worker."""
    instance = Instance(folder, {"workers": {}} | config, *options, threads=None)
    try:
        instance.until(instance.is_ready, "a ready server")
        yield instance.url
    finally:
        instance.end()
