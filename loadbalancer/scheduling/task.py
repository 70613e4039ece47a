"""A task, the states it may be in, and what its client is told.

    queued -> assigned -> running -> done | failed | cancelled | expired
       ^_________|___________|            (its worker was lost, or handed it back)

The table below is the whole truth: a move that it does not list raises `IllegalMove` with the task's history.
Rule: this module decides nothing about order or workers, and reads no clock.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from wire.codec import Frame
from wire.messages import Assignment, FailureKind, ImageInputs


class TaskState(enum.StrEnum):
    """Where a task is."""

    QUEUED = "queued"
    #: Sent to a worker, which has not said yet that it began.
    ASSIGNED = "assigned"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


#: A task under which this many workers died may be the reason: from then on it runs alone. The first death is
#: taken for chance, so that a killed worker does not turn its whole batch into single file.
_ALONE_AFTER_CRASHES = 2
#: No sampler makes more forward passes for each step that it was asked for: a worker's word goes no further.
_MOST_PASSES = 20
#: A task that goes to and fro must not grow by it.
_LAST_MOVES = 100
_ENDS = frozenset({TaskState.DONE, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED})
TRANSITIONS: dict[TaskState, frozenset[TaskState]] = {
    TaskState.QUEUED: frozenset({TaskState.ASSIGNED, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED}),
    TaskState.ASSIGNED: frozenset({TaskState.RUNNING, TaskState.QUEUED} | _ENDS),
    TaskState.RUNNING: frozenset({TaskState.QUEUED} | _ENDS),
    TaskState.DONE: frozenset(),
    TaskState.FAILED: frozenset(),
    TaskState.CANCELLED: frozenset(),
    TaskState.EXPIRED: frozenset(),
}


class InvalidTransition(Exception):
    """A bug in the dispatcher: the task's history shows how it came to this."""

    def __init__(self, task: Task, to: TaskState) -> None:
        path = ", ".join(f"{at:.3f} {state.value} ({why})" for at, state, why in task.history)
        super().__init__(f"task {task.id}: {task.state.value} -> {to.value} is no move; history: {path}")


class Checkpoint(NamedTuple):
    """A task's state at a step boundary: `step` of `steps` forward passes are done, `frames` are its checkpoint."""

    step: int
    steps: int
    frames: Sequence[Frame]


