"""Exports histograms of the event loop, which also answers the scrapes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from loadbalancer.scheduling.histogram import Histogram


def add_histogram(family: HistogramMetricFamily, labels: Sequence[str], histogram: Histogram) -> None:
    """Add the samples of a histogram to those of the family."""
    names = [*map(floatToGoString, histogram.bounds), "+Inf"]
    family.add_metric(labels, list(zip(names, histogram.cumulative(), strict=True)), histogram.sum)


class HistogramCollector(Collector):
    """One metric family with a histogram for each value of its label."""

    def __init__(self, name: str, text: str, label: str, bounds: Sequence[float]) -> None:
        self._name, self._text, self._label = name, text, label
        self._bounds = tuple(bounds)
        self._histograms: dict[str, Histogram] = {}

    def of(self, label: str) -> Histogram:
        """Return the histogram of this label, which is one of a few."""
        found = self._histograms.get(label)
        if found is None:
            found = self._histograms[label] = Histogram(self._bounds)
        return found

    def describe(self) -> Iterator[Metric]:
        """Return nothing, so that the registration needs no values."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        family = HistogramMetricFamily(self._name, self._text, labels=(self._label,))
        for label, histogram in self._histograms.items():
            add_histogram(family, (label,), histogram)
        yield family
