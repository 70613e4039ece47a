"""What is recorded of each request: its id, and its trace and its line in the access log, where these are on."""

from __future__ import annotations

import itertools
import os
import time

from loadbalancer.api.request_head import RequestHead
from loadbalancer.context.request_context import RequestContext
from loadbalancer.context.trace_context import parse_traceparent
from loadbalancer.metrics.access_log import AccessLog
from loadbalancer.tracing.tracer import Tracer

#: Paths of the controller, which asks every second.
_INTERNAL = "/internal/"
#: Ids of requests are 32 hexadecimal digits: those of this process, and a number. They are unique, and no secret.
_id_prefix = os.urandom(12).hex()
_id_numbers = itertools.count(int.from_bytes(os.urandom(3)))


class RequestRecorder:
    """Begins and ends the record of a request. Without a tracer and an access log it does nothing."""

    def __init__(self, tracer: Tracer | None = None, access_log: AccessLog | None = None) -> None:
        self._tracer = tracer
        self._access_log = access_log
        #: Whether `end` must be called.
        self.is_on = tracer is not None or access_log is not None

    def begin(self, head: RequestHead, method: str, path: str) -> RequestContext:
        """Return the context of a request that has just arrived.

        A request that creates or ends something is traced, and any other whose client sends `traceparent`.
        """
        tracer, traceparent = self._tracer, head.traceparent
        request_id = head.given_id or f"{_id_prefix}{next(_id_numbers) & 0xFFFFFFFF:08x}"
        if tracer is None:
            return RequestContext(request_id, parse_traceparent(traceparent) if traceparent else None)
        if not traceparent and (method not in ("POST", "DELETE") or path.startswith(_INTERNAL)):
            return RequestContext(request_id)
        return tracer.begin(request_id, traceparent)

    def response_headers(self, context: RequestContext) -> list[tuple[bytes, bytes]]:
        """Return the headers by which the client finds its request again."""
        headers = [(b"x-request-id", context.request_id.encode("latin-1"))]
        if self._tracer is not None and context.trace is not None:
            headers.append((b"traceresponse", context.trace.traceparent.encode()))
        return headers

    def end(
        self,
        context: RequestContext,
        method: str,
        path: str,
        route: str,
        status: int,
        started: float,
        *,
        owner: str,
        size: int,
    ) -> None:
        """Write the record of a request that has been answered. `route`: its path with names of parameters.

        `started`: on the monotonic clock. `size`: bytes of the response.
        """
        if self._access_log is not None and not path.startswith(_INTERNAL):
            self._access_log.put(context, method, path, status, time.monotonic() - started, owner, size)
        if self._tracer is not None and context.trace is not None:
            self._tracer.end_request(context, method, route, status, started, owner=owner, size=size)
