"""The text of `/metrics`."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder


class MetricsExposition:
    """Encodes all metrics. Scrapes in the same turn of the event loop share a text: each takes milliseconds."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._registry = registry
        #: Texts of this turn by media type.
        self._texts: dict[str, bytes] = {}

    def encode(self, accept: str) -> tuple[bytes, str]:
        """Return the text in the format for the header Accept, and its media type. Called in the event loop."""
        encode, media_type = choose_encoder(accept)
        text = self._texts.get(media_type)
        if text is None:
            if not self._texts:
                asyncio.get_running_loop().call_soon(self._texts.clear)
            text = self._texts[media_type] = encode(self._registry)
        return text, media_type
