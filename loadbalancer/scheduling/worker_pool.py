"""The workers of one model: the least loaded one and their summed rates, without a look at each. Pure."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator

from loadbalancer.scheduling.worker import Worker
from wire.inputs import Shape

#: Outdated entries are removed when there are this many more entries than workers.
_CLEAN_UP_ABOVE = 64
#: Shapes whose rates are remembered; requests may come in any.
_MAX_SHAPES = 256


class WorkerPool:
    """The workers of one model. `offer` and `first_available` take logarithmic time in their number."""

    def __init__(self) -> None:
        self._workers: dict[str, Worker] = {}
        #: Load and name of the workers with room, as a heap. Entries may be outdated: `_listed` decides.
        self._free: list[tuple[float, str]] = []
        #: The load under which each of these workers is offered.
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
        """Note the worker's present load. Call this after every change of its slots, tasks or reservation."""
        if self._workers.get(worker.id) is not worker:
            return
        load = worker.load
        if load is None:
            self._listed.pop(worker.id, None)
        elif self._listed.get(worker.id) != load:
            self._listed[worker.id] = load
            heapq.heappush(self._free, (load, worker.id))
            if len(self._free) > 4 * len(self._workers) + _CLEAN_UP_ABOVE:
                self._free = [(load, name) for name, load in self._listed.items()]
                heapq.heapify(self._free)

    def first_available(self, is_ready: Callable[[Worker], bool]) -> Worker | None:
        """Return the least loaded worker with room; equally loaded ones go by name.

        A worker that is not ready is passed over until it is offered again.
        """
        while self._free:
            load, name = self._free[0]
            if self._listed.get(name) == load:
                worker = self._workers[name]
                if worker.load == load and is_ready(worker):
                    return worker
                del self._listed[name]
            heapq.heappop(self._free)
        return None

    # ---- rates

    def forget_rates(self) -> None:
        """Compute rates again when they are asked for: the step times or slots of a worker have changed."""
        self._rates.clear()
        self._fastest.clear()
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
