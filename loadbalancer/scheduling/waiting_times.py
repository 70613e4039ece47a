"""Histograms of waiting times. Pure."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from loadbalancer.scheduling.histogram import SECONDS, Histogram, merged

#: Upper bounds of waiting times in seconds; a last bucket takes what is longer.
WAIT_BOUNDS = (0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 45, 60, 120, 300, 600)
WAIT_BUCKETS = len(WAIT_BOUNDS) + 1


class WaitingTimes(Histogram):
    """The waits of tasks for their first step. The promise `slo.max_wait_s` is a bound of its own."""

    __slots__ = ("max_wait_s",)

    def __init__(self, max_wait_s: float) -> None:
        super().__init__(merged(SECONDS, WAIT_BOUNDS, (max_wait_s,)))
        self.max_wait_s = max_wait_s

    @property
    def in_time(self) -> int:
        """The number of tasks that have kept the promise."""
        return self.coarser((self.max_wait_s,)).cumulative()[0]

    def exported(self) -> Histogram:
        """Return the histogram for `/metrics`."""
        return self.coarser(merged(SECONDS, (self.max_wait_s,)))

    def buckets(self) -> tuple[int, ...]:
        """Return the number of tasks in each bucket of `WAIT_BOUNDS`."""
        cumulative = self.coarser(WAIT_BOUNDS).cumulative()
        return tuple(up_to - below for below, up_to in itertools.pairwise((0, *cumulative)))


def percentile(counts: Sequence[float], share: float) -> float | None:
    """Return the waiting time that this share of the tasks did not exceed, interpolated; None without tasks.

    What is in the last bucket counts as its lower bound.
    """
    total = sum(counts)
    if total <= 0:
        return None
    left = share * total
    for bucket, count in enumerate(counts):
        if count and left <= count:
            lower = WAIT_BOUNDS[bucket - 1] if bucket else 0.0
            upper = WAIT_BOUNDS[bucket] if bucket < len(WAIT_BOUNDS) else lower
            exact = lower + (upper - lower) * left / count
            # A bucket does not hold its lower bound.
            return next((value for value in (round(exact, 3), exact) if value > lower), math.nextafter(lower, upper))
        left -= count
    return WAIT_BOUNDS[-1]
