"""The exporter process: reads records from standard input, makes spans of them and sends them to the collector.

It is a process of its own with a low priority, so that encoding costs the balancer nothing, and a slow or unreachable
collector holds up nobody: while it does not read, the balancer drops records. It ends with its standard input.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import BinaryIO

import msgspec
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags

from configs.logs import configure_logging
from loadbalancer.tracing.records import TraceRecord
from loadbalancer.tracing.spans import FinishedSpan, spans_of
from loadbalancer.tracing.tracer import new_span_id

#: Length of a record, before each.
HEADER_BYTES = 4
_DEFAULT_SERVICE = "muster"
#: Least interval between two log lines about the collector.
_LOG_INTERVAL_S = 60.0
#: The lowest priority: on a machine without an idle core, requests come first and traces are dropped.
_NICE = 19
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_KINDS = {"server": SpanKind.SERVER, "internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT}
_SCOPE = InstrumentationScope("muster")
#: Spans that the processor's queue holds by default.
_QUEUE_SIZE = 2048


class RateFilter(logging.Filter):
    """Passes a line now and then: a collector that is away for a day is one line a minute."""

    def __init__(self, interval_s: float = _LOG_INTERVAL_S) -> None:
        super().__init__()
        self._interval_s = interval_s
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        del record
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + self._interval_s
        return True


def records(stream: BinaryIO) -> Iterator[TraceRecord]:
    """Yield the records until the end of the stream, or until one is incomplete."""
    decoder: msgspec.msgpack.Decoder[TraceRecord] = msgspec.msgpack.Decoder(TraceRecord)
    while len(header := stream.read(HEADER_BYTES)) == HEADER_BYTES:
        size = int.from_bytes(header)
        if len(body := stream.read(size)) < size:
            return
        yield decoder.decode(body)


def export(stream: BinaryIO, processor: SpanProcessor, resource: Resource, room: int) -> None:
    """Send the spans of all records. It reads on when fewer than `room` spans wait, so that none is dropped here."""
    waiting = 0
    for record in records(stream):
        spans = spans_of(record, new_span_id)
        for span in spans:
            processor.on_end(readable(span, resource))
        waiting += len(spans)
        if waiting >= room:
            processor.force_flush()
            waiting = 0


def readable(span: FinishedSpan, resource: Resource) -> ReadableSpan:
    """Return the span as the library exports it."""
    return ReadableSpan(
        span.name,
        _context(span.trace_id, span.span_id),
        _context(span.trace_id, span.parent_id) if span.parent_id else None,
        resource,
        span.attributes,
        [Event(each.name, dict(each.attributes), each.at_ns) for each in span.events],
        [Link(_context(span.trace_id, span.link_id))] if span.link_id else (),
        _KINDS[span.kind],
        status=Status(StatusCode.ERROR if span.is_error else StatusCode.UNSET),
        start_time=span.start_ns,
        end_time=span.end_ns,
        instrumentation_scope=_SCOPE,
    )


def _context(trace_id: str, span_id: str) -> SpanContext:
    return SpanContext(int(trace_id, 16), int(span_id, 16), is_remote=False, trace_flags=_SAMPLED)


def main() -> None:
    """Run until the end of standard input. Signals are for the balancer, which closes it."""
    for signum in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signum, signal.SIG_IGN)
    os.nice(_NICE)
    configure_logging("warning", as_json=sys.argv[1:] == ["json"], program="loadbalancer")
    for handler in logging.getLogger().handlers:
        handler.addFilter(RateFilter())
    resource = Resource.create()
    if resource.attributes.get(SERVICE_NAME, "").__str__().startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: _DEFAULT_SERVICE}))
    processor = BatchSpanProcessor(OTLPSpanExporter())
    room = int(os.environ.get("OTEL_BSP_MAX_QUEUE_SIZE", _QUEUE_SIZE)) // 2
    export(sys.stdin.buffer, processor, resource, room)
    processor.shutdown()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
