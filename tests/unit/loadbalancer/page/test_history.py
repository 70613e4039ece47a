"""A day of a model's past, in bounded memory."""

from __future__ import annotations

import math
from bisect import bisect_left

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadbalancer.page.history import COUNTS, GAUGES, RESOLUTIONS, ModelHistory, Sample
from loadbalancer.scheduling.waiting_times import WAIT_BOUNDS, WAIT_BUCKETS, percentile

NO_WAITS = [0.0] * WAIT_BUCKETS


def sample(queued: float = 0.0, arrived: float = 0.0, waits: list[float] | None = None) -> Sample:
    return Sample([queued, *[0.0] * (len(GAUGES) - 1)], [arrived, *[0.0] * (len(COUNTS) - 1)], waits or NO_WAITS)


@pytest.mark.parametrize(("span_s", "step_s"), [(60, 1), (600, 1), (601, 10), (7200, 10), (7201, 60), (86_400, 60)])
def test_longer_spans_are_coarser(span_s: int, step_s: int) -> None:
    history = ModelHistory()
    for second in range(1, 200):
        history.add(second, sample(queued=second, arrived=1))
    points = history.points(span_s, 199)
    assert points.step_s == step_s
    assert sum(points.columns["arrived"]) == pytest.approx(199 if span_s >= 600 else 60)  # type: ignore[arg-type]


def test_gauges_are_averaged_and_counts_added() -> None:
    history = ModelHistory()
    for second, queued in [(1200, 2.0), (1201, 4.0), (1209, math.nan)]:
        history.add(second, sample(queued=queued, arrived=5))
    points = history.points(7200, 1209)
    assert points.times == [1200]
    assert points.columns["queued"] == [3.0], "an unknown value does not count"
    assert points.columns["arrived"] == [15.0]


def test_unknown_values_and_repeated_seconds() -> None:
    history = ModelHistory()
    history.add(10, sample(queued=math.nan))
    history.add(10, sample(queued=5.0))
    history.add(9, sample(queued=5.0))
    assert history.points(600, 10).columns["queued"] == [None]


@pytest.mark.parametrize(("back_s", "times"), [(60, [100_000]), (61, [99_939]), (86_400, [13_600])])
def test_past_begins_anew_where_the_clock_is_set_back(back_s: int, times: list[int]) -> None:
    history = ModelHistory()
    for second in (100_000, 100_000 - back_s):
        history.add(second, sample(queued=1.0))
    assert history.points(600, 100_000 - back_s).times == times


def test_only_the_newest_points_remain() -> None:
    history, (step_s, length) = ModelHistory(), RESOLUTIONS[0]
    for second in range(1, 3 * length):
        history.add(second, sample(queued=second))
    points = history.points(step_s * length, 3 * length - 1)
    assert points.times == list(range(2 * length, 3 * length))
    assert points.columns["queued"] == [float(second) for second in points.times]


@example(waits=[0.015625], share=0.015625)
@example(waits=[0.0, 1.0], share=0.5000000000000001)
@given(waits=st.lists(st.floats(0, 1000), min_size=1, max_size=200), share=st.floats(0.01, 1))
def test_percentiles_are_exact_to_a_bucket(waits: list[float], share: float) -> None:
    counts = [0.0] * WAIT_BUCKETS
    for wait in waits:
        counts[bisect_left(WAIT_BOUNDS, wait)] += 1
    exact = sorted(waits)[max(math.ceil(share * len(waits)) - 1, 0)]
    found = percentile(counts, share)
    assert found is not None
    assert bisect_left(WAIT_BOUNDS, found) in (
        bisect_left(WAIT_BOUNDS, exact),
        len(WAIT_BOUNDS) - 1 if exact > WAIT_BOUNDS[-1] else -1,
    )


def test_no_tasks_have_no_percentile() -> None:
    assert percentile(NO_WAITS, 0.99) is None
