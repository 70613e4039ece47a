"""How often the metrics are encoded, and that parts make the text of the whole."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.exposition import choose_encoder
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


class Large(Collector):
    """Families of a server with many workers."""

    def collect(self) -> Iterator[Metric]:
        for family in (
            GaugeMetricFamily("tasks", "Tasks.", labels=["w"]),
            CounterMetricFamily("done", "D.", labels="w"),
        ):
            for worker in range(1300):
                family.add_metric([f'"{worker}\n'], worker)
            yield family


async def test_scrapes_at_the_same_time_share_a_text() -> None:
    counting, registry = Counting(), CollectorRegistry()
    registry.register(counting)
    exposition = MetricsExposition(registry)
    for time in (1, 2, 3):
        texts = {text for text, _ in await asyncio.gather(*(exposition.encode("") for _ in range(10)))}
        assert len(texts) == 1
        assert b"times %d.0" % time in texts.pop()


async def test_client_that_leaves_takes_nothing_from_others() -> None:
    registry = CollectorRegistry()
    registry.register(Large())
    exposition = MetricsExposition(registry)
    first, second = (asyncio.create_task(exposition.encode("")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert b"done_total" in (await second)[0]
    with pytest.raises(asyncio.CancelledError):
        await first


async def test_formats_are_kept_apart() -> None:
    exposition = MetricsExposition(CollectorRegistry())
    for accept, start in (("", "text/plain"), (OPEN_METRICS, "application/openmetrics-text"), ("", "text/plain")):
        text, media_type = await exposition.encode(accept)
        assert media_type.startswith(start)
        assert (b"# EOF" in text) == (accept == OPEN_METRICS)


@pytest.mark.parametrize("accept", ["", OPEN_METRICS])
async def test_parts_make_the_text_of_the_whole(accept: str) -> None:
    registry = CollectorRegistry()
    registry.register(Large())
    encode, _ = choose_encoder(accept)
    assert (await MetricsExposition(registry).encode(accept))[0] == encode(registry)


async def test_other_work_goes_on_while_many_samples_are_encoded() -> None:
    registry = CollectorRegistry()
    registry.register(Large())
    scrape, turns = asyncio.create_task(MetricsExposition(registry).encode("")), 0
    while not scrape.done():
        turns += 1
        await asyncio.sleep(0)
    assert turns > 2 * 1300 / 400
