"""The connected workers, by model: their slots, the least loaded one, and their summed rates. Pure.

A slot is taken from the moment a task is sent to the worker until the worker reports that it released it, whatever
became of the task meanwhile. So nothing is sent to a worker that holds `slots + ahead` tasks, and a slot is never given
twice. Tasks beyond `slots` are held ahead: they wait there for the next step boundary.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from configs.sections import Workers
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.worker import Worker
from wire.inputs import Shape
from wire.messages import EngineInfo, Heartbeat, Hello
from wire.snapshot import WorkerState

#: A worker that has missed this many heartbeats gets no new tasks.
_SILENT_AFTER_HEARTBEATS = 3.0
#: Outdated entries are removed when there are this many more entries than workers.
_CLEAN_UP_ABOVE = 64
#: Shapes whose rates are remembered; requests may come in any.
_MAX_SHAPES = 256


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
        self._slots: int | None = None

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
        self._rates.clear()
        self._fastest.clear()
        self.forget_slots()

    def forget_slots(self) -> None:
        """Compute again what depends on the slots of the workers: those of one have changed."""
        self._shortest.clear()
        self._slots = None

    @property
    def slots(self) -> int:
        if self._slots is None:
            self._slots = sum(worker.slots for worker in self)
        return self._slots

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


class _WorkerPools(dict[str, WorkerPool]):
    """The pools by model. An unknown model has no workers, and leaves no trace."""

    def __missing__(self, model: str) -> WorkerPool:
        return WorkerPool()


class WorkerRegistry:
    """Every connected worker by name."""

    def __init__(self, config: Workers) -> None:
        self._config = config
        self._silent_after_s = _SILENT_AFTER_HEARTBEATS * config.heartbeat_s
        #: Others only read it.
        self.workers: dict[str, Worker] = {}
        #: The workers of each model. Others only read it.
        self.pools = _WorkerPools()
        #: The worker that is reserved for each isolated task.
        self._reserved: dict[str, Worker] = {}

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
        worker = Worker(hello, now, assigned=kept)
        self.add(worker)
        return worker, previous

    def add(self, worker: Worker) -> None:
        """Add the worker, in place of one of the same name."""
        self.disconnect(worker.id)
        self.workers[worker.id] = worker
        self.pools.setdefault(worker.hello.model, WorkerPool(self._silent_after_s)).add(worker)

    def disconnect(self, name: str) -> Worker | None:
        worker = self.workers.pop(name, None)
        if worker is not None:
            self.pools[worker.hello.model].remove(name)
            if worker.reserved_for is not None:
                self._reserved.pop(worker.reserved_for, None)
        return worker

    def _offer(self, worker: Worker) -> None:
        """Note a change of the worker's slots, reservation or state, or a slot that it has freed."""
        self.pools[worker.hello.model].offer(worker)

    def offer_all(self) -> None:
        """Offer each worker again, because its state may have changed with time."""
        for worker in self.workers.values():
            self._offer(worker)

    def set_capacity(self, worker: Worker, slots: int, ahead: int) -> None:
        pool = self.pools[worker.hello.model]
        if worker.set_capacity(slots, ahead):
            pool.forget_slots()
        pool.offer(worker)

    def on_task_message(self, worker: Worker, task: str, attempt: int, now: float, *, released: bool) -> bool:
        """Return whether the worker holds this attempt, and free its slot if it is `released`."""
        was_stuck, worker.progress_at = worker.progress_at < worker.stuck_at, now
        holds = worker.assigned.get(task) == attempt
        if holds and released:
            del worker.assigned[task]
        if released or was_stuck:
            self.pools[worker.hello.model].offer(worker)
        return holds

    def on_heartbeat(self, worker: Worker, heartbeat: Heartbeat, now: float) -> None:
        before = worker.heartbeat
        worker.on_heartbeat(heartbeat, now)
        if (before.step_s, before.batch, before.curves) != (heartbeat.step_s, heartbeat.batch, heartbeat.curves):
            self.pools[worker.hello.model].forget_rates()
        self._offer(worker)

    def touch(self, worker: Worker, now: float) -> None:
        """Note the time of a message. Silent time does not count as stuck: the process may have been stopped."""
        silence_s = now - worker.last_message_at
        if silence_s > self._silent_after_s:
            worker.progress_at = min(worker.progress_at + silence_s, now)
            self._offer(worker)  # while it was silent, it may have been passed over
        worker.last_message_at = now

    # ---- questions

    def serving(self, model: str) -> list[Worker]:
        return list(self.pools[model])

    def state(self, worker: Worker, now: float) -> WorkerState:
        return worker.state(now, self._silent_after_s)

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
        with_room = [w for w in self.pools[model] if w.load is not None and self.state(w, now) == "ready"]
        return sorted([worker for worker in with_room if worker.free_slots] or with_room, key=_load)

    # ---- isolated tasks

    def reserved(self, model: str) -> set[str]:
        """Return the isolated tasks of the model that have a worker reserved."""
        return {task for task, worker in self._reserved.items() if worker.hello.model == model}

    def reserve(self, task: Task, now: float) -> Worker | None:
        """Reserve the least loaded worker for an isolated task; None where none is free of a reservation."""
        worker = self._reserved.get(task.id)
        if worker is None:
            ready = [w for w in self.pools[task.model] if w.reserved_for is None and self.state(w, now) == "ready"]
            if not ready:
                return None
            worker = self._reserved[task.id] = min(ready, key=_load)
            worker.reserved_for = task.id
        return worker

    def is_empty(self, worker: Worker, now: float) -> bool:
        """Return whether an isolated task can start on the worker."""
        return bool(worker.free_slots) and not worker.assigned and self.state(worker, now) == "ready"

    def cancel_reservation(self, task: str) -> None:
        worker = self._reserved.pop(task, None)
        if worker is not None:
            worker.reserved_for = None
            self._offer(worker)


def _load(worker: Worker) -> tuple[float, str]:
    return (len(worker.assigned) / worker.slots if worker.slots else 0.0, worker.id)


def _remember(known: dict[Shape, float], shape: Shape, value: float) -> float:
    if len(known) >= _MAX_SHAPES:
        known.clear()
    known[shape] = value
    return value
