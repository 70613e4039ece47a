"""A metric from counters that others keep."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class CountCollector(Collector):
    """One family with a sample per name: the sums of its sources, which are asked at each scrape."""

    def __init__(
        self, family: type[GaugeMetricFamily] | type[CounterMetricFamily], name: str, text: str, label: str
    ) -> None:
        self._family = family
        self._name, self._text, self._label = name, text, label
        self._sources: list[Callable[[], Mapping[str, int]]] = []

    def add(self, source: Callable[[], Mapping[str, int]]) -> None:
        """Report these counts too."""
        self._sources.append(source)

    def describe(self) -> Iterator[Metric]:
        """Nothing: names are checked at the first scrape, so that registering asks no source."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The family; a count of 0 is reported as well."""
        counts: Counter[str] = Counter()
        for source in self._sources:
            counts.update(source())
        family = self._family(self._name, self._text, labels=(self._label,))
        for name, count in sorted(counts.items()):
            family.add_metric((name,), count)
        yield family
