"""The connected workers: their capacity, the tasks that they hold, and the choice of a worker for a task.

A slot is taken from the moment a task is sent to the worker until the worker reports that it released it, whatever
became of the task meanwhile. So nothing is sent to a worker that holds `slots + ahead` tasks, and a slot is never given
twice. Tasks beyond `slots` are held ahead: they wait there for the next step boundary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from configs.sections import Workers
from loadbalancer.scheduling.task import Task
from wire.messages import Heartbeat, Hello, Shape, StepCurve
from wire.snapshot import WorkerState

#: A worker that has missed this many heartbeats gets no new tasks.
_SILENT_AFTER_HEARTBEATS = 3.0
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

    def __post_init__(self) -> None:
        self.id = self.hello.worker
        self.progress_at = self.last_message_at

    @property
    def free_slots(self) -> int:
        return 0 if self.draining else max(self.slots - len(self.assigned), 0)

    @property
    def held_ahead(self) -> int:
        """Number of tasks that wait there for a slot."""
        return 0 if self.draining else max(len(self.assigned) - self.slots, 0)

    # ---- changes

    def set_capacity(self, slots: int, ahead: int = 0) -> None:
        """Take in the numbers of slots and of tasks ahead that the worker offers; 0 slots drain it."""
        self.slots = min(max(slots, 0), _MAX_SLOTS)
        self.ahead = min(max(ahead, 0), _MAX_SLOTS) if self.slots else 0
        self.draining = slots == 0

    def on_heartbeat(self, heartbeat: Heartbeat, now: float) -> None:
        """Take in a heartbeat. The step loop runs in another thread, so only changed counters show progress."""
        before, after = self.heartbeat.counters, heartbeat.counters
        if (before.steps, before.finished, before.failed) != (after.steps, after.finished, after.failed):
            self.progress_at = now
        self.heartbeat = heartbeat
        self._curves = {curve.shape: curve for curve in reversed(heartbeat.curves)}
        self._full_batches = {
            shape: max((point for point in curve.points if point[0] <= curve.cap), default=(0, 0.0))
            for shape, curve in self._curves.items()
        }

    def on_task_message(self, task: str, attempt: int, now: float, *, released: bool) -> bool:
        """Return whether the worker holds this attempt, and free its slot if it is `released`."""
        self.progress_at = now
        if self.assigned.get(task) != attempt:
            return False
        if released:
            del self.assigned[task]
        return True

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

    @property
    def max_step_s(self) -> float:
        """Seconds of the slowest measured step; 0 if not measured."""
        slowest_s = max((seconds for _, seconds in self._full_batches.values()), default=0.0)
        return slowest_s or self.heartbeat.step_s


class WorkerRegistry:
    """Every connected worker by name."""

    def __init__(self, config: Workers) -> None:
        self._config = config
        self._silent_after_s = _SILENT_AFTER_HEARTBEATS * config.heartbeat_s
        self.workers: dict[str, Worker] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(list(self.workers.values()))

    def __repr__(self) -> str:
        assigned = sum(len(worker.assigned) for worker in self)
        slots = sum(worker.slots for worker in self)
        return f"<WorkerRegistry {len(self.workers)} workers, {assigned} of {slots} slots assigned>"

    def connect(self, hello: Hello, now: float) -> tuple[Worker, Worker | None]:
        """Register the worker; return it and the one that it replaces. It keeps the tasks that it still runs."""
        previous = self.workers.get(hello.worker)
        running = {task for task, _ in hello.running}
        kept = {task: attempt for task, attempt in previous.assigned.items() if task in running} if previous else {}
        worker = self.workers[hello.worker] = Worker(hello, now, assigned=kept)
        return worker, previous

    def disconnect(self, name: str) -> Worker | None:
        return self.workers.pop(name, None)

    def touch(self, worker: Worker, now: float) -> None:
        """Note the time of a message. Silent time does not count as stuck: the process may have been stopped."""
        silence_s = now - worker.last_message_at
        if silence_s > self._silent_after_s:
            worker.progress_at = min(worker.progress_at + silence_s, now)
        worker.last_message_at = now

    # ---- questions

    def serving(self, model: str) -> list[Worker]:
        return [worker for worker in self.workers.values() if worker.hello.model == model]

    def state(self, worker: Worker, now: float) -> WorkerState:
        if worker.draining:
            return "draining"
        if now - worker.last_message_at > self._silent_after_s:
            return "silent"
        return "stuck" if worker.progress_at < worker.stuck_at else "ready"

    def timed_out(self, now: float) -> list[Worker]:
        """Return the workers whose silence exceeds `lost_after_s`."""
        return [worker for worker in self if now - worker.last_message_at > self._config.lost_after_s]

    def stuck_workers(self, now: float) -> list[Worker]:
        """Return the workers that send heartbeats and hold tasks, but have made no step for too long."""
        factor, min_s = self._config.stuck_factor, self._config.stuck_min_s
        return [
            worker
            for worker in self
            if worker.assigned
            and worker.progress_at >= worker.stuck_at
            and now - worker.last_message_at <= self._silent_after_s
            and now - worker.progress_at > max(factor * worker.max_step_s, min_s)
        ]

    def available(self, model: str, now: float) -> list[Worker]:
        """Return the workers with free slots for the model's tasks, or else those with room ahead.

        The least loaded comes first.
        """
        with_room = [
            worker
            for worker in self.workers.values()
            if worker.hello.model == model
            and worker.reserved_for is None
            and len(worker.assigned) < worker.slots + worker.ahead
            and self.state(worker, now) == "ready"
        ]
        available = [worker for worker in with_room if len(worker.assigned) < worker.slots] or with_room
        return sorted(available, key=_load) if len(available) > 1 else available

    # ---- isolated tasks

    def reserve(self, task: Task, now: float) -> Worker | None:
        """Reserve the least loaded worker for an isolated task; return it once it is empty."""
        ready = [worker for worker in self.serving(task.model) if self.state(worker, now) == "ready"]
        own = [worker for worker in self.serving(task.model) if worker.reserved_for == task.id]
        if not own:
            own = sorted((worker for worker in ready if worker.reserved_for is None), key=_load)[:1]
            for worker in own:
                worker.reserved_for = task.id
        return next((worker for worker in own if worker in ready and worker.free_slots and not worker.assigned), None)

    def cancel_reservation(self, task: str) -> None:
        for worker in self.workers.values():
            if worker.reserved_for == task:
                worker.reserved_for = None


def running_tasks(worker: Worker, tasks: Mapping[str, Task]) -> list[Task]:
    """Return the unfinished tasks that the worker holds and that no other worker has received since."""
    assigned = (tasks.get(name) for name in worker.assigned)
    return [task for task in assigned if task is not None and task.worker == worker.id]


def full_batch_step_cost(workers: Sequence[Worker], shape: Shape) -> float:
    """Return the seconds of one worker per forward pass of this shape in full batches; 0 if not measured."""
    rates = [rate for worker in workers if (rate := worker.steps_per_s(shape)) > 0]
    return len(rates) / sum(rates) if rates else 0.0


def _load(worker: Worker) -> tuple[float, str]:
    return (len(worker.assigned) / worker.slots if worker.slots else 0.0, worker.id)
