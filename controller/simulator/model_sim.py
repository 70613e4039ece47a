"""State of one simulated model: its worker profile, arrivals, queue, workers and counters."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from controller.simulator.urgency import Urgency, UrgencyQueue
from controller.types import Replica, Stage
from host.types import WorkerProcess
from wire.snapshot import ArrivalBucket


@dataclass(frozen=True, slots=True)
class WorkerProfile:
    """Performance of one model's workers. Times are in seconds."""

    model: str
    #: Slowdown of each task in a batch of 1, 2, ... tasks, up to a full batch.
    slowdowns: tuple[float, ...] = (1.0,)
    #: Cold start times. Each start draws one at random.
    cold_starts_s: tuple[float, ...] = (40.0,)
    #: Start time from a standby process that has loaded.
    standby_start_s: float = 5.0
    #: Time from the drain command until the device is free.
    drain_s: float = 1.0
    #: Mean time between failures of a worker; None: workers do not fail.
    mean_lifetime_s: float | None = None
    #: A task is late if its queue wait exceeds this.
    max_wait_s: float = 10.0
    #: Seconds of age that one step of priority counts as.
    priority_s: float = 60.0

    @property
    def batch(self) -> int:
        """Tasks in a full batch."""
        return len(self.slowdowns)

    def expected_start_s(self) -> float:
        """Return the 90th percentile of the cold start times."""
        return quantile(sorted(self.cold_starts_s), 0.9)


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile of sorted values by the nearest-rank method; NaN for no values."""
    return ordered[min(math.ceil(share * len(ordered)), len(ordered)) - 1] if ordered else math.nan


def batch_slowdowns(batch: int, fixed_share: float) -> tuple[float, ...]:
    """Return the slowdowns of 1 to `batch` tasks; `fixed_share` of a step's time does not grow with the batch."""
    return tuple(fixed_share + (1 - fixed_share) * tasks for tasks in range(1, batch + 1))


class PreemptedWork(NamedTuple):
    """A task that a worker returned to the queue, and its remaining work in seconds."""

    number: int
    remaining_s: float


class SimWorker:
    """A worker process. `work_done_s` is the work that a task running since the worker became ready would have."""

    __slots__ = (
        "epoch",
        "from_standby",
        "is_cut",
        "model",
        "process",
        "replica",
        "running",
        "updated_at",
        "work_done_s",
    )

    def __init__(self, child: WorkerProcess, model: ModelSim, *, from_standby: bool = False) -> None:
        self.process = child
        self.model = model
        self.from_standby = from_standby
        #: It serves, but cannot be reached.
        self.is_cut = False
        #: Heap of (`work_done_s` at which the task is finished, number of the task).
        self.running: list[tuple[float, int]] = []
        self.work_done_s = 0.0
        self.updated_at = child.started_at
        #: Incremented when `running` changes. A finish event of an earlier epoch is void.
        self.epoch = 0
        self.replica: Replica | None = None

    @property
    def stage(self) -> Stage:
        if self.process.drained_at is not None:
            return Stage.DRAINING
        return Stage.STARTING if self.process.ready_at is None else Stage.READY

    def work_beyond(self, most_s: float, now: float) -> float:
        """Return the work that its running tasks have left beyond `most_s` each, in seconds."""
        running = self.running
        if not running:
            return 0.0
        reached_s = self.work_done_s + (now - self.updated_at) / self.model.profile.slowdowns[len(running) - 1] + most_s
        return sum(end_s - reached_s for end_s, _ in running if end_s > reached_s)

    def as_replica(self) -> Replica:
        """Return the worker as the controller observes it. The object is reused until the worker changes."""
        replica = self.replica
        if replica is None or replica.process is not self.process or replica.load != len(self.running):
            start_s = 0.0 if self.process.ready_at is None else self.process.ready_at - self.process.started_at
            replica = self.replica = Replica(
                self.process, self.stage, len(self.running), started_in_s=start_s, from_standby=self.from_standby
            )
        return replica


