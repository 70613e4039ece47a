"""Histograms count what a look at all values would count, whenever they are folded."""

from __future__ import annotations

from bisect import bisect_left
from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.scheduling.histogram import Histogram, merged
from loadbalancer.scheduling.waiting_times import WAIT_BOUNDS, WaitingTimes

BOUNDS = (0.25, 1.0, 4.0, 16.0)
#: Their sums are exact, in whatever order they are added. None stands for a fold.
VALUES = st.lists(st.none() | st.integers(0, 20 << 4).map(lambda number: number / 16), max_size=40)


def filled(histogram: Histogram, values: list[float | None]) -> list[float]:
    """Observe the values; return them without the folds."""
    for value in values:
        if value is None:
            histogram.fold()
        else:
            histogram.observe(value)
    return [value for value in values if value is not None]


def expected(values: list[float], bounds: tuple[float, ...]) -> list[int]:
    counts = [0] * (len(bounds) + 1)
    for value in values:
        counts[bisect_left(bounds, value)] += 1
    return list(accumulate(counts))


@given(VALUES, VALUES)
def test_counts_and_sums(one: list[float | None], other: list[float | None]) -> None:
    first, second = Histogram(BOUNDS), Histogram(BOUNDS)
    values, more = filled(first, one), filled(second, other)
    both, few = first.plus(second), first.coarser((1.0, 16.0))
    assert (list(first.cumulative()), first.sum, first.count) == (expected(values, BOUNDS), sum(values), len(values))
    assert (list(both.cumulative()), both.sum) == (expected(values + more, BOUNDS), sum(values + more))
    assert (list(few.cumulative()), few.sum) == (expected(values, (1.0, 16.0)), sum(values))


@given(VALUES, st.sampled_from([0.5, 2.0, 10.0]))
def test_waits_by_the_promise_and_by_bucket(observed: list[float | None], max_wait_s: float) -> None:
    waits = WaitingTimes(max_wait_s)
    values = filled(waits, observed)
    assert waits.in_time == sum(value <= max_wait_s for value in values)
    assert list(accumulate(waits.buckets())) == expected(values, merged(WAIT_BOUNDS))
    exported = waits.exported()
    assert list(exported.cumulative()) == expected(values, tuple(exported.bounds))
    assert max_wait_s in exported.bounds
