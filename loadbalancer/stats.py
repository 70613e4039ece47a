"""What happened lately, and the snapshot of the present that the controller decides by."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

from loadbalancer.outlook import queued_work_s
from loadbalancer.request_queue import ModelQueue
from loadbalancer.roster import Roster, Worker
from wire.snapshot import ModelStats, Snapshot, WorkerStats

#: Rates are means over this many seconds.
WINDOW_S = 60.0


class Window:
    """Counts events over the last `WINDOW_S` seconds, in buckets of one second."""

    def __init__(self) -> None:
        self._buckets: deque[list[float]] = deque()

    def add(self, count: int, now: float) -> None:
        """`count` events happened now."""
        second = now // 1.0
        if self._buckets and self._buckets[-1][0] == second:
            self._buckets[-1][1] += count
        else:
            self._buckets.append([second, count])
            self._forget(now)

    def rate(self, now: float) -> float:
        """Events per second."""
        self._forget(now)
        return sum(count for _, count in self._buckets) / WINDOW_S

    def _forget(self, now: float) -> None:
        while self._buckets and self._buckets[0][0] <= now - WINDOW_S:
            self._buckets.popleft()


class Rates:
    """One model's comings and goings."""

    def __init__(self) -> None:
        self.arrivals = Window()
        self.completions = Window()


def snapshot(
    queues: Mapping[str, ModelQueue],
    rates: Mapping[str, Rates],
    roster: Roster,
    *,
    now: float,
    wall_time: float,
    uptime_s: float,
) -> Snapshot:
    """The present, as counts and rates."""
    return Snapshot(
        time=wall_time,
        uptime_s=uptime_s,
        models=[_model(model, queues[model], rates[model], roster, now) for model in queues],
        workers=[_worker(worker, roster, now) for worker in roster],
    )


def _model(name: str, queue: ModelQueue, rates: Rates, roster: Roster, now: float) -> ModelStats:
    workers = roster.of(name)
    oldest = queue.oldest()
    return ModelStats(
        model=name,
        queued=len(queue),
        running=sum(len(worker.held) for worker in workers),
        queued_work_s=queued_work_s(queue, workers),
        oldest_wait_s=max(now - oldest, 0.0) if oldest is not None else 0.0,
        arrival_rate=rates.arrivals.rate(now),
        service_rate=rates.completions.rate(now),
        # The first curve is that of the model's usual size.
        batch_cap=max((worker.beat.curves[0].cap for worker in workers if worker.beat.curves), default=None),
    )


def _worker(worker: Worker, roster: Roster, now: float) -> WorkerStats:
    running = min(worker.beat.running, len(worker.held))
    return WorkerStats(
        worker=worker.id,
        model=worker.hello.model,
        device=worker.hello.device,
        pid=worker.hello.pid,
        state=roster.state(worker, now),
        slots=worker.slots,
        assigned=len(worker.held) - running,
        running=running,
        last_seen_s=now - worker.last_seen,
        step_s=worker.beat.step_s,
        batch=worker.beat.batch,
        memory_bytes=worker.beat.memory_bytes,
        counters=worker.beat.counters,
    )
