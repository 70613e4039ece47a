"""Counters of one model's arrivals, starts and completions. Pure."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from configs.scaling import Scaling
from loadbalancer.scheduling.cost_model import CostModel
from loadbalancer.scheduling.waiting_times import WAIT_BUCKETS, wait_bucket
from wire.inputs import Shape
from wire.snapshot import ArrivalBucket

#: Rates are means over this many seconds.
WINDOW_S = 60.0
#: Number of arrivals that the mean work covers.
_MEAN_OVER_ARRIVALS = 200
#: Least time of which arrivals are reported by second.
_REPORTED_S = 120.0


class SlidingWindow:
    """Counts events over the last `span_s` seconds, in buckets of one second, which bound its memory."""

    def __init__(self, span_s: float = WINDOW_S) -> None:
        self._span_s = span_s
        self._buckets: deque[list[float]] = deque(maxlen=int(span_s) + 2)

    def __repr__(self) -> str:
        return f"<SlidingWindow of {self._span_s:g} s, {len(self._buckets)} buckets>"

    def add(self, count: int, now: float) -> None:
        second = now // 1.0
        if self._buckets and self._buckets[-1][0] == second:
            self._buckets[-1][1] += count
        else:
            self._buckets.append([second, count])

    def count(self, now: float) -> int:
        """Return the events of the last `span_s` seconds, exact to a second."""
        return int(sum(count for second, count in self._buckets if second > now - self._span_s))

    def rate(self, now: float) -> float:
        return self.count(now) / self._span_s


class ArrivalHistory:
    """The arrivals of the last `span_s` seconds by second, with their work."""

    def __init__(self, span_s: float) -> None:
        self._span_s = span_s
        #: With seconds of the clock.
        self._buckets: deque[ArrivalBucket] = deque(maxlen=int(span_s) + 2)

    def add(self, count: int, work_s: float, now: float) -> None:
        """Count `count` tasks of so much work each; 0 if it is unknown."""
        second, total_s = int(now), count * work_s
        if self._buckets and self._buckets[-1].second == second:
            last = self._buckets.pop()
            count, total_s, work_s = last.tasks + count, last.work_s + total_s, max(last.largest_s, work_s)
        self._buckets.append(ArrivalBucket(second, count, total_s, work_s))

    def buckets(self, now: float, uptime_s: float) -> tuple[ArrivalBucket, ...]:
        """Return the buckets, with the seconds of the uptime in which all their arrivals are past."""
        started = now - uptime_s
        return tuple(
            ArrivalBucket(math.ceil(one.second - started), one.tasks, round(one.work_s, 3), round(one.largest_s, 3))
            for one in self._buckets
            if one.second > now - self._span_s
        )


class Totals(NamedTuple):
    """Counts since the start."""

    #: Requested tasks, finished tasks, and generated tokens.
    counts: tuple[int, int, int]
    #: Started tasks by waiting time, see `waiting_times`.
    waits: tuple[int, ...]


class ModelCounters:
    """Counters of one model, over the periods of its scaling configuration."""

    def __init__(self, config: Scaling) -> None:
        self._max_wait_s = config.slo.max_wait_s
        self.completions = SlidingWindow()
        self.arrivals = SlidingWindow()
        self.arrivals_short_window = SlidingWindow(config.look_back_period_s)
        self.arrivals_long_window = SlidingWindow(config.rate_window_s)
        self.recent_arrivals = ArrivalHistory(max(_REPORTED_S, 2 * config.interval_s))
        #: Tasks started for the first time, and those of them that had waited longer than `slo.max_wait_s`.
        self.started_total = 0
        self.started_late_total = 0
        #: Requested tasks, finished tasks, and generated tokens since the start.
        self.arrived_total = 0
        self.completed_total = 0
        self.tokens_total = 0
        #: Started tasks by waiting time, see `waiting_times`.
        self.waits = [0] * WAIT_BUCKETS
        #: Tasks that another server was asked for, and those of them that it has not answered yet.
        self.proxied_total = 0
        self.proxied_in_flight = 0
        self._latest: deque[tuple[Shape, int]] = deque(maxlen=_MEAN_OVER_ARRIVALS)

    def on_arrival(self, shape: Shape, steps: int, count: int, now: float, work_s: float | None = None) -> None:
        """Count the arrival of `count` tasks of this shape in so many steps, and of so much work, each."""
        self.recent_arrivals.add(count, work_s or 0.0, now)
        for window in (self.arrivals, self.arrivals_short_window, self.arrivals_long_window):
            window.add(count, now)
        self.arrived_total += count
        if count == 1:
            self._latest.append((shape, steps))
        else:
            self._latest.extend([(shape, steps)] * min(count, _MEAN_OVER_ARRIVALS))

    def on_proxied(self, shape: Shape, steps: int, count: int, now: float, work_s: float | None = None) -> None:
        self.on_arrival(shape, steps, count, now, work_s)
        self.proxied_total += count
        self.proxied_in_flight += count

    def on_proxy_finished(self, count: int) -> None:
        self.proxied_in_flight -= count

    def on_start(self, waited_s: float) -> None:
        self.started_total += 1
        self.waits[wait_bucket(waited_s)] += 1
        self.started_late_total += waited_s > self._max_wait_s

    def totals(self) -> Totals:
        return Totals((self.arrived_total, self.completed_total, self.tokens_total), tuple(self.waits))

    def on_complete(self, now: float) -> None:
        self.completions.add(1, now)
        self.completed_total += 1

    def mean_work_s(self, costs: CostModel) -> float | None:
        """Return the mean work of the latest tasks in seconds; None if unknown."""
        seconds = [costs.work_s(shape, steps) for shape, steps in self._latest]
        known = [each for each in seconds if each is not None]
        return sum(known) / len(known) if known and len(known) == len(seconds) else None
