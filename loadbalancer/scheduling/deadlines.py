"""Which tasks are too late. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from loadbalancer.scheduling.task import Task

#: Entries of ended tasks are swept out when they are most, and at least so many.
_SWEEP_PAST = 1024


class Deadlines:
    """The tasks by deadline. Ended ones are passed over, so that nothing needs to be taken out."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []

    def __repr__(self) -> str:
        return f"<Deadlines of {len(self._heap)} tasks>"

    def add(self, task: Task) -> None:
        """The task has a deadline."""
        heapq.heappush(self._heap, (task.deadline, task.id))

    def due(self, tasks: Mapping[str, Task], now: float) -> Iterator[Task]:
        """Those of `tasks`, which has all that have not ended, whose deadline has come. Each is given once."""
        if len(self._heap) > 2 * len(tasks) + _SWEEP_PAST:
            self._heap = [entry for entry in self._heap if entry[1] in tasks]
            heapq.heapify(self._heap)
        while self._heap and self._heap[0][0] <= now:
            task = tasks.get(heapq.heappop(self._heap)[1])
            if task is not None:
                yield task
