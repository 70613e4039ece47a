"""A pool of simulated workers: requests come, wait, run and end; workers load, serve, go and die. Pure.

Each model has one queue, first come first served, and gives its head to the least busy ready worker. A worker runs up
to a batch of tasks at once, each `slow[b - 1]` times slower than alone while there are b of them. A worker that is told
to go hands its tasks back between two steps, with their progress, and they are the next to run, as in the live server.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections import deque
from collections.abc import Mapping

from controller.simulator.model_sim import Returned, Station, Worker
from controller.types import Child, Exit

#: Progress that a task loses with its worker: half of what lies between two checkpoints.
_LOST_S = 1.0


class Kind:
    """What an event is. They are compared when two happen at once: ends before looks."""

    FINISH, READY, GONE, DIE = range(4)


class Pool:
    """The machine. `next_at` says when something happens next, `step` lets it happen; time is in seconds."""

    def __init__(self, stations: Mapping[str, Station], seed: int = 0) -> None:
        self.stations = dict(stations)
        self.exits: list[Exit] = []
        #: Whether a worker came, went or died since somebody looked.
        self.changed = False
        self._chance = random.Random(seed)
        self._events: list[tuple[float, int, int, Worker, int]] = []
        self._order = itertools.count()
        self._names = itertools.count(1)
        self.workers: dict[str, Worker] = {}

    @property
    def next_at(self) -> float:
        """When the next event is; infinity where there is none."""
        events = self._events
        while events and events[0][2] == Kind.FINISH and events[0][4] != events[0][3].epoch:
            heapq.heappop(events)
        return events[0][0] if events else math.inf

    def step(self) -> None:
        """The next event."""
        at, _, kind, worker, _ = heapq.heappop(self._events)
        if kind == Kind.FINISH:
            self._finish(worker, at)
        elif kind == Kind.READY:
            if worker.child.drained_at is None and worker.child.id in self.workers:
                self._ready(worker, at)
        elif kind == Kind.GONE:
            self._gone(worker, at)
        elif worker.child.id in self.workers and worker.child.drained_at is None:
            self._die(worker, at)

    def _later(self, at: float, kind: int, worker: Worker) -> None:
        heapq.heappush(self._events, (at, next(self._order), kind, worker, worker.epoch))

    # ---- tasks

    def arrive(self, station: Station) -> None:
        """The next request comes."""
        now = station.times[station.tail]
        station.remaining_s(now)
        station.left_s += station.work[station.tail]
        station.tail += 1
        self._dispatch(station, now)

    def _dispatch(self, station: Station, now: float) -> None:
        levels, batch = station.levels, station.service.batch
        while station.returned or station.head < station.tail:
            level = 0
            while level < batch and not levels[level]:
                level += 1
            if level == batch:
                return
            self._take(next(iter(levels[level].values())), now)

    def _take(self, worker: Worker, now: float) -> None:
        """Give the head of the queue to the worker."""
        station = worker.station
        if station.returned:
            number, left_s = station.returned.popleft()
        else:
            number, left_s = station.head, station.work[station.head]
            wait = station.waits[number] = now - station.times[number]
            station.late += wait > station.service.max_wait_s
            station.head += 1
        self._set_load(worker, now, 1)
        heapq.heappush(worker.running, (worker.done_s + left_s, number))
        self._foresee(worker, now)

    def _finish(self, worker: Worker, now: float) -> None:
        station = worker.station
        self._set_load(worker, now, -1)
        end, number = heapq.heappop(worker.running)
        worker.done_s = end
        station.ends[number] = now
        station.done += 1
        station.finished_s += station.work[number]
        worker.epoch += 1
        if station.returned or station.head < station.tail:
            self._take(worker, now)
        elif worker.running:
            self._foresee(worker, now)

    def _set_load(self, worker: Worker, now: float, change: int) -> None:
        """Note that the worker has one task more or less from now on; `running` is to follow."""
        station, load = worker.station, len(worker.running)
        slow = station.service.slow
        station.remaining_s(now)
        if load:
            worker.done_s += (now - worker.at) / slow[load - 1]
            station.burn -= load / slow[load - 1]
        worker.at = now
        new = load + change
        if new:
            station.burn += new / slow[new - 1]
        del station.levels[load][worker.child.id]
        station.levels[new][worker.child.id] = worker

    def _foresee(self, worker: Worker, now: float) -> None:
        """When its next task will be done, if nothing changes."""
        worker.epoch += 1
        left_s = worker.running[0][0] - worker.done_s
        self._later(now + left_s * worker.station.service.slow[len(worker.running) - 1], Kind.FINISH, worker)

    # ---- workers

    def start(self, model: str, device: str, now: float, *, ready: bool = False) -> None:
        """Start a worker, or have one that is ready at once."""
        station = self.stations[model]
        takes_s = 0.0 if ready else self._chance.choice(station.service.cold_starts_s)
        self._begin(station, device, now, takes_s, from_standby=False)

    def start_spare(self, model: str, kind: str, now: float) -> None:
        """Start a process that loads, but has no device."""
        station, number = self.stations[model], next(self._names)
        takes_s = self._chance.choice(station.service.cold_starts_s)
        child = Child(f"{model}-{number}", model, kind, number, now, spare=True, loaded_at=now + takes_s)
        station.spares[child.id] = child

    def activate(self, name: str, model: str, device: str, now: float) -> None:
        """Have the spare serve on the device: at once what it has loaded, else when it has."""
        station = self.stations[model]
        child = station.spares.pop(name, None)
        if child is not None:
            wait_s = max((child.loaded_at or now) - now, 0.0)
            self._begin(station, device, now, wait_s + station.service.standby_s, from_standby=True)

    def _begin(self, station: Station, device: str, now: float, takes_s: float, *, from_standby: bool) -> None:
        number, model = next(self._names), station.service.name
        worker = Worker(Child(f"{model}-{number}", model, device, number, now), station, from_standby=from_standby)
        self.workers[worker.child.id] = station.workers[worker.child.id] = worker
        station.count(now, 1, 0)
        life = station.service.mean_life_s
        if life is not None:
            self._later(now + self._chance.expovariate(1 / life), Kind.DIE, worker)
        if takes_s:
            station.starts += 1
            station.standby_starts += from_standby
            self._later(now + takes_s, Kind.READY, worker)
        else:
            self._ready(worker, now)
        self.changed = True

    def _ready(self, worker: Worker, now: float) -> None:
        child = worker.child
        worker.child = Child(child.id, child.model, child.device, child.pid, child.started_at, None, now)
        worker.at = now
        worker.station.levels[0][child.id] = worker
        worker.station.count(now, -1, 1)
        self.changed = True
        self._dispatch(worker.station, now)

    def drain(self, name: str, now: float) -> None:
        """Tell the worker to go: it gives its tasks back, and is gone a moment later."""
        for station in self.stations.values():
            station.spares.pop(name, None)
        worker = self.workers.get(name)
        if worker is None or worker.child.drained_at is not None:
            return
        child, station = worker.child, worker.station
        if child.ready_at is not None:
            self._give_back(worker, now, 0.0)
            station.count(now, 0, -1)
        else:
            station.count(now, -1, 0)
        worker.child = Child(child.id, child.model, child.device, child.pid, child.started_at, now, child.ready_at)
        station.drains += 1
        # What is still loading has nothing to hand over.
        self._later(now + (station.service.leave_s if child.ready_at is not None else 0.0), Kind.GONE, worker)
        self._dispatch(station, now)

    def kill(self, name: str, now: float) -> None:
        """End the worker now."""
        worker = self.workers.get(name)
        if worker is not None:
            self._die(worker, now)

    def _give_back(self, worker: Worker, now: float, lost_s: float) -> None:
        """Its tasks are queued again, before those that never ran, each with up to `lost_s` of its work undone."""
        station, load = worker.station, len(worker.running)
        station.remaining_s(now)
        if load:
            slow = station.service.slow[load - 1]
            worker.done_s += (now - worker.at) / slow
            station.burn -= load / slow
        back = []
        for end, number in sorted(worker.running, key=lambda task: task[1]):
            left_s = max(end - worker.done_s, 0.0)
            again_s = min(left_s + lost_s, max(station.work[number], left_s))
            station.left_s += again_s - left_s
            back.append(Returned(number, again_s))
        station.returned = deque(sorted([*station.returned, *back]))
        station.levels[load].pop(worker.child.id, None)
        worker.running = []
        worker.epoch += 1

    def _die(self, worker: Worker, now: float) -> None:
        station, child = worker.station, worker.child
        if child.drained_at is None and child.ready_at is not None:
            self._give_back(worker, now, _LOST_S)
            station.count(now, 0, -1)
        elif child.drained_at is None:
            station.count(now, -1, 0)
        station.deaths += 1
        self._remove(worker, now, -9)
        self._dispatch(station, now)

    def _gone(self, worker: Worker, now: float) -> None:
        if worker.child.id in self.workers:
            self._remove(worker, now, 0)

    def _remove(self, worker: Worker, now: float, status: int) -> None:
        del self.workers[worker.child.id]
        del worker.station.workers[worker.child.id]
        worker.station.worker_s += now - worker.child.started_at
        worker.epoch += 1
        self.exits.append(Exit(worker.child, now, status))
        self.changed = True
