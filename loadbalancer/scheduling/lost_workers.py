"""The tasks that are taken for the cause of each worker's loss, until the worker returns. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from wire.messages import Hello

#: Lost workers that are remembered. Of more, the one that was lost the longest ago is forgotten.
_MAX_WORKERS = 1024


class _Loss(NamedTuple):
    pid: int
    tasks: Sequence[str]


class LostWorkers:
    """Workers that were silent or not reachable. One that returns has not died: its network or machine stood still."""

    def __init__(self) -> None:
        self._lost: dict[str, _Loss] = {}

    def __repr__(self) -> str:
        return f"<LostWorkers {list(self._lost)}>"

    def add(self, worker: Hello, suspects: Sequence[str]) -> None:
        """Note the loss of a worker and the tasks that may be its cause."""
        self._lost.pop(worker.worker, None)
        if suspects:
            self._lost[worker.worker] = _Loss(worker.pid, suspects)
            if len(self._lost) > _MAX_WORKERS:
                del self._lost[next(iter(self._lost))]

    def on_return(self, worker: Hello) -> Sequence[str]:
        """Return the tasks that have not killed this worker, because the same process has connected again."""
        loss = self._lost.pop(worker.worker, None)
        return loss.tasks if loss is not None and loss.pid == worker.pid else ()
