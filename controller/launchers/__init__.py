"""The launcher protocol: start, activate, drain and kill worker processes."""

from __future__ import annotations

from typing import Protocol

from host.types import PollResult


class Launcher(Protocol):
    """Starts and stops workers. Every call returns at once and is idempotent."""

    def start(self, worker: str, model: str, device: str, *, standby: bool = False) -> None:
        """Start a worker of this name, unless there is one. One on standby waits for a device of this kind."""

    def activate(self, worker: str, device: str) -> None:
        """Activate the standby worker on the device, if there is one."""

    def drain(self, worker: str, *, immediate: bool = False) -> None:
        """Drain the worker; with `immediate`, it returns its tasks at once."""

    def kill(self, worker: str) -> None:
        """Kill the worker, if there is one."""

    def poll(self) -> PollResult:
        """Poll every process. Each exit is reported once."""
