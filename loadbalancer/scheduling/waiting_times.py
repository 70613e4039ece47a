"""A histogram of waiting times, as counts by bucket. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

#: Upper bounds of waiting times in seconds; a last bucket takes what is longer.
WAIT_BOUNDS = (0.01, 0.03, 0.1, 0.2, 0.5, 1, 2, 3, 5, 8, 12, 20, 30, 45, 60, 120, 300, 600)
WAIT_BUCKETS = len(WAIT_BOUNDS) + 1


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
