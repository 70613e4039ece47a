"""A collector of traces in the test's process: OTLP over HTTP on loopback. It also takes webhooks and keeps headers."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from scripts.harness.processes import wait_until


class ReceivedSpan(NamedTuple):
    """A span as the collector sees it. Ids are hexadecimal digits, times Unix nanoseconds."""

    name: str
    kind: int
    trace: str
    id: str
    parent: str
    start: int
    end: int
    attributes: Mapping[str, Any]
    events: list[str]
    links: list[str]
    is_error: bool


class OtlpReceiver:
    """What has been received so far."""

    def __init__(self) -> None:
        self.spans: list[ReceivedSpan] = []
        self.services: set[str] = set()
        #: Headers of other requests, by path.
        self.headers: dict[str, Mapping[str, str]] = {}
        self.port = 0

    def trace(self, trace: str, *names: str) -> list[ReceivedSpan]:
        """Return the spans of a trace by their start, once there are these at least."""

        def is_complete() -> bool:
            found = [span.name for span in self.spans if span.trace == trace]
            return all(found.count(name) >= names.count(name) for name in names)

        wait_until(is_complete, f"the spans {names} of {trace}")
        return sorted((span for span in self.spans if span.trace == trace), key=lambda span: (span.start, -span.end))

    def add(self, body: bytes) -> None:
        for group in ExportTraceServiceRequest.FromString(body).resource_spans:
            self.services |= {str(_values(group.resource.attributes).get("service.name"))}
            self.spans += [
                ReceivedSpan(
                    span.name,
                    span.kind,
                    span.trace_id.hex(),
                    span.span_id.hex(),
                    span.parent_span_id.hex(),
                    span.start_time_unix_nano,
                    span.end_time_unix_nano,
                    _values(span.attributes),
                    [event.name for event in span.events],
                    [link.span_id.hex() for link in span.links],
                    span.status.code == span.status.STATUS_CODE_ERROR,
                )
                for scope in group.scope_spans
                for span in scope.spans
            ]


def _values(attributes: Any) -> dict[str, Any]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in attributes}


@contextlib.contextmanager
def otlp_receiver() -> Iterator[OtlpReceiver]:
    received = OtlpReceiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            if self.path == "/v1/traces":
                received.add(body)
            else:
                received.headers[self.path] = {name.lower(): value for name, value in self.headers.items()}
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        received.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield received
        finally:
            server.shutdown()
            thread.join()
