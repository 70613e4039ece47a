"""The states of a task.

    queued -> assigned -> running -> done | failed | cancelled | expired
       ^_________|___________|            (its worker was lost, or preempted it)

`TRANSITIONS` lists every allowed transition; any other raises `InvalidTransition` with the task's history.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence


class TaskState(enum.StrEnum):
    """The states of a task."""

    QUEUED = "queued"
    #: Sent to a worker that has not started it yet.
    ASSIGNED = "assigned"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"

    __hash__ = str.__hash__  # the enumeration's own is a function in Python, and slow


ENDS = frozenset({TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED})
TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    TaskState.QUEUED: frozenset({TaskState.ASSIGNED, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED}),
    TaskState.ASSIGNED: frozenset({TaskState.RUNNING, TaskState.QUEUED} | ENDS),
    TaskState.RUNNING: frozenset({TaskState.QUEUED} | ENDS),
    TaskState.DONE: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.CANCELLED: frozenset(),
    TaskState.EXPIRED: frozenset(),
}


#: A text, or a format with its values: most histories are never read.
Reason = str | tuple[object, ...]
#: Time, state, reason, worker and step.
Transition = tuple[float, TaskState, Reason, str | None, int]


def reason_text(reason: Reason) -> str:
    return reason if isinstance(reason, str) else str(reason[0]).format(*reason[1:])


class InvalidTransition(Exception):
    """A bug in the scheduler; the text contains the task's history."""

    def __init__(self, task: str, state: TaskState, to: TaskState, history: Sequence[Transition]) -> None:
        path = ", ".join(f"{at:.3f} {state.value} ({reason_text(reason)})" for at, state, reason, *_ in history)
        super().__init__(f"task {task}: {state.value} -> {to.value} is not allowed; history: {path}")
