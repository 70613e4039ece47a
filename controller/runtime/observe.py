"""Builds the observations of the models from the balancer's snapshot and the controller's own processes."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from configs.devices import machine_of
from controller.types import Observation, Queue, Replica, Stage
from host.types import WorkerProcess
from wire.snapshot import Snapshot, WorkerStats

#: Fields of `Queue` that the balancer's statistics of a model have under the same names.
_QUEUE_COUNTS = [field.name for field in dataclasses.fields(Queue) if field.name != "uptime_s"]


class _Appearance(NamedTuple):
    """When a worker first and last appeared in a snapshot, on the controller's clock, and how it started."""

    ready_at: float
    last_at: float
    started_in_s: float
    from_standby: bool


class WorkerTracker:
    """Records when each worker first and last appeared in a snapshot."""

    def __init__(self) -> None:
        self._appearances: dict[str, _Appearance] = {}

    def forget(self, process: WorkerProcess) -> WorkerProcess:
        """Remove a worker that has exited. Return it with the time at which it became ready."""
        known = self._appearances.pop(process.id, None)
        return dataclasses.replace(process, ready_at=known.ready_at if known is not None else None)

    def observe(
        self,
        models: Iterable[str],
        children: Sequence[WorkerProcess],
        snapshot: Snapshot | None,
        now: float,
        unix_s: float | None = None,
    ) -> dict[str, Observation]:
        """Combine the processes of each model with the balancer's statistics, if there are any.

        A worker that appears for the first time is ready since now.
        """
        own, workers = {child.id for child in children}, dict[str, WorkerStats]()
        queues: dict[str, Queue] = {}
        if snapshot is not None:
            for worker in snapshot.workers:
                workers[worker.worker] = worker
                # One that has exited may still be in the snapshot.
                if worker.worker in own and (worker.slots or worker.state == "draining"):
                    known = self._appearances.get(worker.worker)
                    known = known or _Appearance(now, now, worker.start.total_s, worker.start.standby)
                    self._appearances[worker.worker] = known._replace(last_at=now)
            for stats in snapshot.models:
                counts = {name: getattr(stats, name) for name in _QUEUE_COUNTS}
                queues[stats.model] = Queue(**counts, uptime_s=snapshot.uptime_s)
        observations = {}
        for model in models:
            present = [child for child in children if child.model == model]
            replicas = [self._replica(each, workers.get(each.id), snapshot, now) for each in present if not each.spare]
            spares = [child for child in present if child.spare]
            observations[model] = Observation(model, queues.get(model), replicas, spares=spares, unix_s=unix_s)
        return observations

    def _replica(
        self, child: WorkerProcess, stats: WorkerStats | None, snapshot: Snapshot | None, now: float
    ) -> Replica:
        stage, known = Stage.STARTING, self._appearances.get(child.id)
        if known is not None:
            stage, child = Stage.READY, dataclasses.replace(child, ready_at=known.ready_at)
        # A worker that an operator drains is no capacity either.
        if child.drained_at is not None or (stats is not None and stats.state == "draining"):
            stage = Stage.DRAINING
        silent_since = None
        if known is not None and snapshot is not None and known.last_at < now:
            # Time without a balancer, or before the present balancer started, does not count.
            silent_since = max(known.last_at, now - snapshot.uptime_s)
        return Replica(
            child,
            stage,
            load=stats.assigned + stats.running if stats is not None else 0,
            silent_since=silent_since,
            stuck=stats is not None and stats.state == "stuck",
            memory_bytes=stats.memory_bytes if stats is not None else 0,
            started_in_s=known.started_in_s if known is not None else 0.0,
            from_standby=known is not None and known.from_standby,
        )


def count_starting(observations: Iterable[Observation]) -> Counter[str]:
    """Return the processes that load now, workers and standby workers, by machine."""
    loading: Counter[str] = Counter()
    for observation in observations:
        workers = (replica.process for replica in observation.replicas if replica.stage is Stage.STARTING)
        loading.update(machine_of(child.device) for child in workers)
        loading.update(machine_of(spare.device) for spare in observation.spares if spare.loaded_at is None)
    return loading
