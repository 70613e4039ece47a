"""The workers of a model: their slots, the tasks that they hold, their step times, and the least loaded one. Pure.

A slot is taken from the moment a task is sent to the worker until the worker reports that it released it, whatever
became of the task meanwhile. So nothing is sent to a worker that holds `slots + ahead` tasks, and a slot is never given
twice. Tasks beyond `slots` are held ahead: they wait there for the next step boundary.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from loadbalancer.scheduling.task import Task
from wire.inputs import Shape
from wire.messages import EngineInfo, Heartbeat, Hello, StepCurve
from wire.snapshot import WorkerState

_MAX_SLOTS = 4096
#: Outdated entries of a heap are removed when there are this many more entries than workers.
_CLEAN_UP_ABOVE = 64
#: Shapes whose rates are remembered; requests may come in any.
_MAX_SHAPES = 256


@dataclass(slots=True)
class Worker:
    """One connected worker. Its pool changes its capacity, and what it holds when a message has come."""

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


class WorkerPool:
    """The workers of one model. `offer` and `first_available` take logarithmic time in their number."""

    def __init__(self, silent_after_s: float = math.inf) -> None:
        self._silent_after_s = silent_after_s
        self._workers: dict[str, Worker] = {}
        #: Of the first worker; None while none is connected.
        self.engine_info: EngineInfo | None = None
        #: Load and name of the workers with room, as a heap. Entries may be outdated: `_listed` decides.
        self._free: list[tuple[float, str]] = []
        #: The load under which each of these workers is offered. Its present load is never below that.
        self._listed: dict[str, float] = {}
        self._rates: dict[Shape, float] = {}
        self._fastest: dict[Shape, float] = {}
        self._shortest: dict[Shape, float] = {}

    def __iter__(self) -> Iterator[Worker]:
        return iter(self._workers.values())

    def __len__(self) -> int:
        return len(self._workers)

    def __repr__(self) -> str:
        return f"<WorkerPool of {len(self)} workers, {len(self._listed)} with room>"

    def add(self, worker: Worker) -> None:
        """Add the worker, in place of one of the same name."""
        self.remove(worker.id)
        self._workers[worker.id] = worker
        self._on_change()
        self.offer(worker)

    def remove(self, name: str) -> None:
        """Remove the worker. Idempotent."""
        self._workers.pop(name, None)
        self._listed.pop(name, None)
        self._on_change()

    def _on_change(self) -> None:
        self.engine_info = next((worker.hello.engine_info for worker in self), None)
        self.forget_rates()

    # ---- messages

    def touch(self, worker: Worker, now: float) -> None:
        """Note the time of a message. Silent time does not count as stuck: the process may have been stopped."""
        silence_s = now - worker.last_message_at
        worker.last_message_at = now
        if silence_s > self._silent_after_s:
            worker.progress_at = min(worker.progress_at + silence_s, now)
            self.offer(worker)  # while it was silent, it may have been passed over

    def set_capacity(self, worker: Worker, slots: int, ahead: int = 0) -> None:
        """Take in the numbers of slots and of tasks ahead that the worker offers; 0 slots drain it."""
        worker.slots = min(max(slots, 0), _MAX_SLOTS)
        worker.ahead = min(max(ahead, 0), _MAX_SLOTS) if worker.slots else 0
        worker.draining = slots == 0
        self.offer(worker)

    def on_task_message(self, worker: Worker, task: str, attempt: int, now: float, *, released: bool) -> bool:
        """Return whether the worker holds this attempt, and free its slot if it is `released`."""
        was_stuck, worker.progress_at = worker.progress_at < worker.stuck_at, now
        holds = worker.assigned.get(task) == attempt
        if holds and released:
            del worker.assigned[task]
        if released or was_stuck:
            self.offer(worker)
        return holds

    def on_heartbeat(self, worker: Worker, heartbeat: Heartbeat, now: float) -> None:
        before = worker.heartbeat
        worker.on_heartbeat(heartbeat, now)
        if (before.step_s, before.batch, before.curves) != (heartbeat.step_s, heartbeat.batch, heartbeat.curves):
            self.forget_rates()
        self.offer(worker)

    # ---- free slots

    def offer(self, worker: Worker) -> None:
        """Note the worker's present load. Call this after every change that may reduce it or make the worker ready."""
        name, load = worker.id, worker.load
        if load is None or self._listed.get(name) == load or self._workers.get(name) is not worker:
            return
        self._listed[name] = load
        heapq.heappush(self._free, (load, name))
        if len(self._free) > 4 * len(self._workers) + _CLEAN_UP_ABOVE:
            self._free = [(load, name) for name, load in self._listed.items()]
            heapq.heapify(self._free)

    def first_available(self, now: float) -> Worker | None:
        """Return the least loaded worker with room that is ready; equally loaded ones go by name.

        A worker that is not ready is passed over until it is offered again. One whose load has grown takes its place.
        """
        free, listed = self._free, self._listed
        while free:
            listed_load, name = free[0]
            if listed.get(name) == listed_load:
                worker = self._workers[name]
                load = worker.load
                if load is not None and worker.state(now, self._silent_after_s) == "ready":
                    if load == listed_load:
                        return worker
                    listed[name] = load
                    heapq.heapreplace(free, (load, name))
                    continue
                del listed[name]
            heapq.heappop(free)
        return None

    # ---- rates

    def forget_rates(self) -> None:
        """Compute rates again when they are asked for: the workers or the step times of one have changed."""
        for known in (self._rates, self._fastest, self._shortest):
            known.clear()

    @property
    def slots(self) -> int:
        return sum(worker.slots for worker in self)

    def steps_per_s(self, shape: Shape) -> float:
        """Return the task-steps per second of full batches of this shape on all workers; 0 if not measured."""
        rate = self._rates.get(shape)
        if rate is None:
            rate = _remember(self._rates, shape, sum(worker.steps_per_s(shape) for worker in self))
        return rate

    def fastest_step_s(self, shape: Shape) -> float:
        """Return the seconds of a step of a batch of one on the fastest worker; 0 if not measured."""
        step_s = self._fastest.get(shape)
        if step_s is None:
            measured = (single_s for worker in self if (single_s := worker.batch_step_s(shape, 1)) > 0)
            step_s = _remember(self._fastest, shape, min(measured, default=0.0))
        return step_s

    def shortest_step_s(self, shape: Shape) -> float:
        """Return the seconds of the shortest step of any batch on any worker; 0 if a worker has not measured it."""
        step_s = self._shortest.get(shape)
        if step_s is None:
            step_s = min((worker.step_bounds_s(shape)[0] for worker in self), default=0.0)
            _remember(self._shortest, shape, step_s)
        return step_s


def running_tasks(worker: Worker, tasks: Mapping[str, Task]) -> list[Task]:
    """Return the unfinished tasks that the worker holds and that no other worker has received since."""
    assigned = (tasks.get(name) for name in worker.assigned)
    return [task for task in assigned if task is not None and task.worker == worker.id]


def full_batch_step_cost(workers: Sequence[Worker], shape: Shape) -> float:
    """Return the seconds of one worker per forward pass of this shape in full batches; 0 if not measured."""
    rates = [rate for worker in workers if (rate := worker.steps_per_s(shape)) > 0]
    return len(rates) / sum(rates) if rates else 0.0


def _remember(known: dict[Shape, float], shape: Shape, value: float) -> float:
    if len(known) >= _MAX_SHAPES:
        known.clear()
    known[shape] = value
    return value
