"""Admission control: rejects requests for which there is no room or no time. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from configs.sections import Queue
from loadbalancer.scheduling.estimates import drain_s
from loadbalancer.scheduling.owner_quota import OwnerQuota
from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.task import DeadlineUnreachable, QueueFull, Task
from loadbalancer.scheduling.worker_pool import WorkerPool
from wire.inputs import NO_SHAPE

#: Time until the queue has room where nothing was measured.
_UNKNOWN_ROOM_S = 10.0
_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 60.0


class AdmissionControl:
    """Checks each request before it is queued, and counts the memory of accepted source images."""

    def __init__(self, config: Queue) -> None:
        self._config = config
        #: Bytes of the source images of unfinished tasks; images shared by the tasks of a request count for each.
        self._source_bytes = OwnerQuota(config.max_source_bytes)

    def __repr__(self) -> str:
        return f"<AdmissionControl, bytes of source images: {self._source_bytes!r}>"

    def remove(self, task: Task) -> None:
        self._source_bytes.remove(task.owner, task.source_bytes)

    def admit(self, tasks: Sequence[Task], queue: ModelQueue, workers: WorkerPool, now: float) -> QueueFull | None:
        """Accept the request as a whole, or return why it is rejected."""
        first, config = tasks[0], self._config
        if queue.count + len(tasks) > queue.max_tasks and len(tasks) > queue.room(first.owner):
            own = queue.owner_tasks(first.owner)
            waiting = f"{queue.count} of {queue.max_tasks} tasks are waiting, {own} of them of '{first.owner}'"
            reason = f"the queue of model '{first.model}' is full ({waiting})"
            return QueueFull(reason, _bounded_retry_s(_room_s(len(tasks), queue, workers)))
        added_bytes = first.source_bytes if len(tasks) == 1 else sum(task.source_bytes for task in tasks)
        if added_bytes and not self._source_bytes.fits(first.owner, added_bytes):
            whose = self._source_bytes.describe(first.owner)
            reason = f"there is no room for more source images and inputs of unfinished requests ({whose} bytes)"
            return QueueFull(reason, _bounded_retry_s(_room_s(len(tasks), queue, workers)))
        if config.max_work_s is not None and queue.count:
            rejection = _too_much_work(tasks, queue, workers, config.max_work_s)
            if rejection is not None:
                return rejection
        if config.deadline_slack is not None:
            remaining_s, finish_s = first.deadline - now, None
            enough_s = config.deadline_slack * remaining_s
            fastest_s = workers.fastest_step_s(first.shape)
            # Where nothing waits, a single task needs its own steps only.
            if queue.count or len(tasks) > 1 or (first.steps - first.step) * fastest_s > enough_s:
                finish_s = _earliest_finish_s(tasks, queue, workers, fastest_s, enough_s)
            if finish_s is not None and finish_s > enough_s:
                reason = f"it would take about {finish_s:.3g} s, the request allows {max(remaining_s, 0):.3g} s"
                return DeadlineUnreachable(reason, _bounded_retry_s(finish_s - remaining_s), finish_s)
        if added_bytes:
            self._source_bytes.add(first.owner, added_bytes)
        return None


def _too_much_work(
    tasks: Sequence[Task], queue: ModelQueue, workers: WorkerPool, max_work_s: float
) -> QueueFull | None:
    """Bound the waiting work. An empty queue accepts a request of any size, so this is only called for others.

    As with the number of tasks, an owner below its equal part of a full queue is accepted.
    """
    first, queue_s = tasks[0], drain_s(queue.steps, workers)
    if queue_s is None:
        return None
    request_s = drain_s({first.shape: sum(task.remaining_work for task in tasks)}, workers) or 0.0
    owner_s = drain_s(queue.owner_steps(first.owner), workers) or 0.0
    total_s = queue_s + request_s
    if total_s <= max_work_s or owner_s + request_s <= max_work_s / queue.active_owners(first.owner):
        return None
    waiting = f"{queue_s:.0f} s of work are waiting, the limit is {max_work_s:g} s"
    return QueueFull(f"the queue of model '{first.model}' is full ({waiting})", _bounded_retry_s(total_s - max_work_s))


def _room_s(count: int, queue: ModelQueue, workers: WorkerPool) -> float:
    """Return the seconds until the queue should have room for `count` more tasks."""
    rate = workers.steps_per_s(next(iter(queue.steps), NO_SHAPE))
    return count * sum(queue.steps.values()) / max(queue.count, 1) / rate if rate else _UNKNOWN_ROOM_S


def _earliest_finish_s(
    tasks: Sequence[Task], queue: ModelQueue, workers: WorkerPool, fastest_s: float, enough_s: float
) -> float | None:
    """Return the seconds until tasks that are not queued yet would finish at the earliest; None if not measured.

    That is the waiting work before them in full batches, then their own steps in the smallest batches. Where even the
    last place in the queue finishes within `enough_s`, their own place is not computed, and that time is the result.
    `fastest_s`: seconds of a step of a batch of one on the fastest worker.
    """
    first = tasks[0]
    queue_s = drain_s(queue.steps, workers) if queue.steps else 0.0
    if not fastest_s or queue_s is None:
        return None
    own_s = (first.steps - first.step) * fastest_s
    if len(tasks) > 1 and len(tasks) > workers.slots:
        rate = workers.steps_per_s(first.shape)
        if not rate:
            return None
        own_s += sum(task.remaining_work for task in tasks[1:]) / rate
    if queue_s + own_s <= enough_s or not queue_s:
        return queue_s + own_s
    return own_s + queue_s * queue.expected_position(first) / max(queue.count, 1)


def _bounded_retry_s(seconds: float) -> float:
    """Bound the time after which a client is asked to retry."""
    return min(max(seconds, _MIN_RETRY_S), _MAX_RETRY_S)
