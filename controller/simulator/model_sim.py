"""One model's side of a simulation: how its workers behave, who they are, what waits, what was counted. Pure."""

from __future__ import annotations

import itertools
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from controller.types import Child, Replica, Stage


@dataclass(frozen=True, slots=True)
class Service:
    """How one model's workers behave. Times in seconds."""

    name: str
    #: How much longer a task takes among b tasks than alone, for b = 1, 2, ... up to a full batch.
    slow: tuple[float, ...] = (1.0,)
    #: Times that a start took, of which each start draws one.
    cold_starts_s: tuple[float, ...] = (40.0,)
    #: What a start takes from a spare that has loaded.
    standby_s: float = 5.0
    #: From being told to go until the device is free.
    leave_s: float = 1.0
    #: Mean time between two deaths of a worker; None: they live for ever.
    mean_life_s: float | None = None
    #: A task counts as late that has waited for longer before a worker took it.
    max_wait_s: float = 10.0

    @property
    def batch(self) -> int:
        """Tasks of a full batch."""
        return len(self.slow)

    def expected_start_s(self) -> float:
        """What nine starts of ten take at most."""
        ordered = sorted(self.cold_starts_s)
        return ordered[min(math.ceil(0.9 * len(ordered)), len(ordered)) - 1]


def slow_downs(batch: int, alone: float) -> tuple[float, ...]:
    """Slow-downs of 1 to `batch` tasks where `alone` is the part of a step that does not grow with their number."""
    return tuple(alone + (1 - alone) * tasks for tasks in range(1, batch + 1))


class Returned(NamedTuple):
    """A task that a worker gave back."""

    number: int
    left_s: float


class Worker:
    """A worker process. `done_s` is the work that each of its tasks would have had since it became ready."""

    __slots__ = ("at", "child", "done_s", "epoch", "from_standby", "replica", "running", "station")

    def __init__(self, child: Child, station: Station, *, from_standby: bool = False) -> None:
        self.child = child
        self.station = station
        self.from_standby = from_standby
        #: (`done_s` at which it is finished, number of the task).
        self.running: list[tuple[float, int]] = []
        self.done_s = 0.0
        self.at = child.started_at
        #: Counts changes of `running`: an end that was foreseen before the last one is void.
        self.epoch = 0
        self.replica: Replica | None = None

    @property
    def stage(self) -> Stage:
        """Where it is in its life."""
        if self.child.drained_at is not None:
            return Stage.DRAINING
        return Stage.STARTING if self.child.ready_at is None else Stage.READY

    def seen(self) -> Replica:
        """As the controller sees it."""
        seen = self.replica
        if seen is None or seen.child is not self.child or seen.load != len(self.running):
            took_s = 0.0 if self.child.ready_at is None else self.child.ready_at - self.child.started_at
            seen = self.replica = Replica(
                self.child, self.stage, len(self.running), started_in_s=took_s, from_standby=self.from_standby
            )
        return seen


@dataclass(slots=True)
class Station:
    """One model: its arrivals, its queue, its workers, and what has been counted.

    Tasks are known by their place in `times`. Those from `head` up to `tail` wait and have never run.
    """

    service: Service
    #: When each request comes, in order, and the seconds that it needs alone on a worker.
    times: Sequence[float]
    work: Sequence[float]
    head: int = 0
    tail: int = 0
    returned: deque[Returned] = field(default_factory=deque)
    workers: dict[str, Worker] = field(default_factory=dict)
    spares: dict[str, Child] = field(default_factory=dict)
    #: Ready workers by the number of their tasks.
    levels: list[dict[str, Worker]] = field(default_factory=list)
    #: Seconds until each was first taken, and when it was done.
    waits: list[float] = field(default_factory=list)
    ends: list[float] = field(default_factory=list)
    late: int = 0
    done: int = 0
    deaths: int = 0
    starts: int = 0
    #: Those of the starts that a spare made.
    standby_starts: int = 0
    drains: int = 0
    worker_s: float = 0.0
    #: Work of the tasks that are done.
    finished_s: float = 0.0
    starting: int = 0
    ready: int = 0
    #: (when, starting, ready) after each change of either.
    history: list[tuple[float, int, int]] = field(default_factory=list)
    #: Work of queued and running tasks at `since`, which the workers together lessen by `burn` a second.
    left_s: float = 0.0
    burn: float = 0.0
    since: float = 0.0
    #: Work of the first n arrivals.
    sums: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.levels = [{} for _ in range(self.service.batch + 1)]
        self.waits = [math.nan] * len(self.times)
        self.ends = [math.nan] * len(self.times)
        self.sums = list(itertools.accumulate(self.work, initial=0.0))

    @property
    def queued(self) -> int:
        """Tasks that no worker has."""
        return self.tail - self.head + len(self.returned)

    @property
    def running(self) -> int:
        """Tasks that a worker has."""
        return self.tail - self.done - self.queued

    def oldest(self) -> float | None:
        """When the oldest queued task came."""
        if self.returned:
            return self.times[self.returned[0].number]
        return self.times[self.head] if self.head < self.tail else None

    def count(self, now: float, starting: int, ready: int) -> None:
        """So many more workers are starting and ready from now on."""
        self.starting += starting
        self.ready += ready
        self.history.append((now, self.starting, self.ready))

    def remaining_s(self, now: float) -> float:
        """Work of all that is queued and running, in seconds of a worker that does one task after the other."""
        self.left_s = max(self.left_s - self.burn * (now - self.since), 0.0)
        self.since = now
        return self.left_s
