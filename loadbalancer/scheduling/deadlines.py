"""Deadlines: which worker finishes a task in time, and which cannot. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from loadbalancer.scheduling.cost_model import CostModel
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.worker_pool import Worker
from loadbalancer.scheduling.worker_registry import WorkerRegistry

#: Safety factor while others wait for the same slot: the head of the queue is close to its deadline then, and would
#: otherwise often miss it narrowly.
_MARGIN = 1.1


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
    _, longest_s = first_available.step_times.bounds_s(task.shape, first_available.slots)
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
