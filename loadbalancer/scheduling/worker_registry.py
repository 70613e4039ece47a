"""The workers: what each can hold, what it holds, and which one a task should go to.

A worker's slot is taken from the moment a task is sent to it until the worker says that it let go of it, whatever
became of the task meanwhile. So `held <= slots` always, and a slot is never given twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field

from loadbalancer.scheduling.task import Task
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
    #: When it last showed that its step loop goes on, or was given work after it had none.
    moved_at: float = 0.0
    #: When it was found stuck, if it ever was.
    stuck_at: float | None = None

    def __post_init__(self) -> None:
        self.moved_at = self.last_seen

    @property
    def id(self) -> str:
        """The worker's name."""
        return self.hello.worker

    @property
    def free(self) -> int:
        """Slots that a task may be sent to."""
        return 0 if self.draining else max(self.slots - len(self.held), 0)

    @property
    def stuck(self) -> bool:
        """It was found to heartbeat without a step, and has not made one since."""
        return self.stuck_at is not None and self.moved_at < self.stuck_at

    def hear(self, beat: Heartbeat, now: float) -> None:
        """Take in a heartbeat. Its thread is not that of the step loop, so that only what it counts shows progress."""
        before, after = self.beat.counters, beat.counters
        if (before.steps, before.finished, before.failed) != (after.steps, after.finished, after.failed):
            self.moved_at = now
        self.beat = beat

    def hold(self, task: str, attempt: int, now: float) -> None:
        """One of its slots is for this task from now on."""
        if not self.held:
            self.moved_at = now
        self.held[task] = attempt

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

    def step_of(self, size: tuple[int, int], tasks: int) -> float:
        """Seconds of a step of so many images of this size, between or beside what was measured; 0 if nothing was."""
        curve = self._curve(size)
        points = curve.points if curve else []
        if not points:
            return 0.0
        for (fewer, quick), (more, slow) in itertools.pairwise(points):
            if fewer <= tasks <= more:
                return quick + (slow - quick) * (tasks - fewer) / (more - fewer)
        most, seconds = points[-1]
        return seconds * tasks / most if tasks > most else points[0][1]

    @property
    def longest_step_s(self) -> float:
        """Seconds of the slowest step that it was seen to take; 0 if not measured."""
        return max((_full(curve)[1] for curve in self.beat.curves), default=0.0) or self.beat.step_s

    def _curve(self, size: tuple[int, int]) -> StepCurve | None:
        return next((curve for curve in self.beat.curves if (curve.width, curve.height) == size), None)


class WorkerRegistry:
    """Every connected worker by name."""

    def __init__(
        self, heartbeat_s: float, lost_after_s: float, stuck_factor: float = 20.0, stuck_min_s: float = 120.0
    ) -> None:
        self._silent_after = _SILENT_AFTER_BEATS * heartbeat_s
        self._lost_after = lost_after_s
        self._stuck_factor = stuck_factor
        self._stuck_min_s = stuck_min_s
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
        if now - worker.last_seen > self._silent_after:
            return "silent"
        return "stuck" if worker.stuck else "ready"

    def heard(self, worker: Worker, now: float) -> None:
        """A message came. What it did not do while it was silent does not make it stuck: it may have been stopped."""
        silence = now - worker.last_seen
        if silence > self._silent_after:
            worker.moved_at = min(worker.moved_at + silence, now)
        worker.last_seen = now

    def lost(self, now: float) -> list[Worker]:
        """Workers that have been silent for so long that their tasks belong to others."""
        return [worker for worker in self if now - worker.last_seen > self._lost_after]

    def stuck(self, now: float) -> list[Worker]:
        """Workers that live and hold tasks, but have made no step for many times what one takes them."""
        return [
            worker
            for worker in self
            if worker.held
            and not worker.stuck
            and now - worker.last_seen <= self._silent_after
            and now - worker.moved_at > max(self._stuck_factor * worker.longest_step_s, self._stuck_min_s)
        ]

    def step_cost(self, model: str, size: tuple[int, int]) -> float:
        """Seconds of one worker that a forward pass at this size costs in full batches; 0 if not measured."""
        rates = [rate for worker in self.of(model) if (rate := worker.rate(size)) > 0]
        return len(rates) / sum(rates) if rates else 0.0

    def able(self, model: str, now: float) -> list[Worker]:
        """The workers that take any of the model's tasks now, the least loaded first."""
        able = (w for w in self.of(model) if w.free and w.reserved is None and self.state(w, now) == "ready")
        return sorted(able, key=_load)

    def place(self, task: Task, now: float) -> Worker | None:
        """The worker with a free slot that the task should go to: the least loaded, so that load spreads.

        A task that must be alone gets an empty worker; if there is none, the least loaded one is reserved for it.
        """
        if not task.alone:
            return next(iter(self.able(task.model, now)), None)
        mine = [w for w in self.of(task.model) if w.reserved == task.id]
        if not mine:
            open_to_it = [w for w in self.of(task.model) if w.reserved is None and self.state(w, now) == "ready"]
            if not open_to_it:
                return None
            mine = [min(open_to_it, key=_load)]
            mine[0].reserved = task.id
        return next((w for w in mine if w.free and not w.held and self.state(w, now) == "ready"), None)

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
