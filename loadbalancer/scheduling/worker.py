"""One connected worker: its capacity, the tasks that it holds, and its measured step times. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from loadbalancer.scheduling.task import Task
from wire.inputs import Shape
from wire.messages import Heartbeat, Hello, StepCurve
from wire.snapshot import WorkerState

_MAX_SLOTS = 4096


@dataclass(slots=True)
class Worker:
    """One connected worker."""

    hello: Hello
    last_message_at: float
    slots: int = 0
    #: Attempt number of each task whose slot the worker has not freed yet.
    assigned: dict[str, int] = field(default_factory=dict)
    #: An isolated task that waits for this worker to become empty, or runs on it.
    reserved_for: str | None = None
    draining: bool = False
    heartbeat: Heartbeat = field(default_factory=lambda: Heartbeat(running=0))
    #: Time of the latest sign that its step loop advances, or of its first task after it had none.
    progress_at: float = 0.0
    #: Time at which it was last found to send heartbeats without a step. Later progress ends that state.
    stuck_at: float = -math.inf
    #: Invalid results in a row.
    invalid_results: int = 0
    #: Tasks that it takes beyond its slots, once no worker has a free slot.
    ahead: int = 0
    id: str = field(init=False)
    #: Measured step times by shape.
    _curves: dict[Shape, StepCurve] = field(default_factory=dict)
    #: The largest measured batch within the curve's cap, by shape: tasks, seconds of a step.
    _full_batches: dict[Shape, tuple[int, float]] = field(default_factory=dict)
    #: The shortest and the longest step of a batch that its slots allow, by shape, and for how many slots.
    _bounds: dict[Shape, tuple[int, float, float]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.id = self.hello.worker
        self.progress_at = self.last_message_at

    @property
    def free_slots(self) -> int:
        return 0 if self.draining else max(self.slots - len(self.assigned), 0)

    @property
    def load(self) -> float | None:
        """Tasks that it holds, per slot: below 1 while a slot is free. None without room for a task of the queue."""
        taken = len(self.assigned)
        return taken / self.slots if taken < self.slots + self.ahead and self.reserved_for is None else None

    @property
    def held_ahead(self) -> int:
        """Number of tasks that wait there for a slot."""
        return 0 if self.draining else max(len(self.assigned) - self.slots, 0)

    def state(self, now: float, silent_after_s: float) -> WorkerState:
        """Return its state; only a worker that is `ready` gets new tasks."""
        if self.draining:
            return "draining"
        if now - self.last_message_at > silent_after_s:
            return "silent"
        return "stuck" if self.progress_at < self.stuck_at else "ready"

    # ---- changes

    def set_capacity(self, slots: int, ahead: int = 0) -> bool:
        """Take in the numbers of slots and of tasks ahead that the worker offers; 0 slots drain it.

        Returns whether it is another number of slots than before.
        """
        before, self.slots = self.slots, min(max(slots, 0), _MAX_SLOTS)
        self.ahead = min(max(ahead, 0), _MAX_SLOTS) if self.slots else 0
        self.draining = slots == 0
        return self.slots != before

    def on_heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        """Take in a heartbeat. The step loop runs in another thread, so only changed counters show progress."""
        before, after = self.heartbeat.counters, heartbeat.counters
        if (before.steps, before.finished, before.failed) != (after.steps, after.finished, after.failed):
            self.progress_at = now
        self.heartbeat = heartbeat
        self._curves = {curve.shape: curve for curve in reversed(heartbeat.curves)}
        self._bounds.clear()
        self._full_batches = {
            shape: max((point for point in curve.points if point[0] <= curve.cap), default=(0, 0.0))
            for shape, curve in self._curves.items()
        }

    def on_result(self, *, valid: bool) -> None:
        self.invalid_results = 0 if valid else self.invalid_results + 1

    def assign(self, task: str, attempt: int, now: float) -> None:
        if not self.assigned:
            self.progress_at = now
        self.assigned[task] = attempt

    def mark_stuck(self, now: float) -> None:
        self.stuck_at = now

    # ---- measured step times

    def steps_per_s(self, shape: Shape) -> float:
        """Return the task-steps per second of full batches of this shape; 0 if not measured.

        For a shape without a curve, the rate of the present batch or of the first curve is used.
        """
        if shape not in self._full_batches:
            if self.heartbeat.step_s > 0:
                return self.heartbeat.batch / self.heartbeat.step_s
            if not self.heartbeat.curves:
                return 0.0
            shape = self.heartbeat.curves[0].shape
        tasks, seconds = self._full_batches[shape]
        return tasks / seconds if seconds > 0 else 0.0

    def full_batch_step_s(self, shape: Shape) -> float:
        """Return the seconds of a step of a full batch of this shape, or of its recent steps; 0 if not measured."""
        _, seconds = self._full_batches.get(shape, (0, 0.0))
        return seconds or self.heartbeat.step_s

    def batch_step_s(self, shape: Shape, tasks: int) -> float:
        """Return the seconds of a step of a batch of `tasks`, interpolated or extrapolated; 0 if not measured."""
        curve = self._curves.get(shape)
        points = curve.points if curve else []
        if not points:
            return 0.0
        for (fewer, lower_s), (more, upper_s) in itertools.pairwise(points):
            if fewer <= tasks <= more:
                return lower_s + (upper_s - lower_s) * (tasks - fewer) / (more - fewer)
        largest, seconds = points[-1]
        return seconds * tasks / largest if tasks > largest else points[0][1]

    def step_bounds_s(self, shape: Shape) -> tuple[float, float]:
        """Return the seconds of the shortest and of the longest step of 1 to `slots` tasks; 0 if not measured."""
        bounds = self._bounds.get(shape)
        if bounds is None or bounds[0] != self.slots:
            curve = self._curves.get(shape)
            seconds = [step_s for _, step_s in curve.points] if curve else []
            seconds.append(self.batch_step_s(shape, max(self.slots, 1)))
            bounds = self._bounds[shape] = self.slots, min(seconds), max(seconds)
        return bounds[1], bounds[2]

    @property
    def max_step_s(self) -> float:
        """Seconds of the slowest measured step; 0 if not measured."""
        slowest_s = max((seconds for _, seconds in self._full_batches.values()), default=0.0)
        return slowest_s or self.heartbeat.step_s


def running_tasks(worker: Worker, tasks: Mapping[str, Task]) -> list[Task]:
    """Return the unfinished tasks that the worker holds and that no other worker has received since."""
    assigned = (tasks.get(name) for name in worker.assigned)
    return [task for task in assigned if task is not None and task.worker == worker.id]


def full_batch_step_cost(workers: Sequence[Worker], shape: Shape) -> float:
    """Return the seconds of one worker per forward pass of this shape in full batches; 0 if not measured."""
    rates = [rate for worker in workers if (rate := worker.steps_per_s(shape)) > 0]
    return len(rates) / sum(rates) if rates else 0.0
