"""Whether a request may come in: full is an answer, and so is too late. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from loadbalancer.scheduling.estimates import drain_s, earliest_finish_s, time_until_room
from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.rules import Rules
from loadbalancer.scheduling.task import DeadlineUnreachable, QueueFull, Task
from loadbalancer.scheduling.worker_registry import Worker


class AdmissionControl:
    """Looks at each request before it is queued, and keeps count of the source pictures inside."""

    def __init__(self, rules: Rules, max_source_bytes: int) -> None:
        self._rules = rules
        self._max_source_bytes = max_source_bytes
        #: Bytes of source pictures that the tasks hold; pictures that tasks of a request share are counted for each.
        self._source_bytes = 0

    def __repr__(self) -> str:
        return f"<Door {self._source_bytes} of {self._max_source_bytes} bytes of source pictures inside>"

    def enter(self, tasks: Sequence[Task]) -> None:
        """These were let in."""
        self._source_bytes += sum(task.source_bytes for task in tasks)

    def leave(self, task: Task) -> None:
        """It has ended."""
        self._source_bytes -= task.source_bytes

    def refusal(
        self, tasks: Sequence[Task], queue: ModelQueue, workers: Sequence[Worker], now: float
    ) -> QueueFull | None:
        """Why a request is not let in, all of it or none; None where it is."""
        return (
            self._no_room(tasks, queue, workers)
            or self._too_much_work(tasks, queue, workers)
            or self._too_late(tasks, queue, workers, now)
        )

    def _no_room(self, tasks: Sequence[Task], queue: ModelQueue, workers: Sequence[Worker]) -> QueueFull | None:
        if len(tasks) > queue.room(tasks[0].owner):
            why = f"the queue of model '{tasks[0].model}' is full ({queue.max_tasks} images are waiting)"
            return QueueFull(why, time_until_room(queue, workers, len(tasks)))
        coming = sum(task.source_bytes for task in tasks)
        if self._source_bytes and self._source_bytes + coming > self._max_source_bytes:
            why = f"source pictures of unfinished images fill the {self._max_source_bytes >> 20} MiB that they may take"
            return QueueFull(why, time_until_room(queue, workers, len(tasks)))
        return None

    def _too_much_work(self, tasks: Sequence[Task], queue: ModelQueue, workers: Sequence[Worker]) -> QueueFull | None:
        """An empty queue takes everything: a large request is better served than never.

        As with the number of tasks, an owner with less than an equal part of a full queue is let in.
        """
        most, owner = self._rules.max_work_s, tasks[0].owner
        drain = drain_s(queue.steps, workers) if len(queue) else None
        if most is None or drain is None:
            return None
        coming = drain_s({tasks[0].size: sum(task.remaining_steps for task in tasks)}, workers) or 0.0
        own = drain_s(queue.steps_of(owner), workers) or 0.0
        if drain + coming <= most or own + coming <= most / queue.sharers(owner):
            return None
        why = f"the queue of model '{tasks[0].model}' is full ({drain:.0f} s of work are waiting, {most:g} s may)"
        return QueueFull(why, min(max(drain + coming - most, 1.0), 60.0))

    def _too_late(
        self, tasks: Sequence[Task], queue: ModelQueue, workers: Sequence[Worker], now: float
    ) -> QueueFull | None:
        slack, has = self._rules.deadline_slack, tasks[0].deadline - now
        if slack is None:
            return None
        eta = earliest_finish_s(tasks, queue, workers, enough_s=slack * has)
        if eta is None or eta <= slack * has:
            return None
        why = f"the image would take about {eta:.1f} s, the request allows {has:.1f} s"
        return DeadlineUnreachable(why, min(max(eta - has, 1.0), 60.0), eta)
