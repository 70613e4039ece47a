"""A task, the states it may be in, and what its client is told.

    queued -> assigned -> running -> done | failed | cancelled | expired
       ^_________|___________|            (its worker was lost, or handed it back)

The table below is the whole truth: a move that it does not list raises `IllegalMove` with the task's history.
Rule: this module decides nothing about order or workers, and reads no clock.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass, field

from wire.codec import Frame
from wire.messages import Assignment, FailureKind, ImageInputs


class State(enum.StrEnum):
    """Where a task is."""

    QUEUED = "queued"
    #: Sent to a worker, which has not said yet that it began.
    ASSIGNED = "assigned"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


_ENDS = frozenset({State.DONE, State.FAILED, State.CANCELLED, State.EXPIRED})
MOVES: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.ASSIGNED, State.FAILED, State.CANCELLED, State.EXPIRED}),
    State.ASSIGNED: frozenset({State.RUNNING, State.QUEUED} | _ENDS),
    State.RUNNING: frozenset({State.QUEUED} | _ENDS),
    State.DONE: frozenset(),
    State.FAILED: frozenset(),
    State.CANCELLED: frozenset(),
    State.EXPIRED: frozenset(),
}


class IllegalMove(Exception):
    """A bug in the dispatcher: the task's history shows how it came to this."""

    def __init__(self, task: Task, to: State) -> None:
        path = ", ".join(f"{at:.3f} {state.value} ({why})" for at, state, why in task.history)
        super().__init__(f"task {task.id}: {task.state.value} -> {to.value} is no move; history: {path}")


@dataclass(slots=True)
class Task:
    """One image on its way. Times are seconds on the dispatcher's clock."""

    id: str
    model: str
    inputs: ImageInputs
    created: float
    #: When the answer is worthless.
    deadline: float
    #: Higher goes first; equal priorities go by age.
    priority: int = 0
    state: State = State.QUEUED
    #: Counts assignments, so that an answer to an earlier one is recognised as stale.
    attempt: int = 0
    #: Workers that died while this task ran on them.
    crashes: int = 0
    worker: str | None = None
    step: int = 0
    #: Forward passes it takes; the worker corrects the request's number when it starts.
    steps: int = 1
    checkpoint: Sequence[Frame] = ()
    first_started: float | None = None
    history: list[tuple[float, State, str]] = field(default_factory=list)

    def move(self, to: State, now: float, why: str) -> None:
        """Change state. Raises `IllegalMove` if the table does not list it."""
        if to not in MOVES[self.state]:
            raise IllegalMove(self, to)
        self.state = to
        self.history.append((now, to, why))

    @property
    def ended(self) -> bool:
        """Whether its client has its last word."""
        return self.state in _ENDS

    @property
    def remaining_steps(self) -> int:
        """Forward passes still to do."""
        return max(self.steps - self.step, 0)

    def assignment(self, alone: bool) -> Assignment:
        """What its worker is told."""
        return Assignment(self.id, self.attempt, self.inputs, self.step, alone, len(self.checkpoint))


# ---- what a client is told of its tasks; the hub passes these to the request's listener


@dataclass(frozen=True, slots=True)
class Began:
    """A worker has the task in its batch (again, where an earlier worker was lost)."""

    task: str


@dataclass(frozen=True, slots=True)
class Stepped:
    """`step` of `steps` are done; `preview` is an encoded picture of the moment, where one was asked for."""

    task: str
    step: int
    steps: int
    preview: Frame | None = None


@dataclass(frozen=True, slots=True)
class Completed:
    """The encoded image, and where the time went (seconds)."""

    task: str
    image: Frame
    waited_s: float
    ran_s: float


@dataclass(frozen=True, slots=True)
class Ended:
    """The task ended without an image."""

    task: str
    state: State
    kind: FailureKind | None
    message: str


Update = Began | Stepped | Completed | Ended


@dataclass(frozen=True, slots=True)
class Outlook:
    """A task's place: tasks before it in the queue (0 once it runs) and seconds to its end, None if unknown."""

    state: State
    position: int
    eta_s: float | None


class QueueFull(Exception):
    """The model's queue is full. `retry_after_s` is when there should be room."""

    def __init__(self, model: str, limit: int, retry_after_s: float) -> None:
        super().__init__(f"the queue of model '{model}' is full ({limit} images are waiting)")
        self.retry_after_s = retry_after_s
