"""Admission control: rejects requests for which there is no room or no time. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from configs.sections import Queue
from loadbalancer.scheduling.deadlines import is_unreachable
from loadbalancer.scheduling.estimates import AdmissionEstimate
from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.task import DeadlineUnreachable, QueueFull, Task

_MIN_RETRY_S, _MAX_RETRY_S = 1.0, 60.0


class AdmissionControl:
    """Checks each request before it is queued, and counts the memory of accepted source images."""

    def __init__(self, config: Queue) -> None:
        self._config = config
        #: Bytes of the source images of unfinished tasks; images shared by the tasks of a request count for each.
        self._source_bytes = 0

    def __repr__(self) -> str:
        return f"<AdmissionControl {self._source_bytes} of {self._config.max_source_bytes} bytes of source images>"

    def remove(self, task: Task) -> None:
        self._source_bytes -= task.source_bytes

    def admit(
        self, tasks: Sequence[Task], queue: ModelQueue, estimate: AdmissionEstimate, now: float
    ) -> QueueFull | None:
        """Accept the request as a whole, or return why it is rejected."""
        first, config = tasks[0], self._config
        if len(tasks) > queue.room(first.owner):
            reason = f"the queue of model '{first.model}' is full ({queue.max_tasks} images are waiting)"
            return QueueFull(reason, _bounded_retry_s(estimate.room_s))
        added_bytes = sum(task.source_bytes for task in tasks)
        if self._source_bytes and self._source_bytes + added_bytes > config.max_source_bytes:
            reason = f"source images of unfinished requests fill their limit of {config.max_source_bytes >> 20} MiB"
            return QueueFull(reason, _bounded_retry_s(estimate.room_s))
        if config.max_work_s is not None and len(queue):
            rejection = self._too_much_work(first, queue, estimate, config.max_work_s)
            if rejection is not None:
                return rejection
        remaining_s, finish_s = first.deadline - now, estimate.finish_s
        if finish_s is None or not is_unreachable(finish_s, remaining_s, config.deadline_slack):
            self._source_bytes += added_bytes
            return None
        reason = f"the image would take about {finish_s:.1f} s, the request allows {remaining_s:.1f} s"
        return DeadlineUnreachable(reason, _bounded_retry_s(finish_s - remaining_s), finish_s)

    def _too_much_work(
        self, task: Task, queue: ModelQueue, estimate: AdmissionEstimate, max_work_s: float
    ) -> QueueFull | None:
        """Bound the waiting work. An empty queue accepts a request of any size, so this is only called for others.

        As with the number of tasks, an owner below its equal part of a full queue is accepted.
        """
        if estimate.queue_s is None:
            return None
        request_s, owner_s = estimate.request_s or 0.0, estimate.owner_s or 0.0
        total_s = estimate.queue_s + request_s
        if total_s <= max_work_s or owner_s + request_s <= max_work_s / queue.active_owners(task.owner):
            return None
        waiting = f"{estimate.queue_s:.0f} s of work are waiting, the limit is {max_work_s:g} s"
        return QueueFull(
            f"the queue of model '{task.model}' is full ({waiting})", _bounded_retry_s(total_s - max_work_s)
        )


def _bounded_retry_s(seconds: float) -> float:
    """Bound the time after which a client is asked to retry."""
    return min(max(seconds, _MIN_RETRY_S), _MAX_RETRY_S)
