"""The simulation itself: traffic, pool and pilot on one clock. Pure.

The pilot is asked when the live controller would come to something new: at its tick; at once when a worker has died; on
the next full second while its plan could not be carried out; and, while anything waits, whenever that is urgent.
"""

from __future__ import annotations

import heapq
import itertools
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from configs.scaling import Scaling
from controller.simulator.agents import Pilot, Role
from controller.simulator.cluster import Pool
from controller.simulator.model_sim import Station
from controller.types import Activate, Child, Drain, Kill, Observation, Queue, Start, StartSpare

#: Arrivals that the mean work of a request is taken over.
_MEAN_OVER = 200
#: What still waits when so much time has passed since the last arrival is not waited for.
_GIVE_UP_S = 3600.0


class Sample(NamedTuple):
    """One model at one moment, for the picture."""

    at: float
    arrived: int
    wanted: int
    ready: int
    starting: int
    oldest_wait_s: float
    left_s: float


@dataclass(slots=True)
class Replayed:
    """What a simulation leaves behind."""

    pool: Pool
    ended_at: float
    samples: dict[str, list[Sample]]
    #: Looks that started or drained workers, by model.
    changes: dict[str, int] = field(default_factory=dict)


def see(station: Station, scaling: Scaling, now: float, *, sizes_known: bool = True) -> Observation:
    """The model as the live controller would see it."""
    tail, times, service = station.tail, station.times, station.service
    since = max(tail - _MEAN_OVER, 0)
    mean_s = (station.sums[tail] - station.sums[since]) / (tail - since) if tail else None
    queued, running, oldest = station.queued, station.running, station.oldest()
    if not sizes_known:
        mean_s = (station.finished_s / station.done) if station.done else None
    left_s = station.remaining_s(now) if sizes_known or mean_s is None else (queued + running) * mean_s
    queue = Queue(
        queued=queued,
        running=running,
        batch_cap=service.batch,
        batch_slowdown=service.slow[-1],
        backlog_work_s=left_s,
        mean_work_s=mean_s,
        arrivals_short_window=tail - bisect_right(times, now - scaling.look_back_period_s, 0, tail),
        arrivals_long_window=tail - bisect_right(times, now - scaling.rate_window_s, 0, tail),
        started_total=station.head,
        started_late_total=station.late,
        oldest_wait_s=now - oldest if oldest is not None else 0.0,
        uptime_s=now,
    )
    replicas = [worker.seen() for worker in station.workers.values()]
    return Observation(service.name, queue, replicas, spares=_spares(station, now), unix_s=now)


def _spares(station: Station, now: float) -> list[Child]:
    """Of what loads nobody knows when it will have loaded."""
    return [
        child if (child.loaded_at or now) <= now else replace(child, loaded_at=None)
        for child in station.spares.values()
    ]


def silent(progress: float) -> None:
    """Tell nobody."""
    del progress


