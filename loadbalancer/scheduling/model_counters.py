"""Counters of one model's arrivals, starts and completions. Pure."""

from __future__ import annotations

import math
from collections import deque
from typing import NamedTuple

from configs.scaling import Scaling
from loadbalancer.scheduling.cost_model import CostModel
from loadbalancer.scheduling.waiting_times import WaitingTimes
from wire.inputs import Shape
from wire.snapshot import ArrivalBucket

#: Rates are means over this many seconds.
WINDOW_S = 60.0
#: Number of arrivals that the mean work covers.
_MEAN_OVER_ARRIVALS = 200
#: Least time of which arrivals are reported by second.
_REPORTED_S = 120.0


class SlidingWindow:
    """Counts events and their work over the last `span_s` seconds, in buckets of one second, which bound its memory."""

    def __init__(self, span_s: float = WINDOW_S) -> None:
        self._span_s = span_s
        #: Second of the clock, events, their work in seconds, and the largest work of one.
        self._buckets: deque[list[float]] = deque(maxlen=int(span_s) + 2)
        self._latest: list[float] = [-math.inf, 0, 0.0, 0.0]

    def __repr__(self) -> str:
        return f"<SlidingWindow of {self._span_s:g} s, {len(self._buckets)} buckets>"

    def add(self, count: int, now: float, work_s: float = 0.0) -> None:
        """Count `count` events of so much work each."""
        second, latest = now // 1.0, self._latest
        if latest[0] == second:
            latest[1] += count
            latest[2] += count * work_s
            if work_s > latest[3]:
                latest[3] = work_s
        else:
            self._latest = [second, count, count * work_s, work_s]
            self._buckets.append(self._latest)

    def count(self, now: float, span_s: float | None = None) -> int:
        """Return the events of the last seconds, of all that are counted or of fewer, exact to a second."""
        after = now - (self._span_s if span_s is None else span_s)
        return int(sum(bucket[1] for bucket in self._buckets if bucket[0] > after))

    def rate(self, now: float, span_s: float | None = None) -> float:
        """Return the events per second."""
        return self.count(now, span_s) / (self._span_s if span_s is None else span_s)

    def arrivals(self, now: float, uptime_s: float, span_s: float) -> tuple[ArrivalBucket, ...]:
        """Return the last seconds one by one, as the seconds of the uptime in which all their events are past."""
        started = now - uptime_s
        return tuple(
            ArrivalBucket(math.ceil(second - started), int(count), round(work_s, 3), round(largest_s, 3))
            for second, count, work_s, largest_s in self._buckets
            if second > now - span_s
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
        self._config = config
        self._reported_s = max(_REPORTED_S, 2 * config.interval_s)
        spans = WINDOW_S, config.look_back_period_s, config.rate_window_s, self._reported_s
        self._arrivals, self._completions = SlidingWindow(max(spans)), SlidingWindow()
        #: Requested tasks, finished tasks, and generated tokens since the start.
        self.arrived_total = 0
        self.completed_total = 0
        self.tokens_total = 0
        #: Of the tasks that were started for the first time.
        self.waits = WaitingTimes(config.slo.max_wait_s)
        #: A worker has started the task for the first time, which has waited for so many seconds.
        self.on_start = self.waits.observe
        #: Tasks that another server was asked for, and those of them that it has not answered yet.
        self.proxied_total = 0
        self.proxied_in_flight = 0
        self._latest: deque[tuple[Shape, int]] = deque(maxlen=_MEAN_OVER_ARRIVALS)

    def on_arrival(self, shape: Shape, steps: int, count: int, now: float, work_s: float | None = None) -> None:
        """Count the arrival of `count` tasks of this shape in so many steps, and of so much work, each."""
        self._arrivals.add(count, now, work_s or 0.0)
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

    def on_complete(self, now: float) -> None:
        self._completions.add(1, now)
        self.completed_total += 1

    # ---- questions

    def arrival_rate(self, now: float) -> float:
        return self._arrivals.rate(now, WINDOW_S)

    def service_rate(self, now: float) -> float:
        return self._completions.rate(now)

    def arrivals_short_window(self, now: float) -> int:
        return self._arrivals.count(now, self._config.look_back_period_s)

    def arrivals_long_window(self, now: float) -> int:
        return self._arrivals.count(now, self._config.rate_window_s)

    def recent_arrivals(self, now: float, uptime_s: float) -> tuple[ArrivalBucket, ...]:
        return self._arrivals.arrivals(now, uptime_s, self._reported_s)

    def totals(self) -> Totals:
        return Totals((self.arrived_total, self.completed_total, self.tokens_total), self.waits.buckets())

    def mean_work_s(self, costs: CostModel) -> float | None:
        """Return the mean work of the latest tasks in seconds; None if unknown."""
        seconds = [costs.work_s(shape, steps) for shape, steps in self._latest]
        known = [each for each in seconds if each is not None]
        return sum(known) / len(known) if known and len(known) == len(seconds) else None
