"""The workers of one model: the least loaded one and their summed rates, without a look at each. Pure."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterator

from loadbalancer.scheduling.worker import Worker
from wire.inputs import Shape

#: Outdated entries are removed when there are this many more entries than workers.
_CLEAN_UP_ABOVE = 64
#: Shapes whose rates are remembered; requests may come in any.
_MAX_SHAPES = 256


class WorkerPool:
    """The workers of one model. `offer` and `first_available` take logarithmic time in their number."""

    def __init__(self, silent_after_s: float = math.inf) -> None:
        self._silent_after_s = silent_after_s
        self._workers: dict[str, Worker] = {}
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
        self.forget_rates()
        self.offer(worker)

    def remove(self, name: str) -> None:
        """Remove the worker. Idempotent."""
        self._workers.pop(name, None)
        self._listed.pop(name, None)
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


def _remember(known: dict[Shape, float], shape: Shape, value: float) -> float:
    if len(known) >= _MAX_SHAPES:
        known.clear()
    known[shape] = value
    return value
