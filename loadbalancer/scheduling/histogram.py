"""Histograms of the event loop, which also answers the scrapes. Pure."""

from __future__ import annotations

import operator
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence

#: Upper bounds of waiting and running times in seconds.
SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 20, 30, 60, 120, 300, 600)
#: The owner of a histogram folds it after so many values, so that the new ones take little memory.
FOLD_EVERY = 1000


class Histogram:
    """Counts values by the smallest bound that they do not exceed. For the event loop only.

    A new value is appended to a list, which takes a fifth of the time of a method. Many are counted at once: by `fold`,
    and before the counts are read. Those of prometheus_client take a lock per bucket, counter and sum.
    """

    __slots__ = ("_bounds", "_counts", "_new", "_sum", "observe")

    def __init__(self, bounds: Iterable[float]) -> None:
        """`bounds` are in ascending order."""
        self._bounds = tuple(map(float, bounds))  # a float is compared with an integer slowly
        #: Values up to each bound.
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0
        self._new: list[float] = []
        #: Add a value.
        self.observe: Callable[[float], object] = self._new.append

    def fold(self) -> None:
        """Count the new values."""
        new = self._new
        if new:
            new.sort()
            below = [*(bisect_right(new, bound) for bound in self._bounds), len(new)]
            self._counts = [*map(operator.add, self._counts, below)]
            self._sum += sum(new)
            new.clear()

    def coarser(self, bounds: Iterable[float]) -> Histogram:
        """Return the histogram of the same values by some of its bounds."""
        self.fold()
        found = Histogram(bounds)
        found._counts = [self._counts[self._bounds.index(bound)] for bound in found._bounds] + self._counts[-1:]
        found._sum = self._sum
        return found

    def plus(self, other: Histogram) -> Histogram:
        """Return the histogram of both, which have the same bounds."""
        self.fold()
        found = Histogram(self._bounds)
        found._counts = [*map(operator.add, self._counts, other.cumulative())]
        found._sum = self._sum + other.sum
        return found

    @property
    def bounds(self) -> Sequence[float]:
        return self._bounds

    @property
    def count(self) -> int:
        """The number of all values."""
        return self.cumulative()[-1]

    @property
    def sum(self) -> float:
        """The sum of all values."""
        self.fold()
        return self._sum

    def cumulative(self) -> Sequence[int]:
        """Return the number of values up to each bound, then the number of all values."""
        self.fold()
        return self._counts


def merged(*bounds: Iterable[float]) -> tuple[float, ...]:
    """Return all these bounds in ascending order."""
    return tuple(sorted({float(bound) for each in bounds for bound in each}))
