"""Histograms and counters of requests, at the cost of two additions each.

Those of prometheus_client take a lock per bucket, counter and sum, because threads may share them: together a tenth of
the time of a request. These belong to the event loop, which also answers the scrapes.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString


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

    def add_to(self, family: HistogramMetricFamily, labels: Sequence[str]) -> None:
        """Add its samples to those of the family."""
        names = [*map(floatToGoString, self._bounds), "+Inf"]
        family.add_metric(labels, list(zip(names, accumulate(self._counts), strict=True)), self._sum)


class HistogramCollector(Collector):
    """One metric family with a histogram for each value of its label."""

    def __init__(self, name: str, text: str, label: str, bounds: Sequence[float]) -> None:
        self._name, self._text, self._label = name, text, label
        self._bounds = tuple(bounds)
        self._histograms: dict[str, Histogram] = {}

    def observe(self, label: str, value: float) -> None:
        """Count a value. `label` is one of a few."""
        found = self._histograms.get(label)
        if found is None:
            found = self._histograms[label] = Histogram(self._bounds)
        found.observe(value)

    def describe(self) -> Iterator[Metric]:
        """Return nothing, so that the registration needs no values."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        family = HistogramMetricFamily(self._name, self._text, labels=(self._label,))
        for label, histogram in self._histograms.items():
            histogram.add_to(family, (label,))
        yield family
