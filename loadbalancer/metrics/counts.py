"""Counters: those of other components, read at each scrape, and those that count here."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector


class CountCollector(Collector):
    """One metric family with a sample per name: the sum over all sources, read at each scrape."""

    def __init__(
        self, family: type[GaugeMetricFamily] | type[CounterMetricFamily], name: str, text: str, label: str
    ) -> None:
        self._family = family
        self._name, self._text, self._label = name, text, label
        self._sources: list[Callable[[], Mapping[str, int]]] = []

    def add(self, source: Callable[[], Mapping[str, int]]) -> None:
        """Add a source of counts."""
        self._sources.append(source)

    def describe(self) -> Iterator[Metric]:
        """Return nothing, so that the registration does not read the sources."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the family, including counts of 0."""
        counts: Counter[str] = Counter()
        for source in self._sources:
            counts.update(source())
        family = self._family(self._name, self._text, labels=(self._label,))
        for name, count in sorted(counts.items()):
            family.add_metric((name,), count)
        yield family


class CounterCollector(Collector):
    """One counter family. `add` counts in the event loop; the values of labels must be few."""

    def __init__(self, name: str, text: str, labels: Sequence[str]) -> None:
        self._name, self._text, self._labels = name, text, labels
        self._counts: defaultdict[tuple[str | int, ...], float] = defaultdict(float)

    def add(self, *values: str | int, count: float = 1) -> None:
        """Count something with these values of the labels."""
        self._counts[values] += count

    def describe(self) -> Iterator[Metric]:
        """Return nothing, so that the registration needs no values."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        family = CounterMetricFamily(self._name, self._text, labels=self._labels)
        for values, count in self._counts.items():
            family.add_metric([*map(str, values)], count)
        yield family
