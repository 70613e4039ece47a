"""Builds the observations of the models from the balancer's snapshot and the controller's own processes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable

from configs.devices import machine_of
from controller.types import Observation, Queue, Replica, Stage
from host.types import WorkerProcess
from wire.snapshot import Snapshot, WorkerStats

#: Fields of `Queue` that the balancer's statistics of a model have under the same names.
_QUEUE_COUNTS = [field.name for field in dataclasses.fields(Queue) if field.name != "uptime_s"]


class WorkerTracker:
    """Records when each worker first and last appeared in a snapshot, on the controller's clock."""

    def __init__(self) -> None:
        self._ready_at: dict[str, float] = {}
        self._last_seen: dict[str, float] = {}

    def update(self, snapshot: Snapshot, now: float) -> list[str]:
        """Record a snapshot. Return the workers that are ready for the first time."""
        present = [worker.worker for worker in snapshot.workers if worker.slots or worker.state == "draining"]
        new = [worker for worker in present if worker not in self._ready_at]
        self._ready_at |= dict.fromkeys(new, now)
        self._last_seen |= dict.fromkeys(present, now)
        return new

    def forget(self, process: WorkerProcess) -> WorkerProcess:
        """Remove a worker that has exited. Return it with the time at which it became ready."""
        self._last_seen.pop(process.id, None)
        return dataclasses.replace(process, ready_at=self._ready_at.pop(process.id, None))

    def observe(
        self,
        models: Iterable[str],
        children: Iterable[WorkerProcess],
        snapshot: Snapshot | None,
        now: float,
        unix_s: float | None = None,
    ) -> dict[str, Observation]:
        """Combine the processes of each model with the balancer's statistics, if there are any."""
        own = [dataclasses.replace(child, ready_at=self._ready_at.get(child.id)) for child in children]
        known: dict[str, WorkerStats] = {}
        queues: dict[str, Queue] = {}
        if snapshot is not None:
            known = {stats.worker: stats for stats in snapshot.workers}
            for stats in snapshot.models:
                counts = {name: getattr(stats, name) for name in _QUEUE_COUNTS}
                queues[stats.model] = Queue(**counts, uptime_s=snapshot.uptime_s)
        observations = {}
        for model in models:
            present = [child for child in own if child.model == model]
            replicas = [self._replica(each, known.get(each.id), snapshot, now) for each in present if not each.spare]
            spares = [child for child in present if child.spare]
            observations[model] = Observation(model, queues.get(model), replicas, spares=spares, unix_s=unix_s)
        return observations

    def _replica(
        self, child: WorkerProcess, stats: WorkerStats | None, snapshot: Snapshot | None, now: float
    ) -> Replica:
        stage = Stage.STARTING if child.ready_at is None else Stage.READY
        # A worker that an operator drains is no capacity either.
        if child.drained_at is not None or (stats is not None and stats.state == "draining"):
            stage = Stage.DRAINING
        is_present = stats is not None and stats.slots > 0
        silent_since = None if is_present else self.silent_since(child.id, snapshot, now)
        if stats is None:
            return Replica(child, stage, silent_since=silent_since)
        return Replica(
            child,
            stage,
            load=stats.assigned + stats.running,
            silent_since=silent_since,
            stuck=stats.state == "stuck",
            memory_bytes=stats.memory_bytes,
            started_in_s=stats.start.total_s,
            from_standby=stats.start.standby,
        )

    def silent_since(self, worker: str, snapshot: Snapshot | None, now: float) -> float | None:
        """Return when a ready worker disappeared from the snapshots; None if it is present or was never ready.

        Time without a balancer, or before the present balancer started, does not count.
        """
        last = self._last_seen.get(worker)
        if snapshot is None or last is None or last >= now:
            return None
        return max(last, now - snapshot.uptime_s)


def count_starting(observations: Iterable[Observation]) -> Counter[str]:
    """Return the processes that load now, workers and standby workers, by machine."""
    loading: Counter[str] = Counter()
    for observation in observations:
        workers = (replica.process for replica in observation.replicas if replica.stage is Stage.STARTING)
        loading.update(machine_of(child.device) for child in workers)
        loading.update(machine_of(spare.device) for spare in observation.spares if spare.loaded_at is None)
    return loading
