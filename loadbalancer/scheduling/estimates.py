"""How long things will take, from what the workers have measured. Pure; estimates, never promises."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from loadbalancer.scheduling.request_queue import ModelQueue, Size
from loadbalancer.scheduling.task import Task, TaskEstimate, TaskState
from loadbalancer.scheduling.worker_registry import Worker


def estimate(task: Task, queue: ModelQueue, workers: Sequence[Worker]) -> TaskEstimate:
    """The task's place and the seconds to its end."""
    if task.state is not TaskState.QUEUED:
        present = max((worker.beat.step_s for worker in workers), default=0.0)
        return TaskEstimate(task.state, 0, task.remaining_steps * present if present else None)
    position = queue.position(task)
    drain = drain_s(queue.steps, workers)
    if drain is None:
        return TaskEstimate(task.state, position, None)
    # The work before it is estimated from its position: summing it would cost the whole queue each time.
    ahead = drain * position / max(len(queue), 1)
    own = task.remaining_steps * max(worker.step_s(task.size) for worker in workers)
    return TaskEstimate(task.state, position, ahead + own)


def estimate_wait(task: Task, queue: ModelQueue, workers: Sequence[Worker], tasks: Mapping[str, Task]) -> float | None:
    """Seconds until a task that has not been queued yet would begin: what waits before it in full batches, and where no
    slot is free, the rest of the task that is done first. None while that has not been measured.
    """
    drain = drain_s(queue.steps, workers) if len(queue) else 0.0
    first = 0.0 if any(worker.free for worker in workers) else _first_done_s(workers, tasks)
    if drain is None or first is None:
        return None
    return first + drain * queue.position_if(task) / max(len(queue), 1)


def _first_done_s(workers: Sequence[Worker], tasks: Mapping[str, Task]) -> float | None:
    """Seconds until one of the tasks that run is done, and its worker takes another; None if unknown."""
    rests = (
        held.remaining_steps * step_s
        for worker in workers
        if not worker.draining
        for name in worker.held
        if (held := tasks.get(name)) is not None and (step_s := worker.step_s(held.size)) > 0
    )
    return min(rests, default=None)


def earliest_finish_s(
    tasks: Sequence[Task], queue: ModelQueue, workers: Sequence[Worker], enough_s: float = 0.0
) -> float | None:
    """Seconds to the end of tasks that have not been queued yet, if all goes well: what waits before them in full
    batches, then their own steps in the quickest batches. None while a step of their size has not been measured.

    Where even the last place in the queue is within `enough_s`, theirs is not looked for, and that is the answer.
    """
    own = tasks[0]
    quickest = [step_s for worker in workers if (step_s := worker.step_of(own.size, 1)) > 0]
    drain = drain_s(queue.steps, workers)
    if not quickest or drain is None:
        return None
    rate = sum(worker.rate(own.size) for worker in workers)
    others = sum(task.remaining_steps for task in tasks[1:]) / rate if len(tasks) > _slots(workers) else 0.0
    theirs = others + own.remaining_steps * min(quickest)
    if drain + theirs <= enough_s:
        return drain + theirs
    return theirs + drain * queue.position_if(own) / max(len(queue), 1)


def drain_s(waiting: Mapping[Size, int], workers: Sequence[Worker]) -> float | None:
    """Seconds that the workers together need for so many steps by size, in full batches; None if not measured."""
    seconds = 0.0
    for size, steps in waiting.items():
        rate = sum(worker.rate(size) for worker in workers)
        if not rate:
            return None
        seconds += steps / rate
    return seconds if seconds or any(worker.rate((0, 0)) for worker in workers) else None


def _slots(workers: Sequence[Worker]) -> int:
    return sum(worker.slots for worker in workers)


def time_until_room(queue: ModelQueue, workers: Sequence[Worker], wanted: int) -> float:
    """Seconds until the queue should have room for so many tasks: their steps at the workers' full pace."""
    rate = sum(worker.rate(next(iter(queue.steps), (0, 0))) for worker in workers)
    mean_steps = queue.steps.total() / max(len(queue), 1)
    return min(max(wanted * mean_steps / rate, 1.0), 60.0) if rate else 10.0


def queued_work_s(queue: ModelQueue, workers: Sequence[Worker]) -> float | None:
    """Seconds that the queue would take one worker in full batches; None while no worker has measured a step."""
    work_s = 0.0
    for size, steps in queue.steps.items():
        rates = [rate for worker in workers if (rate := worker.rate(size)) > 0]
        if not rates:
            return None
        work_s += steps * len(rates) / sum(rates)
    return work_s if work_s or any(worker.rate((0, 0)) for worker in workers) else None
