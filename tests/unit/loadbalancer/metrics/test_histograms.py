"""Histograms have the samples that those of prometheus_client have."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest

from loadbalancer.metrics.histograms import HistogramCollector
from loadbalancer.metrics.requests import RouteMetrics
from loadbalancer.metrics.texts import TextMetrics
from loadbalancer.scheduling.histogram import FOLD_EVERY

BOUNDS = (0.015625, 0.5, 1, 2.5, 600)
#: Their sums are exact, in whatever order they are added.
VALUES = st.integers(-(10 << 10), 1000 << 10).map(lambda number: number / 1024) | st.sampled_from(
    [0.0, 0.015625, 0.015625 + 2**-20, 0.5, 1.0, 2.5, 600.0, 601.0, -1.0]
)


@given(st.lists(st.tuples(st.sampled_from("ab"), VALUES), max_size=30))
def test_samples_are_those_of_the_library(observed: list[tuple[str, float]]) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    collector = HistogramCollector("seconds", "Some seconds.", "route", BOUNDS)
    ours.register(collector)
    expected = Histogram("seconds", "Some seconds.", ("route",), registry=theirs, buckets=BOUNDS)
    for label, value in observed:
        collector.of(label).observe(value)
        expected.labels(label).observe(value)
    found = generate_latest(ours).decode().splitlines()
    assert found == [line for line in generate_latest(theirs).decode().splitlines() if "_created" not in line]


def test_a_value_on_a_bound_is_within_it() -> None:
    registry = CollectorRegistry()
    collector = HistogramCollector("seconds", "Some seconds.", "route", BOUNDS)
    registry.register(collector)
    collector.of("a").observe(0.5)
    for bound, count in (("0.015625", 0), ("0.5", 1), ("1.0", 1), ("+Inf", 1)):
        assert registry.get_sample_value("seconds_bucket", {"route": "a", "le": bound}) == count
    assert registry.get_sample_value("seconds_sum", {"route": "a"}) == pytest.approx(0.5)


def test_uncounted_values_are_few() -> None:
    route, texts = RouteMetrics(), TextMetrics(CollectorRegistry()).model("m")
    for _ in range(3 * FOLD_EVERY + 1):
        route.record(200, 0.5)
        texts.first_token(0.5)
        texts.ended(prompt=5, cached=2, generated=4, per_token_s=0.1)
    assert all(len(each._new) < FOLD_EVERY for each in (route.seconds, texts._first_token, texts._per_token))
    assert route.counts[200] == route.seconds.count == texts._per_token.count
    assert [tokens // route.counts[200] for tokens in texts.tokens.values()] == [3, 2, 4]
