"""Deadlines: which tasks are late, and which cannot finish in time. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Mapping

from loadbalancer.scheduling.cost_model import CostModel
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.worker_pool import Worker
from loadbalancer.scheduling.worker_registry import WorkerRegistry

#: Entries of ended tasks are removed when they are the majority, and above this number.
_CLEAN_UP_ABOVE = 1024
#: Safety factor while others wait for the same slot: the head of the queue is close to its deadline then, and would
#: otherwise often miss it narrowly.
_MARGIN = 1.1


class DeadlineHeap:
    """The tasks by deadline. Entries of ended tasks are skipped, so that none has to be removed."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, str]] = []

    def __repr__(self) -> str:
        return f"<DeadlineHeap of {len(self._heap)} tasks>"

    def add(self, task: Task) -> None:
        heapq.heappush(self._heap, (task.deadline, task.id))

    def pop_late(self, tasks: Mapping[str, Task], now: float) -> Iterator[Task]:
        """Yield each of the unfinished `tasks` whose deadline has passed, once."""
        if len(self._heap) > 2 * len(tasks) + _CLEAN_UP_ABOVE:
            self._heap = [entry for entry in self._heap if entry[1] in tasks]
            heapq.heapify(self._heap)
        while self._heap and self._heap[0][0] <= now:
            task = tasks.get(heapq.heappop(self._heap)[1])
            if task is not None:
                yield task


def worker_in_time(
    task: Task,
    registry: WorkerRegistry,
    first_available: Worker,
    tasks: Mapping[str, Task],
    costs: CostModel,
    *,
    waiting: int,
    slack: float | None,
    now: float,
) -> Worker | None:
    """Return the first available worker that finishes the task in time; None where none of the model's workers would.

    Mostly this is `first_available`. Where only a full worker would finish in time, any may start the task: a slow
    worker is no reason to expire what a fast one could finish.
    """
    remaining_s = task.deadline - now
    if slack is None or remaining_s <= 0:
        return first_available if remaining_s > 0 else None
    _, longest_s = first_available.step_bounds_s(task.shape)
    steps = task.remaining_steps * costs.overhead(task.shape)
    if steps * longest_s * _MARGIN <= remaining_s and steps * longest_s <= slack * remaining_s:
        return first_available
    available, pool = registry.available(task.model, now), registry.pools[task.model]
    crowded = waiting > sum(worker.free_slots for worker in available)
    if crowded and steps * pool.shortest_step_s(task.shape) * _MARGIN > remaining_s:
        return None
    for worker in (*available, *pool):
        others = min(sum(name in tasks for name in worker.assigned), max(worker.slots - 1, 0))
        if not cannot_finish_in_time(task, worker, others, costs, crowded=crowded, slack=slack, now=now):
            return worker if worker in available else first_available
    return None


def cannot_finish_in_time(
    task: Task, worker: Worker, others: int, costs: CostModel, *, crowded: bool, slack: float | None, now: float
) -> bool:
    """Return whether the worker should not start the task beside `others` in its batch.

    A full queue of short deadlines settles where each task has waited for almost all of its time. Workers that started
    the next task regardless would then only produce late results. `crowded`: more tasks wait than slots are free.
    Without a crowd a task is only given up by the measure of admission (`slack` times its time), because it would slow
    down its batch. An idle worker starts any task, and so measures the costs again.
    """
    remaining_s = task.deadline - now
    if remaining_s <= 0:
        return True
    if slack is None:
        return False
    step_s = costs.batch_step_s(task.shape, worker, others + 1)
    if step_s is None:
        return False
    required_s = task.remaining_steps * step_s
    if crowded:
        return required_s * _MARGIN > remaining_s
    return others > 0 and required_s > slack * remaining_s
