"""All connected workers by name, their pools, and the workers that are reserved for isolated tasks. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from configs.sections import Workers
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.worker_pool import Worker, WorkerPool
from wire.messages import Hello
from wire.snapshot import WorkerState

#: A worker that has missed this many heartbeats gets no new tasks.
_SILENT_AFTER_HEARTBEATS = 3.0


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
        """Register the worker; return it and the one that it replaces.

        It keeps the tasks that it still runs, in the attempts that it was assigned, and an isolated one by itself.
        """
        previous, running = self.workers.get(hello.worker), set(hello.running)
        kept = dict(each for each in previous.assigned.items() if each in running) if previous else {}
        isolated = previous.reserved_for if previous and previous.reserved_for in kept else None
        worker = Worker(hello, now, assigned=kept, reserved_for=isolated)
        self.add(worker)
        if isolated is not None:
            self._reserved[isolated] = worker
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

    def on_pause(self, pause_s: float, now: float) -> None:
        """Leave out time in which this process heard no worker: it is neither silence nor a step that takes long."""
        for worker in self.workers.values():
            worker.on_pause(pause_s, now)

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
            and now - worker.progress_at > max(factor * worker.step_times.max_step_s, min_s)
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
        """Reserve the least loaded worker for an isolated task; None where none is free of a reservation.

        The task waits in the queue. If its worker drains, hangs or is silent, another takes its place.
        """
        worker = self._reserved.get(task.id)
        if worker is not None and self.state(worker, now) != "ready":
            self.cancel_reservation(task.id)
            worker = None
        if worker is None:
            ready = [w for w in self.pools[task.model] if w.reserved_for is None and self.state(w, now) == "ready"]
            if not ready:
                return None
            worker = self._reserved[task.id] = min(ready, key=_load)
            worker.reserved_for = task.id
        return worker

    def is_empty(self, worker: Worker, now: float) -> bool:
        """Return whether an isolated task can start on the worker."""
        return bool(worker.slots) and not worker.assigned and self.state(worker, now) == "ready"

    def cancel_reservation(self, task: str) -> None:
        worker = self._reserved.pop(task, None)
        if worker is not None:
            worker.reserved_for = None
            self._offer(worker)


def _load(worker: Worker) -> tuple[float, str]:
    return (len(worker.assigned) / worker.slots if worker.slots else 0.0, worker.id)
