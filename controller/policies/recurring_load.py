"""Load that recurs by the time of the hour, the day or the week, as a least number of workers. Pure.

A time slot needs the fewest workers that could serve its arrivals within the allowed wait. Work W that arrives within
w seconds needs W / (speed * (w + allowed wait)) workers; the largest over windows of several lengths counts. It depends
on the arrivals alone, so that a floor that was learnt does not hide the reason for it.

A slot's need is its mean less one standard deviation, over hours, days or weeks whose weights fade. What does not
recur has a large deviation, and raises no floor.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from itertools import accumulate
from typing import NamedTuple
from zoneinfo import ZoneInfo

from configs.scaling import RecurringLoad, Scaling
from controller.types import Queue

_DAY_S = 86400.0
#: Length of each cycle and of its slots in seconds.
_CYCLES = ((3600.0, 60.0), (_DAY_S, 300.0), (7 * _DAY_S, 300.0))
#: Windows in seconds within which work arrives.
_WINDOWS_S = (1, 2, 5, 10, 20, 30, 60)
#: Earlier hours, days or weeks of which a floor is believed.
_ENOUGH = 2.5
#: A slot needs this much more: tasks cannot be split between workers.
_PACKING = 1.15
#: Unix time began on a Thursday.
_FIRST_MONDAY_S = 4 * _DAY_S


class Slot(NamedTuple):
    """Decayed mean of the workers that a slot needed, and of their square."""

    weight: float = 0.0
    mean: float = 0.0
    square: float = 0.0

    def updated(self, need: float, decay: float) -> Slot:
        weight = self.weight * decay + 1
        part = 1 / weight
        return Slot(weight, self.mean + part * (need - self.mean), self.square + part * (need * need - self.square))

    @property
    def sure(self) -> float:
        """The number of workers that it nearly always needs; 0 while it is known too little."""
        if self.weight < _ENOUGH:
            return 0.0
        return max(self.mean - math.sqrt(max(self.square - self.mean**2, 0.0)), 0.0)


@dataclass(frozen=True, slots=True)
class Cycle:
    """The slots of an hour, a day or a week by number. `need`: of the slot that has not ended yet."""

    slots: Mapping[int, Slot] = field(default_factory=dict)
    number: int = -1
    need: float = 0.0

    def updated(self, number: int, need: float, decay: float) -> Cycle:
        if number == self.number:
            return self if need <= self.need else replace(self, need=need)
        if self.number < 0:  # the first one has begun before
            return Cycle(self.slots, number, need)
        ended = self.slots.get(self.number, Slot()).updated(self.need, decay)
        return Cycle({**self.slots, self.number: ended}, number, need)


@dataclass(frozen=True, slots=True)
class RecurringMemory:
    """What was learnt of a model's arrivals."""

    cycles: tuple[Cycle, ...] = (Cycle(),) * len(_CYCLES)
    #: The last second of the balancer's uptime whose arrivals were counted.
    second: int = -1

    def __post_init__(self) -> None:
        """Raises `ValueError` if it was saved by a version with other cycles."""
        if len(self.cycles) != len(_CYCLES):
            raise ValueError(f"{len(_CYCLES)} cycles are expected, not {len(self.cycles)}")


def update(memory: RecurringMemory, queue: Queue, scaling: Scaling, unix_s: float) -> RecurringMemory:
    """Return the memory with the arrivals since the last update."""
    settings = scaling.recurring_load
    known_to = memory.second if queue.uptime_s >= memory.second else -1
    end = int(queue.uptime_s)
    cycles = memory.cycles
    for second, need in _needs(queue, scaling, max(known_to, end - 2 * _WINDOWS_S[-1]), end):
        local_s = _local_s(unix_s - queue.uptime_s + second, settings.timezone)
        cycles = tuple(
            cycle.updated(_slot(local_s, length_s, slot_s), need, _decay(length_s, settings))
            for cycle, (length_s, slot_s) in zip(cycles, _CYCLES, strict=True)
        )
    return RecurringMemory(cycles, max(end - 1, known_to))


def floor(memory: RecurringMemory, settings: RecurringLoad, unix_s: float, ahead_s: float) -> int:
    """Return the least number of workers from now until `ahead_s` seconds later."""
    now_s, most = _local_s(unix_s, settings.timezone), 0.0
    for cycle, (length_s, slot_s) in zip(memory.cycles, _CYCLES, strict=True):
        for number in range(int(now_s // slot_s), int((now_s + ahead_s) // slot_s) + 1):
            slot = cycle.slots.get(number % int(length_s / slot_s))
            most = max(most, slot.sure if slot is not None else 0.0)
    return math.ceil(_PACKING * most)


def _needs(queue: Queue, scaling: Scaling, known_to: int, end: int) -> Iterator[tuple[int, float]]:
    """Yield each new second with the workers that its arrivals and those shortly before needed."""
    seconds = [bucket.second for bucket in queue.recent_arrivals]
    mean_s = queue.mean_work_s or 0.0
    works = [bucket.work_s or bucket.tasks * mean_s for bucket in queue.recent_arrivals]
    sums = [0.0, *accumulate(works)]
    for second in range(known_to + 1, end):
        until = bisect_left(seconds, second + 1)
        need = 0.0
        if sums[until]:
            for window_s in _WINDOWS_S:
                work_s = sums[until] - sums[bisect_left(seconds, second + 1 - window_s)]
                need = max(need, work_s / (queue.worker_speed * (window_s + scaling.slo.max_wait_s)))
        yield second, need


def _slot(local_s: float, length_s: float, slot_s: float) -> int:
    return int(local_s % length_s // slot_s)


def _decay(length_s: float, settings: RecurringLoad) -> float:
    return float(0.5 ** (length_s / (settings.half_life_days * _DAY_S)))


def _local_s(unix_s: float, timezone: str) -> float:
    """Return the seconds since the beginning of a Monday in local time."""
    offset = datetime.fromtimestamp(unix_s, ZoneInfo(timezone)).utcoffset()
    return unix_s - _FIRST_MONDAY_S + (offset.total_seconds() if offset is not None else 0.0)
