"""The workers: what each can hold, what it holds, and which one a task should go to.

A worker's slot is taken from the moment a task is sent to it until the worker says that it let go of it, whatever
became of the task meanwhile. So `held <= slots` always, and a slot is never given twice.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from loadbalancer.task import Task
from wire.messages import Heartbeat, Hello, StepCurve
from wire.snapshot import WorkerState

#: A worker that has missed this many heartbeats gets nothing new.
_SILENT_AFTER_BEATS = 3.0


@dataclass(slots=True)
class Worker:
    """One connected worker."""

    hello: Hello
    last_seen: float
    slots: int = 0
    #: Attempt number of each task whose slot the worker has not freed yet.
    held: dict[str, int] = field(default_factory=dict)
    #: A task that must run alone waits for this worker to become empty, or runs on it.
    reserved: str | None = None
    draining: bool = False
    beat: Heartbeat = field(default_factory=lambda: Heartbeat(running=0))

    @property
    def id(self) -> str:
        """The worker's name."""
        return self.hello.worker

    @property
    def free(self) -> int:
        """Slots that a task may be sent to."""
        return 0 if self.draining else max(self.slots - len(self.held), 0)

    def rate(self, size: tuple[int, int]) -> float:
        """Task-steps per second that it makes of images of this size when it has enough of them; 0 if not measured.

        A size that it has not measured goes at the pace of its present batch, or of the first size that it has.
        """
        curve = self._curve(size)
        if curve is None and self.beat.step_s > 0:
            return self.beat.batch / self.beat.step_s
        tasks, seconds = _full(curve or next(iter(self.beat.curves), None))
        return tasks / seconds if seconds > 0 else 0.0

    def step_s(self, size: tuple[int, int]) -> float:
        """Seconds of a step of its full batch of images of this size, or of its recent steps; 0 if not measured."""
        return _full(self._curve(size))[1] or self.beat.step_s

    def _curve(self, size: tuple[int, int]) -> StepCurve | None:
        return next((curve for curve in self.beat.curves if (curve.width, curve.height) == size), None)


class Roster:
    """Every connected worker by name."""

    def __init__(self, heartbeat_s: float, lost_after_s: float) -> None:
        self._silent_after = _SILENT_AFTER_BEATS * heartbeat_s
        self._lost_after = lost_after_s
        self.workers: dict[str, Worker] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self.workers.values()))

    def __repr__(self) -> str:
        held = sum(len(worker.held) for worker in self)
        return f"<Roster {len(self.workers)} workers, {held} of {sum(w.slots for w in self)} slots held>"

    def of(self, model: str) -> list[Worker]:
        """The model's workers."""
        return [worker for worker in self.workers.values() if worker.hello.model == model]

    def state(self, worker: Worker, now: float) -> WorkerState:
        """What the worker is good for."""
        if worker.draining:
            return "draining"
        return "silent" if now - worker.last_seen > self._silent_after else "ready"

    def lost(self, now: float) -> list[Worker]:
        """Workers that have been silent for so long that their tasks belong to others."""
        return [worker for worker in self if now - worker.last_seen > self._lost_after]

    def place(self, task: Task, alone: bool, now: float) -> Worker | None:
        """The worker with a free slot that the task should go to: the least loaded, so that load spreads.

        A task that must be alone gets an empty worker; if there is none, the least loaded one is reserved for it.
        """
        able = [w for w in self.of(task.model) if w.free and self.state(w, now) == "ready"]
        if not alone:
            return min((w for w in able if w.reserved is None), key=_load, default=None)
        mine = [w for w in self.of(task.model) if w.reserved == task.id]
        if not mine:
            open_to_it = [w for w in self.of(task.model) if w.reserved is None and self.state(w, now) == "ready"]
            if not open_to_it:
                return None
            mine = [min(open_to_it, key=_load)]
            mine[0].reserved = task.id
        return next((w for w in mine if w in able and not w.held), None)

    def forget(self, task: str) -> None:
        """Lift the reservation for a task that needs it no more."""
        for worker in self.workers.values():
            if worker.reserved == task:
                worker.reserved = None


def _load(worker: Worker) -> tuple[float, str]:
    return (len(worker.held) / worker.slots if worker.slots else 0.0, worker.id)


def _full(curve: StepCurve | None) -> tuple[int, float]:
    """The largest batch that the curve knows and its cap allows: (tasks, seconds of a step)."""
    return max((point for point in curve.points if point[0] <= curve.cap), default=(0, 0.0)) if curve else (0, 0.0)
