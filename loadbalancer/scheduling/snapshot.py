"""What happened lately, and the snapshot of the present that the controller decides by."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

from loadbalancer.scheduling.cost_model import ImageCosts
from loadbalancer.scheduling.estimates import queued_work_s
from loadbalancer.scheduling.request_queue import ModelQueue, Size
from loadbalancer.scheduling.rules import ArrivalWindows
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.worker_registry import Worker, WorkerRegistry
from wire.snapshot import ModelStats, Snapshot, WorkerStats

#: Rates are means over this many seconds.
WINDOW_S = 60.0
#: Arrivals whose mean work is told.
_LAST = 200


class SlidingWindow:
    """Counts events over the last `span_s` seconds, in buckets of one second: what it holds is bounded by that."""

    def __init__(self, span_s: float = WINDOW_S) -> None:
        self._span_s = span_s
        self._buckets: deque[tuple[float, int]] = deque()
        self._total = 0

    def __repr__(self) -> str:
        return f"<Window of {self._span_s:g} s, {self._total} events>"

    def add(self, count: int, now: float) -> None:
        """`count` events happened now."""
        self._forget(now)
        second = now // 1.0
        before = self._buckets.pop()[1] if self._buckets and self._buckets[-1][0] == second else 0
        self._buckets.append((second, before + count))
        self._total += count

    def count(self, now: float) -> int:
        """Events of the last `span_s` seconds, exact to a second."""
        self._forget(now)
        return self._total

    def rate(self, now: float) -> float:
        """Events per second."""
        return self.count(now) / self._span_s

    def _forget(self, now: float) -> None:
        while self._buckets and self._buckets[0][0] <= now - self._span_s:
            self._total -= self._buckets.popleft()[1]


class ModelCounters:
    """One model's comings and goings."""

    def __init__(self, watch: ArrivalWindows | None = None) -> None:
        self.watch = watch or ArrivalWindows()
        self.completions = SlidingWindow()
        #: Since the start: tasks begun for the first time, and those of them that had waited too long for it.
        self.dispatched = 0
        self.late = 0
        #: Tasks that another server was asked to do, and those of them that it has not answered yet.
        self.forwarded = 0
        self.elsewhere = 0
        self._arrivals = SlidingWindow()
        self._recent = SlidingWindow(self.watch.look_back_s)
        self._lately = SlidingWindow(self.watch.rate_window_s)
        self._last: deque[tuple[Size, int]] = deque(maxlen=_LAST)

    def arrived(self, size: Size, steps: int, count: int, now: float) -> None:
        """So many tasks came, each an image of this size in so many steps."""
        for window in (self._arrivals, self._recent, self._lately):
            window.add(count, now)
        self._last.extend([(size, steps)] * min(count, _LAST))

    def forward(self, size: Size, steps: int, count: int, now: float) -> None:
        """So many tasks came, and another server was asked to do them."""
        self.arrived(size, steps, count, now)
        self.forwarded += count
        self.elsewhere += count

    def began(self, waited_s: float) -> None:
        """A worker has begun a task for the first time."""
        self.dispatched += 1
        self.late += waited_s > self.watch.max_wait_s

    def mean_work_s(self, costs: ImageCosts) -> float | None:
        """Work of one task in seconds, as a mean over those that came last; None if unknown."""
        seconds = [_work_s(size, steps, costs) for size, steps in self._last]
        known = [each for each in seconds if each is not None]
        return sum(known) / len(known) if known and len(known) == len(seconds) else None

    def arrival_rate(self, now: float) -> float:
        """Arrivals per second, over the last minute."""
        return self._arrivals.rate(now)

    def recent(self, now: float) -> int:
        """Arrivals within `look_back_s`."""
        return self._recent.count(now)

    def lately(self, now: float) -> int:
        """Arrivals within `rate_window_s`."""
        return self._lately.count(now)


def work_s(queue: ModelQueue, running: Sequence[Task], costs: ImageCosts) -> float | None:
    """Seconds of one worker that all of these still need, one after the other; None while nothing was measured."""
    steps = queue.steps.copy()
    for task in running:
        steps[task.size] += task.remaining_steps
    if not steps:
        return 0.0 if costs.known else None
    seconds = [_work_s(size, count, costs) for size, count in steps.items()]
    known = [each for each in seconds if each is not None]
    return sum(known) if len(known) == len(seconds) else None


def _work_s(size: Size, steps: int, costs: ImageCosts) -> float | None:
    step_s = costs.step_s(size)
    return None if step_s is None else steps * step_s


def snapshot(
    queues: Mapping[str, ModelQueue],
    rates: Mapping[str, ModelCounters],
    costs: Mapping[str, ImageCosts],
    tasks: Mapping[str, Task],
    roster: WorkerRegistry,
    *,
    now: float,
    wall_time: float,
    uptime_s: float,
) -> Snapshot:
    """The present, as counts and rates."""
    return Snapshot(
        time=wall_time,
        uptime_s=uptime_s,
        models=[_model(model, queues[model], rates[model], costs[model], tasks, roster, now) for model in queues],
        workers=[_worker(worker, roster, now) for worker in roster],
    )


def _model(
    name: str,
    queue: ModelQueue,
    rates: ModelCounters,
    costs: ImageCosts,
    tasks: Mapping[str, Task],
    roster: WorkerRegistry,
    now: float,
) -> ModelStats:
    workers = roster.of(name)
    oldest = queue.oldest()
    # A worker may still hold the slot of a task that has ended, or that is another's by now.
    running = [
        task for worker in workers for held in worker.held if (task := tasks.get(held)) and task.worker == worker.id
    ]
    return ModelStats(
        model=name,
        queued=len(queue),
        running=sum(len(worker.held) for worker in workers),
        queued_work_s=queued_work_s(queue, workers),
        oldest_wait_s=max(now - oldest, 0.0) if oldest is not None else 0.0,
        arrival_rate=rates.arrival_rate(now),
        service_rate=rates.completions.rate(now),
        batch_cap=costs.batch_cap,
        batch_slowdown=costs.slow_down,
        backlog_work_s=work_s(queue, running, costs),
        mean_work_s=rates.mean_work_s(costs),
        arrivals_look_back=rates.recent(now),
        arrivals_rate_window=rates.lately(now),
        started_total=rates.dispatched,
        started_late_total=rates.late,
        proxied_total=rates.forwarded,
        proxied_in_flight=rates.elsewhere,
    )


def _worker(worker: Worker, roster: WorkerRegistry, now: float) -> WorkerStats:
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
        start=worker.hello.start,
    )
