"""A histogram as plain counts, for the event loop only. Pure.

Those of prometheus_client take a lock per bucket, counter and sum, because threads may share them: together a tenth of
the time of a request.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate


class Histogram:
    """Counts values by the smallest bound that they do not exceed."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """`bounds` are in ascending order."""
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    @property
    def bounds(self) -> Sequence[float]:
        return self._bounds

    @property
    def sum(self) -> float:
        """The sum of all values."""
        return self._sum

    def cumulative(self) -> Iterator[int]:
        """Yield the number of values up to each bound, then the number of all values."""
        return accumulate(self._counts)


def bounds_with(bounds: Sequence[float], value: float) -> tuple[float, ...]:
    """Return the bounds with one more, so that the values up to it are counted exactly."""
    return tuple(sorted({*map(float, bounds), float(value)}))
