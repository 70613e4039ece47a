"""Looking: the balancer's snapshot, put together with our own processes into one observation per model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from controller.types import Child, Observation, Queue, Replica, Stage
from wire.snapshot import ModelStats, Snapshot, WorkerStats


class WorkerTracker:
    """When the balancer last heard each worker, by the controller's clock."""

    def __init__(self) -> None:
        self.first: dict[str, float] = {}
        self._last: dict[str, float] = {}

    def listen(self, snapshot: Snapshot, now: float) -> list[str]:
        """Take in a snapshot; the workers heard for the first time."""
        heard = [worker.worker for worker in snapshot.workers if worker.slots or worker.state == "draining"]
        new = [worker for worker in heard if worker not in self.first]
        self.first |= dict.fromkeys(new, now)
        self._last |= dict.fromkeys(heard, now)
        return new

    def forget(self, worker: str) -> None:
        """The worker is gone."""
        self.first.pop(worker, None)
        self._last.pop(worker, None)

    def unheard_since(self, worker: str, snapshot: Snapshot | None, now: float) -> float | None:
        """Since when a worker that was heard once is missing from snapshots; None while nothing says so.

        The time that the balancer was not there, or had just come, does not count against the worker.
        """
        last = self._last.get(worker)
        if snapshot is None or last is None or last >= now:
            return None
        return max(last, now - snapshot.uptime_s)


def observe(
    model: str, children: Sequence[Child], snapshot: Snapshot | None, hearing: WorkerTracker, now: float
) -> Observation:
    """One model's processes with what the balancer says of them."""
    known = {stats.worker: stats for stats in snapshot.workers} if snapshot else {}
    own = [child for child in children if child.model == model]
    replicas = []
    for child in own:
        if not child.spare:
            stats = known.get(child.id)
            load = stats.assigned + stats.running if stats else 0
            unheard = hearing.unheard_since(child.id, snapshot, now)
            stuck = stats is not None and stats.state == "stuck"
            replica = Replica(child, _stage(child, stats, hearing), load, unheard, stuck)
            if stats:
                start = stats.start
                replica = replace(
                    replica,
                    started_in_s=start.total_s,
                    from_standby=start.standby,
                    memory_bytes=stats.memory_bytes,
                )
            replicas.append(replica)
    spares = [child for child in own if child.spare]
    told = next((stats for stats in snapshot.models if stats.model == model), None) if snapshot else None
    queue = _queue(told, snapshot.uptime_s) if snapshot and told else None
    return Observation(model, queue, replicas, spares=spares)


def _queue(told: ModelStats, uptime_s: float) -> Queue:
    return Queue(
        queued=told.queued,
        running=told.running,
        batch_cap=told.batch_cap,
        batch_slowdown=told.batch_slowdown,
        backlog_work_s=told.backlog_work_s,
        mean_work_s=told.mean_work_s,
        arrivals_look_back=told.arrivals_look_back,
        arrivals_rate_window=told.arrivals_rate_window,
        started_total=told.started_total,
        started_late_total=told.started_late_total,
        oldest_wait_s=told.oldest_wait_s,
        proxied_in_flight=told.proxied_in_flight,
        uptime_s=uptime_s,
    )


def _stage(child: Child, stats: WorkerStats | None, hearing: WorkerTracker) -> Stage:
    # A worker that somebody else told to go is no more capacity than one that we did.
    if child.drained_at is not None or (stats is not None and stats.state == "draining"):
        return Stage.DRAINING
    return Stage.READY if child.id in hearing.first else Stage.STARTING