class Replay:
    """One run of a pilot over a pool's traffic."""

    def __init__(
        self,
        pool: Pool,
        pilot: Pilot,
        roles: Mapping[str, Role],
        *,
        sample_s: float = 60.0,
        sizes_known: bool = True,
        look_every_s: float = 1.0,
    ) -> None:
        """`sample_s` is the time between two samples, infinity for none."""
        self._pool = pool
        self._pilot = pilot
        self._roles = roles
        self._sample_s = sample_s
        self._sizes_known = sizes_known
        self._every_s = look_every_s
        #: Whether the last look left something undone.
        self._restless = True
        self._look_at = 0.0
        self._result = Replayed(pool, 0.0, {name: [] for name in pool.stations}, dict.fromkeys(pool.stations, 0))

    def run(self, until: float = 0.0, tell: Callable[[float], None] = silent) -> Replayed:
        """Until every request is served, and `until` at least. `tell` hears how far it is, in simulated seconds."""
        pool, arrivals = self._pool, self._arrivals()
        for name, role in self._roles.items():
            for slot in role.slots[: role.first]:
                pool.start(name, self._free(role) or slot, 0.0, ready=True)
        coming, station = next(arrivals, (math.inf, None))
        pool.changed = False
        sample_at, now, before = 0.0, 0.0, 0.0
        give_up = math.inf
        while True:
            event_at = pool.next_at
            before, now = now, min(event_at, coming, self._look_at, sample_at)
            if station is None and self._over(now, until, give_up):
                break
            if event_at <= now:
                pool.step()
                if pool.changed:
                    self._react(now)
            elif coming <= now and station is not None:
                pool.arrive(station)
                if station.head < station.tail:
                    self._look_by(self._after(now))
                coming, station = next(arrivals, (math.inf, None))
                give_up = now + _GIVE_UP_S if station is None else math.inf
            elif self._look_at <= now:
                self._look(now)
            else:
                self._sample(now)
                tell(now)
                sample_at = now + self._sample_s
        self._result.ended_at = max(before, until)
        self._settle()
        return self._result

    def _arrivals(self) -> Iterator[tuple[float, Station]]:
        each = [zip(station.times, itertools.repeat(station)) for station in self._pool.stations.values()]
        return heapq.merge(*each, key=lambda pair: pair[0]) if len(each) > 1 else iter(each[0])

    def _free(self, role: Role) -> str | None:
        held = [worker.child.device for worker in self._pool.workers.values()]
        return next((slot for slot in role.slots if held.count(slot) < list(role.slots).count(slot)), None)

    def _over(self, now: float, until: float, give_up: float) -> bool:
        served = all(station.done == len(station.times) for station in self._pool.stations.values())
        return (served and now > until) or now > max(give_up, until)

    # ---- the controller's part

    def _after(self, now: float) -> float:
        """The next time at which the controller looks anyway."""
        return (now // self._every_s + 1) * self._every_s

    def _look_by(self, at: float) -> None:
        self._look_at = min(self._look_at, at)

    def _react(self, now: float) -> None:
        """The dead are seen at once. Who came or went matters where something waits for it."""
        died = any(ended.status != 0 for ended in self._pool.exits)
        if died or self._restless:
            self._look_by(now if died else self._after(now))
        self._pool.changed = False

    def _look(self, now: float) -> None:
        pool, pilot = self._pool, self._pilot
        waiting = [name for name, station in pool.stations.items() if station.queued]
        if pool.exits or self._restless or now >= pilot.due_at() or pilot.stirs(waiting, self._see(now), now):
            self._act(now)
        if self._restless or any(station.queued for station in pool.stations.values()):
            self._look_at = self._after(now)
        else:
            self._look_at = max(math.ceil(pilot.due_at() / self._every_s) * self._every_s, self._after(now))
        pool.changed = False

    def _act(self, now: float) -> None:
        """Have the pilot think, and do what it says."""
        pool, pilot = self._pool, self._pilot
        for ended in pool.exits:
            pilot.died(ended)
        pool.exits.clear()
        thought = pilot.think(self._see(now), now)
        moved = set()
        for action in thought.plan.actions:
            match action:
                case Start(model, device, _):
                    pool.start(model, device, now)
                    moved.add(model)
                case Activate(spare, model, device, _):
                    pool.activate(spare, model, device, now)
                    moved.add(model)
                case StartSpare(model, kind, _):
                    pool.start_spare(model, kind, now)
                case Drain(worker, _):
                    if worker in pool.workers:
                        moved.add(pool.workers[worker].child.model)
                    pool.drain(worker, now)
                case Kill(worker, _):
                    pool.kill(worker, now)
        for model in moved:
            self._result.changes[model] += 1
        # What the plan could not do may be possible at the next look.
        self._restless = bool(thought.plan.obstacles) or self._lacks_spares(now)

    def _lacks_spares(self, now: float) -> bool:
        """Whether a spare is missing or still loads."""
        for name, role in self._roles.items():
            spares = self._pool.stations[name].spares.values()
            if len(spares) < role.scaling.standby or any((child.loaded_at or now) > now for child in spares):
                return True
        return False

    def _see(self, now: float) -> Callable[[str], Observation]:
        stations, roles, known = self._pool.stations, self._roles, self._sizes_known
        return lambda name: see(stations[name], roles[name].scaling, now, sizes_known=known)

    def _sample(self, now: float) -> None:
        for name, station in self._pool.stations.items():
            oldest = station.oldest()
            wait_s = now - oldest if oldest is not None else 0.0
            wanted, left_s = self._pilot.wanted(name), station.remaining_s(now)
            self._result.samples[name].append(
                Sample(now, station.tail, wanted, station.ready, station.starting, wait_s, left_s)
            )

    def _settle(self) -> None:
        """Count the workers that are still there up to the end."""
        for worker in self._pool.workers.values():
            worker.station.worker_s += self._result.ended_at - worker.child.started_at
