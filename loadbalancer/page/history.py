"""What the page shows of the past: a day in bounded memory, at falling resolution. Pure.

The last ten minutes are kept by the second, two hours by ten seconds, and a day by the minute. Gauges are averaged
within a point, counts are added up, and so are the counts of a histogram, of which percentiles stay exact to a bucket.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Sequence
from typing import NamedTuple

from loadbalancer.scheduling.waiting_times import WAIT_BUCKETS, percentile

#: Seconds of a point, and number of points.
RESOLUTIONS: tuple[tuple[int, int], ...] = ((1, 600), (10, 720), (60, 1440))
GAUGES = ("queued", "running", "work_s", "desired", "ready", "starting")
COUNTS = ("arrived", "completed", "tokens")
_COLUMNS = len(GAUGES) + len(COUNTS) + WAIT_BUCKETS
_UNKNOWN = math.nan
#: If the clock is set back by more seconds, what is kept lies in the future, and is forgotten.
_MAX_SET_BACK_S = 60


class Sample(NamedTuple):
    """One model in one second. Values of `gauges` may be NaN: unknown."""

    gauges: Sequence[float]
    #: Since the sample before.
    counts: Sequence[float]
    #: Tasks started since the sample before, by waiting time.
    waits: Sequence[float]


class Points(NamedTuple):
    """A model's past, oldest first: the times of the points, and one column for each name."""

    step_s: int
    times: list[int]
    columns: dict[str, list[float | None]]


class ModelHistory:
    """The past of one model."""

    def __init__(self) -> None:
        self._rings = _new_rings()

    def add(self, second: int, sample: Sample) -> None:
        """Add the sample of this second, in Unix time.

        A second that is not later than the last one is ignored, unless the clock was set back by more than a minute.
        """
        if second < self._rings[0].last - _MAX_SET_BACK_S:
            self._rings = _new_rings()
        if second > self._rings[0].last:
            row = [*sample.gauges, *sample.counts, *sample.waits]
            for ring in self._rings:
                ring.add(second, row)

    def latest(self) -> Points:
        """Return the newest second."""
        last = self._rings[0].last
        return self.points(RESOLUTIONS[0][0], last)

    def points(self, span_s: int, now: int) -> Points:
        """Return the last `span_s` seconds in the finest resolution that reaches so far back."""
        ring = next((ring for ring in self._rings if ring.step_s * ring.length >= span_s), self._rings[-1])
        times, rows = ring.since(now - span_s)
        columns: dict[str, list[float | None]] = {}
        for at, name in enumerate(GAUGES + COUNTS):
            columns[name] = [None if math.isnan(row[at]) else round(row[at], 3) for row in rows]
        first = len(GAUGES) + len(COUNTS)
        for name, share in (("wait_p50", 0.5), ("wait_p99", 0.99)):
            columns[name] = [percentile(row[first:], share) for row in rows]
        return Points(ring.step_s, times, columns)


class _Ring:
    """The newest points of one resolution. The last one may still grow."""

    def __init__(self, step_s: int, length: int) -> None:
        self.step_s, self.length = step_s, length
        self.last = -1
        self._times = array("q", bytes(8 * length))
        self._values = array("f", bytes(4 * length * _COLUMNS))
        self._count = 0
        #: Samples in the point that grows, by gauge.
        self._known = [0] * len(GAUGES)

    def add(self, second: int, row: Sequence[float]) -> None:
        start = second - second % self.step_s
        self.last = second
        at = (self._count - 1) % self.length
        if not self._count or self._times[at] != start:
            at = self._count % self.length
            self._count += 1
            self._times[at] = start
            self._known = [0] * len(GAUGES)
            for column in range(_COLUMNS):
                self._values[at * _COLUMNS + column] = _UNKNOWN if column < len(GAUGES) else 0.0
        for column, value in enumerate(row):
            place = at * _COLUMNS + column
            if column >= len(GAUGES):
                self._values[place] += value
            elif not math.isnan(value):
                self._known[column] += 1
                before = self._values[place] if self._known[column] > 1 else 0.0
                self._values[place] = before + (value - before) / self._known[column]

    def since(self, after: int) -> tuple[list[int], list[Sequence[float]]]:
        """Return the points that begin after this time."""
        places = [number % self.length for number in range(max(self._count - self.length, 0), self._count)]
        found = [at for at in places if self._times[at] > after]
        rows: list[Sequence[float]] = [self._values[at * _COLUMNS : (at + 1) * _COLUMNS] for at in found]
        return [self._times[at] for at in found], rows


def _new_rings() -> list[_Ring]:
    return [_Ring(step_s, length) for step_s, length in RESOLUTIONS]
