"""The agent of a machine, as a process with a data directory of its own."""

from __future__ import annotations

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import psutil
import yaml

from configs.paths import children_dir
from host.processes import ProcessRecord
from loadbalancer.access import keys_cli
from scripts.harness.processes import ROOT, Process, is_alive, launch


def add_agent_key(head: Path, machine: str) -> Path:
    """Allow an agent at the server with this data directory. Return its key file."""
    file = head / f"{machine}.key"
    if not file.exists():
        with contextlib.redirect_stderr(None), contextlib.redirect_stdout(None):
            status = keys_cli.main(["--data-dir", str(head), "add-worker", "--agent", machine, str(file)])
        assert status == 0, "the key is made"
    return file


class AgentMachine:
    """A machine: its agent, and the workers that the agent has started."""

    def __init__(
        self,
        folder: Path,
        name: str,
        head: Path,
        address: str,
        config: dict[str, Any] | None = None,
        cwd: Path = ROOT,
    ) -> None:
        """Start the agent. By default the machine has four simulated GPUs and no other device."""
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.name, self.address = folder, name, address
        self._key = add_agent_key(head, name)
        self._cwd = cwd
        self._config = folder / "agent.yaml"
        devices = {"use": "cpu", "cpu_slots": 1, "simulated": [{"memory": "24GiB", "count": 4}]}
        self._config.write_text(
            yaml.safe_dump({"models": {"unused": {"engine": "sim"}}, "devices": devices} | (config or {}))
        )
        self.start()

    def start(self) -> None:
        """Start the agent, which adopts the workers of an earlier one."""
        where = ["--join", self.address, "--key-file", str(self._key), "--config", str(self._config)]
        self.process: Process = launch(
            "worker", self.folder, "--agent", *where, log="agent", start_new_session=True, cwd=self._cwd
        )

    def log(self) -> str:
        return (self.folder / "agent.log").read_text()

    def workers(self) -> list[psutil.Process]:
        """Return the running workers."""
        found = []
        for file in children_dir(self.folder).glob("*.json"):
            with contextlib.suppress(OSError, msgspec.MsgspecError, psutil.Error):
                record = msgspec.json.decode(file.read_bytes(), type=ProcessRecord)
                if is_alive(record.pid):
                    found.append(psutil.Process(record.pid))
        return found

    def kill(self, *, workers: bool = True) -> None:
        """Kill the agent, and its workers as the loss of the machine does."""
        victims = self.workers() if workers else []
        self.process.kill()
        for victim in victims:
            with contextlib.suppress(psutil.Error):
                victim.kill()
        self.process.wait()

    def pause(self) -> list[psutil.Process]:
        """Stop the agent and its workers for a while, as a machine that hangs. Return what was stopped."""
        stopped = [*self.workers(), psutil.Process(self.process.pid)]
        for process in stopped:
            with contextlib.suppress(psutil.Error):
                process.suspend()
        return stopped

    def resume(self, stopped: list[psutil.Process]) -> None:
        for process in stopped:
            with contextlib.suppress(psutil.Error):
                process.resume()

    def stop(self, patience_s: float) -> None:
        """Stop the agent, which ends its workers first."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(patience_s)

    def end(self) -> None:
        """Stop the agent with its workers; kill what is left."""
        self.stop(5.0)
        self.kill()


@contextlib.contextmanager
def agent_process(
    folder: Path, name: str, head: Path, address: str, config: dict[str, Any] | None = None
) -> Iterator[AgentMachine]:
    """Run the agent of a machine."""
    machine = AgentMachine(folder, name, head, address, config)
    try:
        yield machine
    finally:
        machine.end()
