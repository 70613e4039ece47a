"""The text of `/metrics`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

#: Samples that are encoded at a time: a few milliseconds. A thousand workers have tens of thousands.
_SAMPLES_PER_TURN = 400
_END = b"# EOF\n"


class MetricsExposition:
    """Encodes all metrics, a part in each turn of the event loop. Scrapes at the same time share a text."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        #: Texts that are being made, by media type.
        self._running: dict[str, asyncio.Task[bytes]] = {}

    async def encode(self, accept: str) -> tuple[bytes, str]:
        """Return the text in the format for the header Accept, and its media type."""
        encode, media_type = choose_encoder(accept)
        running = self._running.get(media_type)
        if running is None:
            running = self._running[media_type] = asyncio.create_task(self._encode(encode))
            running.add_done_callback(lambda _: self._running.pop(media_type))
        # A client that leaves takes nothing from the others.
        return await asyncio.shield(running), media_type

    async def _encode(self, encode: Callable[[Collector], bytes]) -> bytes:
        text = bytearray()
        for metric in self._registry.collect():
            for index, part in enumerate(_parts(metric)):
                encoded = encode(part).removesuffix(_END)
                text += _without_head(encoded) if index else encoded
                await asyncio.sleep(0)
        # What a registry without metrics gives: the end, in the format that has one.
        text += encode(CollectorRegistry())
        return bytes(text)


class _Part(Collector):
    """Some samples of one family."""

    def __init__(self, metric: Metric) -> None:
        self._metric = metric

    def collect(self) -> Iterator[Metric]:
        """Yield the family."""
        yield self._metric


def _parts(metric: Metric) -> Iterator[_Part]:
    samples = metric.samples
    if len(samples) <= _SAMPLES_PER_TURN:
        yield _Part(metric)
        return
    for start in range(0, len(samples), _SAMPLES_PER_TURN):
        part = Metric(metric.name, metric.documentation, metric.type, metric.unit)
        part.samples = samples[start : start + _SAMPLES_PER_TURN]
        yield _Part(part)


def _without_head(text: bytes) -> bytes:
    """Return the lines after those that describe the family, which the first part has."""
    while text.startswith(b"# "):
        text = text.partition(b"\n")[2]
    return text
