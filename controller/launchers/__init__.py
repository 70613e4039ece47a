"""The seam between deciding and doing: a few verbs on worker processes, wherever they run."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from controller.types import Exit, WorkerProcess


class PollResult(NamedTuple):
    """What there is, and what has ended since the last look."""

    children: Sequence[WorkerProcess]
    exits: Sequence[Exit]


class Launcher(Protocol):
    """Starts and ends workers. Every verb returns at once and may be said again in any state."""

    def start(self, worker: str, model: str, device: str) -> None:
        """Have a worker of this name; nothing happens if there is one."""

    def start_spare(self, worker: str, model: str, kind: str) -> None:
        """Have a process of this name that loads the model and waits for a device of this kind."""

    def activate(self, worker: str, device: str) -> None:
        """Have the spare of this name serve on the device; nothing happens if there is none, or if it does already."""

    def drain(self, worker: str, *, immediate: bool = False) -> None:
        """Tell it to finish and go; with `hurry`, to hand back what it has and go."""

    def kill(self, worker: str) -> None:
        """Have no worker of this name; nothing happens if there is none."""

    def poll(self) -> PollResult:
        """Look at every process. Each exit is told once."""
