"""The workers of a model: their slots, the tasks that they hold, their step times, and the least loaded one. Pure.

A slot is taken from the moment a task is sent to the worker until the worker reports that it released it, whatever
became of the task meanwhile. So nothing is sent to a worker that holds `slots + ahead` tasks, and a slot is never given
twice. Tasks beyond `slots` are held ahead: they wait there for the next step boundary.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from loadbalancer.scheduling.step_times import StepTimes
from loadbalancer.scheduling.task import Task
from wire.inputs import Shape
from wire.messages import (
    Capacity,
    Chunk,
    EngineInfo,
    Failed,
    Finished,
    Heartbeat,
    Hello,
    Preempted,
    Progress,
    Started,
    ToBalancer,
    Tokens,
)
from wire.snapshot import WorkerState

_MAX_SLOTS = 4096
#: Outdated entries of a heap are removed when there are this many more entries than workers.
_CLEAN_UP_ABOVE = 64
#: Shapes whose rates are remembered; requests may come in any.
_MAX_SHAPES = 256
_ABOUT_TASKS = (Finished, Progress, Tokens, Started, Chunk, Failed, Preempted)
#: A worker that sends one of these has freed the task's slot.
_RELEASING = (Finished, Failed, Preempted)
_Value = TypeVar("_Value")


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
    #: Those of the heartbeat.
    step_times: StepTimes = field(init=False)

    def __post_init__(self) -> None:
        self.id = self.hello.worker
        self.progress_at = self.last_message_at
        self.step_times = StepTimes(self.heartbeat)

    @property
    def free_slots(self) -> int:
        """Slots for tasks of the queue: none while it is reserved for an isolated task."""
        if self.draining or self.reserved_for is not None:
            return 0
        return max(self.slots - len(self.assigned), 0)

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

    def on_heartbeat(self, heartbeat: Heartbeat, now: float) -> bool:
        """Take in a heartbeat; return whether step times have changed.

        The step loop runs in another thread, so only changed counters show progress.
        """
        last, before, after = self.heartbeat, self.heartbeat.counters, heartbeat.counters
        if (before.steps, before.finished, before.failed) != (after.steps, after.finished, after.failed):
            self.progress_at = now
        self.heartbeat = heartbeat
        self.step_times = StepTimes(heartbeat)
        return (last.step_s, last.batch, last.curves) != (heartbeat.step_s, heartbeat.batch, heartbeat.curves)

    def on_result(self, *, valid: bool) -> None:
        self.invalid_results = 0 if valid else self.invalid_results + 1

    def assign(self, task: str, attempt: int, now: float) -> None:
        if not self.assigned:
            self.progress_at = now
        self.assigned[task] = attempt

    def forget(self, task: str) -> None:
        """Give up the task that it is told to cancel."""
        self.assigned.pop(task, None)

    def on_pause(self, pause_s: float, now: float) -> None:
        """Leave out time in which it was not heard."""
        self.last_message_at = min(self.last_message_at + pause_s, now)
        if self.progress_at >= self.stuck_at:  # else the pause would look like progress
            self.progress_at = min(self.progress_at + pause_s, now)

    def mark_stuck(self, now: float) -> None:
        self.stuck_at = now


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

    def on_message(self, worker: Worker, message: ToBalancer, now: float) -> bool:
        """Take in what a message says of the worker. False: it is about an attempt that the worker does not hold."""
        holds = True
        silence_s = now - worker.last_message_at
        worker.last_message_at = now
        may_gain = silence_s > self._silent_after_s  # it may have been passed over
        if may_gain:  # no time to count as stuck: the process may have been stopped
            worker.progress_at = min(worker.progress_at + silence_s, now)
        if isinstance(message, _ABOUT_TASKS):
            may_gain |= worker.progress_at < worker.stuck_at
            worker.progress_at = now
            if not isinstance(message, Tokens):
                holds = worker.assigned.get(message.task) == message.attempt
                if isinstance(message, _RELEASING):
                    may_gain = True
                    if holds:
                        del worker.assigned[message.task]
        elif isinstance(message, Capacity):
            worker.slots, worker.draining = min(message.slots, _MAX_SLOTS), message.slots == 0
            worker.ahead = min(message.ahead, _MAX_SLOTS) if worker.slots else 0
            may_gain = True
        elif isinstance(message, Heartbeat):
            if worker.on_heartbeat(message, now):
                self.forget_rates()
            may_gain = True
        if may_gain:
            self.offer(worker)
        return holds

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
                # Whether it is ready: a worker that drains has no room.
                is_silent = now - worker.last_message_at > self._silent_after_s
                if load is not None and not is_silent and worker.progress_at >= worker.stuck_at:
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
            rate = sum(worker.step_times.steps_per_s(shape) for worker in self)
            remember(self._rates, shape, rate)
        return rate

    def fastest_step_s(self, shape: Shape) -> float:
        """Return the seconds of a step of a batch of one on the fastest worker; 0 if not measured."""
        step_s = self._fastest.get(shape)
        if step_s is None:
            measured = (single_s for worker in self if (single_s := worker.step_times.batch_step_s(shape, 1)) > 0)
            step_s = min(measured, default=0.0)
            remember(self._fastest, shape, step_s)
        return step_s

    def shortest_step_s(self, shape: Shape) -> float:
        """Return the seconds of the shortest step of any batch on any worker; 0 if a worker has not measured it."""
        step_s = self._shortest.get(shape)
        if step_s is None:
            step_s = min((worker.step_times.bounds_s(shape, worker.slots)[0] for worker in self), default=0.0)
            remember(self._shortest, shape, step_s)
        return step_s


def running_tasks(worker: Worker, tasks: Mapping[str, Task]) -> list[Task]:
    """Return the unfinished tasks that the worker holds and that no other worker has received since."""
    assigned = (tasks.get(name) for name in worker.assigned)
    return [task for task in assigned if task is not None and task.worker == worker.id]


def remember(known: dict[Shape, _Value], shape: Shape, value: _Value) -> None:
    """Note a value of the shape. Of too many shapes, the one that was noted the longest ago is forgotten."""
    known.pop(shape, None)
    known[shape] = value
    if len(known) > _MAX_SHAPES:
        del known[next(iter(known))]
