"""How often the metrics are encoded."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from loadbalancer.metrics.exposition import MetricsExposition

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


class Counting(Collector):
    """How often it was asked."""

    def __init__(self) -> None:
        self.times = 0

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        self.times += 1
        yield GaugeMetricFamily("times", "How often.", value=self.times)


async def test_scrapes_in_one_turn_share_a_text() -> None:
    counting, registry = Counting(), CollectorRegistry()
    registry.register(counting)
    exposition = MetricsExposition(registry)
    for turn in (1, 2, 3):
        texts = {exposition.encode("")[0] for _ in range(10)}
        assert len(texts) == 1
        assert b"times %d.0" % turn in texts.pop()
        await asyncio.sleep(0)


async def test_formats_are_kept_apart() -> None:
    exposition = MetricsExposition(CollectorRegistry())
    for accept, start in (("", "text/plain"), (OPEN_METRICS, "application/openmetrics-text"), ("", "text/plain")):
        text, media_type = exposition.encode(accept)
        assert media_type.startswith(start)
        assert (b"# EOF" in text) == (accept == OPEN_METRICS)