@dataclass(slots=True)
class ModelSim:
    """One model in the simulation. A task's number is its index in `times`.

    Without urgencies, tasks from `head` up to `tail` are queued and have never run.
    """

    profile: WorkerProfile
    #: Arrival time of each request in ascending order, and its work: seconds on an otherwise idle worker.
    times: Sequence[float]
    work: Sequence[float]
    #: Priority and deadline of each request; empty: first in, first out, without deadlines.
    urgencies: Sequence[Urgency] = ()
    #: Requests that have left the queue for the first time, and that have arrived.
    head: int = 0
    tail: int = 0
    #: The order of queued requests; None: by number.
    order: UrgencyQueue | None = None
    preempted: deque[PreemptedWork] = field(default_factory=deque)
    workers: dict[str, SimWorker] = field(default_factory=dict)
    spares: dict[str, WorkerProcess] = field(default_factory=dict)
    #: Ready workers by their number of tasks.
    by_load: list[dict[str, SimWorker]] = field(default_factory=list)
    #: Queue wait of each task in seconds, and its end time.
    waits: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    late: int = 0
    #: Requests that left the queue at their deadline; they count as done.
    expired: int = 0
    done: int = 0
    crashes: int = 0
    starts: int = 0
    standby_starts: int = 0
    drains: int = 0
    worker_s: float = 0.0
    #: Work that was done twice, because its result was lost in a failure.
    repeated_s: float = 0.0
    #: Work of the finished tasks.
    finished_s: float = 0.0
    starting: int = 0
    ready: int = 0
    #: (time, starting, ready) after each change of either count.
    history: list[tuple[float, int, int]] = field(default_factory=list)
    #: Work of queued and running tasks at `updated_at`. It decreases by `work_rate` each second.
    remaining_s: float = 0.0
    work_rate: float = 0.0
    updated_at: float = 0.0
    #: Prefix sums of `work`.
    sums: list[float] = field(default_factory=list)
    #: Arrivals by second, of all times.
    buckets: list[ArrivalBucket] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.order = UrgencyQueue(self.urgencies, self.profile.priority_s) if self.urgencies else None
        self.by_load = [{} for _ in range(self.profile.batch + 1)]
        self.waits = [math.nan] * len(self.times)
        self.ends = [math.nan] * len(self.times)
        self.sums = list(itertools.accumulate(self.work, initial=0.0))

    @property
    def queued(self) -> int:
        return self.tail - self.head + len(self.preempted)

    @property
    def running(self) -> int:
        return self.tail - self.done - self.queued

    def count_arrival(self, at: float, work_s: float) -> None:
        """Add an arrival to the buckets."""
        last, second = self.buckets[-1] if self.buckets else None, int(at)
        if last is not None and last.second == second:
            largest_s = max(last.largest_s, work_s)
            self.buckets[-1] = ArrivalBucket(second, last.tasks + 1, last.work_s + work_s, largest_s)
        else:
            self.buckets.append(ArrivalBucket(second, 1, work_s, work_s))

    def oldest_arrival(self) -> float | None:
        """Return the arrival time of the oldest queued task."""
        if self.preempted:
            return self.times[self.preempted[0].number]
        if self.order is not None:
            oldest = self.order.oldest()
            return None if oldest is None else self.times[oldest]
        return self.times[self.head] if self.head < self.tail else None

    @property
    def started(self) -> int:
        """Number of requests that a worker has begun."""
        return self.head - self.expired

    def push_arrival(self, now: float) -> float:
        """Add the next request to the queue. Returns the time of its deadline."""
        self.advance_work(now)
        self.remaining_s += self.work[self.tail]
        self.count_arrival(now, self.work[self.tail])
        self.tail += 1
        return math.inf if self.order is None else self.order.push(self.tail - 1, now)

    def pop_head(self, now: float) -> int:
        """Return the next request of the queue, which begins now."""
        number = self.head if self.order is None else self.order.pop()
        wait = self.waits[number] = now - self.times[number]
        self.late += wait > self.profile.max_wait_s
        self.head += 1
        return number

    def expire(self, number: int, now: float) -> None:
        """Remove a request from the queue at its deadline, if it waits."""
        if self.order is None or number not in self.order:
            return
        self.order.discard(number)
        self.remaining_s = max(self.advance_work(now) - self.work[number], 0.0)
        self.head += 1
        self.expired += 1
        self.done += 1

    def change_counts(self, now: float, starting: int, ready: int) -> None:
        """Add to the numbers of starting and ready workers."""
        self.starting += starting
        self.ready += ready
        self.history.append((now, self.starting, self.ready))

    def advance_work(self, now: float) -> float:
        """Update and return the remaining work of queued and running tasks, in seconds on an idle worker."""
        self.remaining_s = max(self.remaining_s - self.work_rate * (now - self.updated_at), 0.0)
        self.updated_at = now
        return self.remaining_s
