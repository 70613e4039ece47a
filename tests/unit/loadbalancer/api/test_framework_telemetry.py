"""FastAPI writes no spans of its own, even where this process has a provider of them."""

from __future__ import annotations

import httpx
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from loadbalancer.access.api_keys import Authenticator
from loadbalancer.api.openapi import DocumentedApp


async def test_framework_writes_no_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    spans, provider = InMemorySpanExporter(), TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(spans))
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)
    app = DocumentedApp(Authenticator("t" * 64, True))

    @app.get("/")
    async def root() -> str:
        return "here"

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
        assert (await client.get("/")).is_success
    assert not spans.get_finished_spans()
