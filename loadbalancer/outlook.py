"""How long things will take, from what the workers have measured. Pure; estimates, never promises."""

from __future__ import annotations

from collections.abc import Sequence

from loadbalancer.request_queue import ModelQueue
from loadbalancer.roster import Worker
from loadbalancer.task import Outlook, State, Task


def outlook(task: Task, queue: ModelQueue, workers: Sequence[Worker]) -> Outlook:
    """The task's place and the seconds to its end."""
    if task.state is not State.QUEUED:
        present = max((worker.beat.step_s for worker in workers), default=0.0)
        return Outlook(task.state, 0, task.remaining_steps * present if present else None)
    position = queue.position(task)
    rate = sum(worker.rate(task.size) for worker in workers)
    if not rate:
        return Outlook(task.state, position, None)
    # The steps before it are estimated from its position: summing them would cost the whole queue each time.
    ahead = queue.steps.total() * position / max(len(queue), 1)
    own = task.remaining_steps * max(worker.step_s(task.size) for worker in workers)
    return Outlook(task.state, position, ahead / rate + own)


def room_in(queue: ModelQueue, workers: Sequence[Worker], wanted: int) -> float:
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
