"""A lower bound on the GPU time of any schedule that keeps the promise, by a linear program.

Time is cut into slots of equal length. The unknowns are averages over a slot, so that every schedule of the simulator,
with any policy or with the future known, is a solution of the program:

- workers that have become ready and that have gone, both never decreasing, and from them the ready workers;
- paid workers: at least the ready ones and those that become ready within one start, and at least `min_workers`;
- the work done for requests in time. A request in time starts within the allowed wait and then runs at the speed of a
  full batch or faster, so its work is done in the slots from its arrival to then. A worker that goes may return as many
  requests as a full batch; these have been in time and are exempt from that;
- the work done for late requests, in any slot after their arrival. Work left at the end is paid at full speed.

At least the promised share of requests is in time. Fractions of workers and of requests are allowed, which makes the
minimum a lower bound: the true optimum is above it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from controller.simulator.reference.linear_program import Array, BoundUnavailable, LinearProgram
from controller.simulator.scenarios import Scenario, Traffic

#: Fewest and most slots. Between them, the mean window of a request in time has so many.
_MIN_SLOTS, _MAX_SLOTS = 60, 1440
_WINDOW_SLOTS = 4.0
#: Slots of all requests together at most; longer slots are used otherwise.
_MAX_REQUEST_SLOTS = 100_000
#: More requests need more memory and time than a command should take.
MAX_REQUESTS = 250_000
#: Slots before the end in which requests have no deadline, because the end cuts their windows.
_FREE_SLOTS = 2


@dataclass(frozen=True, slots=True)
class Fleet:
    """What any schedule must respect. Times are in seconds."""

    slowdowns: tuple[float, ...]
    #: Shortest start of a worker.
    start_s: float
    max_wait_s: float
    #: Share of requests in time, from 0 to 1.
    in_time: float
    initial_workers: int
    min_workers: int
    max_workers: int

    @property
    def speed(self) -> float:
        """Work per second of a worker with the most efficient batch."""
        return max(tasks / slowdown for tasks, slowdown in enumerate(self.slowdowns, 1))


def fleet_of(scenario: Scenario, model: str) -> Fleet:
    """Return the limits of a model's schedules in the scenario."""
    profile, target = scenario.profiles[model], scenario.targets()[model]
    start_s = min(profile.cold_starts_s)
    if target.scaling.standby:
        start_s = min(start_s, profile.standby_start_s)
    # Crashes, and other models on a full cluster, may leave a model without its minimum for a while.
    is_undisturbed = len(scenario.profiles) == 1 and not scenario.has_failures
    most = target.limits.max_workers + (target.scaling.max_worker_age_s is not None)
    return Fleet(
        slowdowns=profile.slowdowns,
        start_s=start_s,
        max_wait_s=target.scaling.slo.max_wait_s,
        in_time=target.scaling.slo.percentile / 100,
        initial_workers=target.initial_workers,
        min_workers=min(target.limits.min_workers, scenario.gpus) if is_undisturbed else 0,
        max_workers=max(most, target.initial_workers),
    )


def min_hours(scenario: Scenario, model: str) -> float:
    """Return a lower bound of the model's GPU-hours in the scenario at its `slo.percentile`.

    Infinity: no schedule keeps the promise. Raises `BoundUnavailable`.
    """
    return lower_bound_s(scenario.traffic[model], fleet_of(scenario, model), scenario.span_s) / 3600


def lower_bound_s(traffic: Traffic, fleet: Fleet, span_s: float) -> float:
    """Return a lower bound of the paid worker seconds, where workers are charged for `span_s` seconds at least.

    Infinity: no schedule keeps the promise. Raises `BoundUnavailable`.
    """
    if len(traffic.times) > MAX_REQUESTS:
        raise BoundUnavailable(
            f"the lower bound supports {MAX_REQUESTS:,} requests at most, not {len(traffic.times):,}"
        )
    return _BoundProgram(traffic, fleet, span_s).minimum()