@dataclass(slots=True)
class Task:
    """One image on its way. Times are seconds on the dispatcher's clock."""

    id: str
    model: str
    inputs: ImageInputs
    created: float
    #: When the answer is worthless.
    deadline: float
    #: Among the tasks of its owner, higher goes first; equal priorities go by age.
    priority: int = 0
    #: Whose it is: the workers' time is shared between owners, in proportion to their weights.
    owner: str = "anonymous"
    weight: float = 1.0
    state: TaskState = TaskState.QUEUED
    #: Counts assignments, so that an answer to an earlier one is recognised as stale.
    attempt: int = 0
    #: The highest attempt in which a worker said that it had it, from an earlier life of the balancer.
    claimed: int = 0
    #: Some worker may still run it, from an earlier life of the balancer.
    may_be_running: bool = False
    #: Workers that died while this task ran on them.
    crashes: int = 0
    worker: str | None = None
    step: int = 0
    #: Forward passes it takes; the worker corrects the request's number when it starts.
    steps: int = 1
    #: Pixels of its source pictures, which go wherever it goes.
    sources: Sequence[Frame] = ()
    #: Its last known state at `checkpoint_step`: what it goes on from if its worker is lost.
    checkpoint: Sequence[Frame] = ()
    checkpoint_step: int = 0
    first_started: float | None = None
    #: When its worker last began with it.
    started: float | None = None
    #: Its worker was asked to hand it back.
    leaving: bool = False
    #: Pictures of the moment that its workers have sent.
    previews: int = 0
    #: How often it was handed back in favour of another task or another worker.
    moves: int = 0
    #: It began at its first step with its first worker: what it takes is what an image takes.
    whole: bool = True
    #: Work that workers have had with it, in seconds of one that does nothing else.
    work_s: float = 0.0
    #: Images of the request that it belongs to.
    siblings: int = 1
    #: Its last moves.
    history: deque[tuple[float, TaskState, str]] = field(default_factory=lambda: deque(maxlen=_LAST_MOVES))

    def move(self, to: TaskState, now: float, why: str) -> None:
        """Change state. Raises `IllegalMove` if the table does not list it."""
        if to not in TRANSITIONS[self.state]:
            raise InvalidTransition(self, to)
        self.state = to
        self.history.append((now, to, why))

    @property
    def ended(self) -> bool:
        """Whether its client has its last word."""
        return self.state in _ENDS

    @property
    def alone(self) -> bool:
        """Whether nothing may share a batch with it."""
        return self.crashes >= _ALONE_AFTER_CRASHES

    @property
    def remaining_steps(self) -> int:
        """Forward passes still to do."""
        return max(self.steps - self.step, 0)

    def assignment(self) -> Assignment:
        """What its worker is told."""
        frames = len(self.sources) + len(self.checkpoint)
        return Assignment(self.id, self.attempt, self.inputs, self.checkpoint_step, self.alone, frames)

    def progress(self, step: int, steps: int, frames: Sequence[Frame], *, preview: bool) -> TaskProgress:
        """Its worker tells how far it is, with a preview, a checkpoint, both or none; gives what the client is told.

        Pictures and checkpoints are made beside the worker's loop, and may come after the news of a later step.
        """
        step, steps = (min(each, _MOST_PASSES * self.inputs.steps) for each in (step, steps))
        self.step, self.steps = max(self.step, step), max(steps, step, 1)
        pictures, checkpoint = frames[:preview], frames[preview:]
        if checkpoint and step > self.checkpoint_step:
            self._save(step, checkpoint)
        due = self.previews < self.inputs.partial_images * self.attempt
        picture = pictures[0] if pictures and due else None
        self.previews += picture is not None
        return TaskProgress(self.id, self.step if picture is None else step, self.steps, picture)

    def returned(self, step: int, frames: Sequence[Frame]) -> None:
        """Its worker hands it back, with its state at this step where it has one."""
        if frames:
            self.step = step
            self._save(step, frames)

    def _save(self, step: int, frames: Sequence[Frame]) -> None:
        self.checkpoint, self.checkpoint_step = tuple(frames), step

    def resume(self, state: Checkpoint) -> None:
        """It ran before it was submitted, in an earlier life of the balancer: it goes on from there."""
        self.step, self.steps, self.whole = state.step, max(state.steps, state.step, 1), False
        self._save(state.step, state.frames)

    def set_back(self) -> int:
        """Return to the checkpoint; gives the steps that have to be done again."""
        lost, self.step = self.step - self.checkpoint_step, self.checkpoint_step
        return max(lost, 0)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of its image in pixels: what its steps cost depends on it."""
        return self.inputs.width, self.inputs.height

    @property
    def source_bytes(self) -> int:
        """Memory that its source pictures take."""
        return sum(map(len, self.sources))


# ---- what a client is told of its tasks; the hub passes these to the request's listener


@dataclass(frozen=True, slots=True)
class TaskStarted:
    """A worker has the task in its batch (again, where an earlier worker was lost)."""

    task: str


@dataclass(frozen=True, slots=True)
class TaskProgress:
    """`step` of `steps` are done; `preview` is an encoded picture of the moment, where one was asked for."""

    task: str
    step: int
    steps: int
    preview: Frame | None = None


@dataclass(frozen=True, slots=True)
class TaskCompleted:
    """The encoded image, and where the time went (seconds). `flagged`: the model's safety checker objects to it."""

    task: str
    image: Frame
    waited_s: float
    ran_s: float
    flagged: bool = False


@dataclass(frozen=True, slots=True)
class TaskEnded:
    """The task ended without an image."""

    task: str
    state: TaskState
    kind: FailureKind | None
    message: str


TaskUpdate = TaskStarted | TaskProgress | TaskCompleted | TaskEnded


@dataclass(frozen=True, slots=True)
class TaskEstimate:
    """A task's place: tasks before it in the queue (0 once it runs) and seconds to its end, None if unknown."""

    state: TaskState
    position: int
    eta_s: float | None


class QueueFull(Exception):
    """No room for more tasks, or for more source pictures. `retry_after_s` is when there should be."""

    def __init__(self, why: str, retry_after_s: float) -> None:
        super().__init__(why)
        self.retry_after_s = retry_after_s


class DeadlineUnreachable(QueueFull):
    """By what was measured, the answer would come too late: no work is spent on it. `eta_s` is when it would come."""

    def __init__(self, why: str, retry_after_s: float, eta_s: float) -> None:
        super().__init__(why, retry_after_s)
        self.eta_s = eta_s
