"""Requests that go from the HTTP server to the handler of a hot route and back, without a task or a framework."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec
from fastapi import Response
from starlette.types import Receive, Scope, Send

from loadbalancer.access.access_control import AccessControl
from loadbalancer.access.api_keys import Caller, KeyRing
from loadbalancer.api.direct_calls import HeaderList, Responder
from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.hot_routes import HotRequest, HotRoute, HotRoutes
from loadbalancer.api.http_helpers import ErrorResponse, error_response
from loadbalancer.api.pushed_response import PushedResponse
from loadbalancer.api.request_head import RequestHead
from loadbalancer.api.request_recorder import RequestRecorder
from loadbalancer.context.request_context import CURRENT, RequestContext
from loadbalancer.generation.in_flight_call import AwaitedCalls
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.metrics.requests import RouteMetrics
from loadbalancer.schema.errors import ApiError, ClientClosed, InternalError

log = logging.getLogger(__name__)


class HotCalls:
    """Finds the requests that are answered directly, with all checks that other requests pass."""

    def __init__(
        self, routes: HotRoutes, control: AccessControl, metrics: Metrics, recorder: RequestRecorder | None = None
    ) -> None:
        self._routes = routes
        self.recorder = recorder or RequestRecorder()
        self.control = control
        self.metrics = metrics

    def find(self, method: bytes, target: bytes, headers: HeaderList) -> HotHead | None:
        """Return the head of a request. None: it has no hot route, or something that only the framework handles."""
        path, _, query = target.partition(b"?")
        if b"%" in path or not path.isascii():
            return None
        verb, decoded = method.decode("ascii"), path.decode("ascii")
        found = self._routes.find(verb, decoded)
        if found is None:
            return None
        route, params = found
        head = RequestHead(headers)
        if head.is_encoded or head.has_key or head.origin is not None or head.length > route.max_bytes:
            return None
        metrics = self.metrics.route(route.template)
        return HotHead(self, route, metrics, params, head, verb, decoded, query, route.max_bytes)


class HotHead(msgspec.Struct, eq=False):
    """The head of requests for a hot route, and what has been found out about it. A connection may send it again."""

    calls: HotCalls
    route: HotRoute
    metrics: RouteMetrics
    params: Mapping[str, str]
    parsed: RequestHead
    method: str
    path: str
    query: bytes
    max_bytes: int
    #: Who sends it, according to these keys.
    _caller: Caller | None = None
    _ring: KeyRing | None = None

    def new_call(self, headers: HeaderList) -> HotCall:
        """Begin the record of a request that has just arrived."""
        return HotCall(self, headers, time.monotonic(), self.calls.recorder.begin(self.parsed, self.method, self.path))

    def caller(self) -> Caller:
        """Check the head, and return who sends it: once for as long as the keys are the same. Raises `ApiError`."""
        control = self.calls.control
        ring = control.keys.ring
        if self._caller is None or ring is not self._ring:
            control.check(self.query, self.parsed.host, None)
            self._caller, self._ring = control.authenticate(self.path, self.parsed.authorization), ring
        return self._caller


class HotCall(msgspec.Struct, eq=False):
    """One request for a hot route."""

    _head: HotHead
    _headers: HeaderList
    _started: float
    _context: RequestContext
    _caller: Caller | None = None
    _responder: Responder | None = None
    #: What the response is awaited from.
    _pending: AwaitedCalls | asyncio.Future[Response] | None = None
    _on_end: Callable[[], None] | None = None
    _is_cancelled: bool = False
    #: Of the response; that of a client that has left before there was one.
    _status: int = ClientClosed.status

    def begin(self, responder: Responder, body: bytes) -> None:
        """The request is complete. Raises nothing."""
        self._responder, head, method = responder, self._head, self._head.method
        is_post = method == "POST"
        token = CURRENT.set(self._context)
        try:
            caller = head.caller()
            head.calls.control.enter(caller, is_post=is_post, now=self._started)
            self._caller = caller
            if not is_post:
                body = b""
            request = HotRequest(
                method, head.path, head.query, head.parsed, self._headers, head.params, caller, body, responder
            )
            answer = head.route.handler(request)
            if isinstance(answer, AwaitedCalls):
                self._pending = answer
                answer.deliver_to(self._on_answer)
            elif isinstance(answer, Response):
                self._respond(answer)
            else:
                self._pending = future = asyncio.ensure_future(answer)
                future.add_done_callback(self._on_done)
        except Exception as error:
            self._fail(error)
        finally:
            CURRENT.reset(token)

    def cancel(self) -> None:
        """The client has left, before the response was complete. Raises nothing."""
        if self._is_cancelled:
            return
        self._is_cancelled = True
        pending = self._pending
        if isinstance(pending, AwaitedCalls):
            pending.cancel()
            self._end()
        elif pending is not None:
            pending.cancel()
        elif self._responder is None:  # its body is incomplete
            self._end()

    def _on_answer(self, response: Response | None, error: BaseException | None) -> None:
        if response is not None:
            self._respond(response)
        elif error is not None:
            token = CURRENT.set(self._context)  # for its line in the log
            try:
                self._fail(error)
            finally:
                CURRENT.reset(token)

    def _on_done(self, future: asyncio.Future[Response]) -> None:
        error = asyncio.CancelledError() if future.cancelled() else future.exception()
        if error is None:
            self._respond(future.result())
        elif self._is_cancelled:
            self._end()
        else:
            self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if not isinstance(error, ApiError):
            request_id, head = self._context.request_id, self._head
            log.error("request %s: %s %r failed", request_id, head.method, head.path, exc_info=error)
            error = InternalError(f"The server had an error while processing your request. Its id is {request_id}.")
        self._respond(error_response(error, self._head.path))

    def _respond(self, response: Response) -> None:
        responder, calls, context = self._responder, self._head.calls, self._context
        assert responder is not None
        self._status = response.status_code
        headers = [*response.raw_headers, *calls.recorder.response_headers(context)]
        caller = self._caller
        if caller is not None and caller.requests_per_minute is not None and self._head.method == "POST":
            headers += calls.control.headers(caller, self._started)
        frames: Sequence[bytes | memoryview]
        if isinstance(response, FrameResponse):
            frames, self._on_end = response.frames, response.take_on_end()
        elif isinstance(response, ErrorResponse):
            calls.metrics.error(response.code, response.status_code)
            frames = [bytes(response.body)]
        elif type(response) is Response:
            frames = [bytes(response.body)]
        elif isinstance(response, PushedResponse):
            self._push(response, headers)
            return
        else:
            response.raw_headers = headers
            responder.run(partial(self._stream, response), self._scope())
            return
        try:
            responder.respond(response.status_code, headers, frames, self._end)
        except RuntimeError as error:  # a header that is not allowed
            on_end, self._on_end = self._on_end, None
            if on_end is not None:
                on_end()
            self._fail(error)

    def _push(self, response: PushedResponse, headers: list[tuple[bytes, bytes]]) -> None:
        """Let the source of the response write it to the connection."""
        assert self._responder is not None
        source = response.take_source()
        self._on_end = source.close
        writer = self._responder.stream(response.status_code, headers, self._end)
        if writer is not None:
            source.attach(writer)

    async def _stream(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        """Send a response that is an application, such as a stream of events."""
        try:
            await response(scope, receive, send)
        finally:
            self._end()

    def _scope(self) -> Scope:
        """What responses of Starlette read of a scope."""
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "method": self._head.method,
            "path": self._head.path,
            "headers": self._headers,
        }

    def _end(self) -> None:
        """The client has read the response, or has left."""
        head = self._head
        calls = head.calls
        head.metrics.record(self._status, time.monotonic() - self._started)
        if self._caller is not None:
            calls.control.leave(self._caller, is_post=head.method == "POST")
        # Through each of these the call refers to itself: results would be held until garbage is collected.
        on_end, self._on_end = self._on_end, None
        responder, self._responder = self._responder, None
        self._pending = None
        self._is_cancelled = True  # nothing is left to be cancelled
        if on_end is not None:
            on_end()
        if calls.recorder.is_on:  # now that tasks which nobody waits for have been cancelled
            self._record(0 if responder is None else responder.body_bytes)

    def _record(self, size: int) -> None:
        owner, head = "" if self._caller is None else self._caller.owner, self._head
        where = head.method, head.path, head.route.template
        head.calls.recorder.end(self._context, *where, self._status, self._started, owner=owner, size=size)