class _BoundProgram:
    """The linear program. Arrays hold one column number per slot, request or request and slot."""

    def __init__(self, traffic: Traffic, fleet: Fleet, span_s: float) -> None:
        times, work = np.maximum(np.asarray(traffic.times, dtype=float), 0.0), np.asarray(traffic.work, dtype=float)
        self._fleet, self._work = fleet, work
        #: Work that has to be done at some time: requests with a deadline may leave unserved.
        expires = np.array([one.deadline_s < math.inf for one in traffic.urgencies], dtype=bool)
        self._owed = np.where(expires, 0.0, work) if len(expires) else work
        latest = times + fleet.max_wait_s + work * max(fleet.slowdowns)
        self._slots, self._slot_s = _grid(times, latest, span_s)
        self._first = np.floor(times / self._slot_s).astype(int)
        self._last = np.floor(latest / self._slot_s + 1e-6).astype(int)
        #: Whether the deadline of a request is far enough from the end to bind.
        self._bound = self._last < self._slots - _FREE_SLOTS
        self._program = LinearProgram()
        self._less, self._equal = self._program.less, self._program.equal

    def minimum(self) -> float:
        paid, left = self._build()
        return self._program.minimum(np.concatenate([paid, left]), self._costs(len(paid), len(left)))

    def _costs(self, paid: int, left: int) -> Array:
        return np.repeat([self._slot_s, 1 / self._fleet.speed], [paid, left])

    def _build(self) -> tuple[Array, Array]:
        """Collect the constraints. Returns the columns of paid workers, and of the work left at the end."""
        slots, fleet = self._slots, self._fleet
        gone = self._program.variables(slots)
        ready = self._ready_terms()
        paid = self._program.variables(slots, low=fleet.min_workers)
        self._limit_workers(ready, gone, paid)
        done, classes = self._request_columns(gone)
        late_done, waiting = self._program.variables(slots), self._program.variables(slots)
        # Work done in a slot is at most the capacity of its ready workers.
        rows = np.arange(self._less.count, self._less.count + slots)
        speed_s = fleet.speed * self._slot_s
        self._less.add(
            np.full(slots, speed_s * fleet.initial_workers),
            (late_done, 1.0),
            (gone, speed_s),
            *((columns, -speed_s * values) for columns, values in ready),
        )
        self._less.add_terms(rows[classes], done, 1.0)
        self._defer(late_done, waiting)
        return paid, waiting[-1:]

    # ---- workers

    def _ready_terms(self) -> list[tuple[Array, float]]:
        """Return the average number of workers that have become ready, as terms for each slot.

        A start takes `whole` slots and a rest. Each slot is cut at the rest, so that a shift by a start is exact.
        """
        slots, fleet = self._slots, self._fleet
        whole, rest_s = divmod(fleet.start_s, self._slot_s)
        self._whole, share = int(whole), rest_s / self._slot_s
        self._head_share = share
        numbers = np.arange(slots)
        # Nothing becomes ready before one start.
        self._head = self._program.variables(slots, high=np.where(numbers <= self._whole, 0.0, np.inf))
        self._tail = self._program.variables(slots, high=np.where(numbers < self._whole, 0.0, np.inf))
        self._less.add(np.zeros(slots), (self._head, 1.0), (self._tail, -1.0))
        self._less.add(np.zeros(slots - 1), (self._tail[:-1], 1.0), (self._head[1:], -1.0))
        return [(self._head, share), (self._tail, 1 - share)]

    def _limit_workers(self, ready: list[tuple[Array, float]], gone: Array, paid: Array) -> None:
        slots, fleet, share = self._slots, self._fleet, self._head_share
        initial = float(fleet.initial_workers)
        self._less.add(np.zeros(slots - 1), (gone[:-1], 1.0), (gone[1:], -1.0))
        self._less.add(np.full(slots, initial), (gone, 1.0), *((columns, -value) for columns, value in ready))
        self._less.add(np.full(slots, fleet.max_workers - initial), (gone, -1.0), *ready)
        # Paid: ready, and starting, which is what becomes ready within one start. After the end nothing does.
        numbers, last = np.arange(slots), slots - 1
        later_tail = self._tail[np.minimum(numbers + self._whole, last)]
        next_slot = numbers + self._whole + 1
        later_head = np.where(next_slot <= last, self._head[np.minimum(next_slot, last)], self._tail[last])
        self._less.add(
            np.full(slots, -initial),
            (paid, -1.0),
            (gone, -1.0),
            (later_tail, 1 - share),
            (later_head, share),
        )

    # ---- requests

    def _request_columns(self, gone: Array) -> tuple[Array, Array]:
        """Add the requests with a deadline. Returns columns of work done in time, and the slot of each."""
        work, bound = self._work, self._bound
        self._in_time = self._program.variables(len(work), high=1.0)
        windows = np.column_stack([self._first[bound], self._last[bound]])
        classes, member = np.unique(windows, axis=0, return_inverse=True)
        lengths = classes[:, 1] - classes[:, 0] + 1 if len(classes) else np.zeros(0, dtype=int)
        owner, slot = _spread(classes[:, 0], lengths)
        done = self._program.variables(len(owner))
        # The work of requests in time is done in their windows.
        rows = np.arange(self._less.count, self._less.count + len(classes))
        self._less.add(np.zeros(len(classes)))
        self._less.add_terms(rows[member.ravel()], self._in_time[bound], work[bound])
        self._less.add_terms(rows[owner], done, -1.0)
        returned = self._return_requests(classes, lengths, gone)
        # A returned request is not counted twice.
        rows = np.arange(self._less.count, self._less.count + len(classes))
        self._less.add(np.bincount(member.ravel(), minlength=len(classes)))
        self._less.add_terms(rows[member.ravel()], self._in_time[bound], 1.0)
        self._less.add_terms(rows[_spread(classes[:, 0], lengths + 1)[0]], returned, 1.0)
        # Promise: enough requests are in time, or were and have been returned.
        right = -math.ceil(self._fleet.in_time * len(work) - 1e-9)
        self._less.add(right)
        row = self._less.count - 1
        for columns in (self._in_time, returned):
            self._less.add_terms(np.full(len(columns), row), columns, -1.0)
        return done, slot

    def _return_requests(self, classes: Array, lengths: Array, gone: Array) -> Array:
        """Add requests that a leaving worker returns: a full batch each, in windows with the time of its leaving.

        An average of a slot reveals a leaving in this slot and in the next one.
        """
        owner, slot = _spread(classes[:, 0], lengths + 1)
        returned = self._program.variables(len(owner))
        batch, slots = float(len(self._fleet.slowdowns)), self._slots
        rows = np.arange(self._less.count, self._less.count + slots)
        self._less.add(np.zeros(slots), (gone, -batch))
        self._less.add_terms(rows[1:], gone[:-1], batch)
        self._less.add_terms(rows[slot], returned, 1.0)
        return returned

    def _defer(self, late_done: Array, waiting: Array) -> None:
        """Work that is not done in time waits until it is done later, or to the end."""
        slots, first, owed = self._slots, np.minimum(self._first, self._slots - 1), self._owed
        arriving = np.bincount(first, weights=owed, minlength=slots)
        self._equal.add(arriving, (waiting, 1.0), (late_done, 1.0))
        self._equal.add_terms(np.arange(1, slots), waiting[:-1], -1.0)
        self._equal.add_terms(first[self._bound], self._in_time[self._bound], owed[self._bound])


def _grid(times: Array, latest: Array, span_s: float) -> tuple[int, float]:
    """Return the number of slots and their length in seconds."""
    window_s = float(np.mean(latest - times)) if len(times) else span_s
    slots = int(min(max(_WINDOW_SLOTS * span_s / window_s, _MIN_SLOTS), _MAX_SLOTS))
    while slots > 2 * _FREE_SLOTS:
        slot_s = span_s / slots
        first, last = np.floor(times / slot_s), np.floor(latest / slot_s + 1e-6)
        windows = np.unique(np.column_stack([first, last]), axis=0)
        if np.sum(windows[:, 1] - windows[:, 0] + 1) <= _MAX_REQUEST_SLOTS:
            break
        slots = slots * 2 // 3
    return slots, span_s / slots


def _spread(first: Array, lengths: Array) -> tuple[Array, Array]:
    """Return for windows of slots the number of the window and the slot, for each slot of each window."""
    owner = np.repeat(np.arange(len(first)), lengths)
    start = np.cumsum(lengths) - lengths
    return owner, (np.arange(len(owner)) - np.repeat(start, lengths) + np.repeat(first, lengths)).astype(int)
