"""Requests that go from the HTTP server to the handler of a hot route and back, without a task or a framework."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial

from fastapi import Response
from starlette.types import Receive, Scope, Send

from loadbalancer.access.access_control import AccessControl
from loadbalancer.access.api_keys import Caller
from loadbalancer.api.direct_calls import Responder
from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.hot_routes import HotRequest, HotRoute, HotRoutes
from loadbalancer.api.http_helpers import ErrorResponse, error_response
from loadbalancer.api.pushed_response import PushedResponse
from loadbalancer.api.request_head import RequestHead
from loadbalancer.api.request_recorder import RequestRecorder
from loadbalancer.context.request_context import CURRENT
from loadbalancer.metrics.prometheus import Metrics
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

    def find(self, method: bytes, target: bytes, headers: list[tuple[bytes, bytes]]) -> HotCall | None:
        """Return the call of a request. None: it has no hot route, or something that only the framework handles."""
        path, _, query = target.partition(b"?")
        if b"%" in path or not path.isascii():
            return None
        found = self._routes.find(method.decode("ascii"), path.decode("ascii"))
        if found is None:
            return None
        head = RequestHead(headers)
        if head.is_encoded or head.has_key or head.origin is not None or head.length > found[0].max_bytes:
            return None
        return HotCall(self, found[0], found[1], head, method.decode("ascii"), path.decode("ascii"), query, headers)


class HotCall:
    """One request for a hot route."""

    __slots__ = (
        "_caller",
        "_calls",
        "_context",
        "_future",
        "_head",
        "_headers",
        "_is_cancelled",
        "_method",
        "_on_end",
        "_params",
        "_path",
        "_query",
        "_responder",
        "_route",
        "_started",
        "_status",
    )

    def __init__(
        self,
        calls: HotCalls,
        route: HotRoute,
        params: Mapping[str, str],
        head: RequestHead,
        method: str,
        path: str,
        query: bytes,
        headers: list[tuple[bytes, bytes]],
    ) -> None:
        self._calls = calls
        self._route = route
        self._params = params
        self._head = head
        self._method = method
        self._path = path
        self._query = query
        self._headers = headers
        self._started = time.monotonic()
        self._context = calls.recorder.begin(head, method, path)
        self._caller: Caller | None = None
        self._responder: Responder | None = None
        self._future: asyncio.Future[Response] | None = None
        self._on_end: Callable[[], None] | None = None
        self._is_cancelled = False
        #: Of the response; that of a client that has left before there was one.
        self._status = ClientClosed.status

    def begin(self, responder: Responder, body: bytes) -> None:
        """The request is complete. Raises nothing."""
        self._responder, head, control = responder, self._head, self._calls.control
        is_post = self._method == "POST"
        token = CURRENT.set(self._context)
        try:
            control.check(self._query, head.host, None)
            self._caller = caller = control.enter(self._path, head.authorization, is_post=is_post, now=self._started)
            request = HotRequest(
                self._method,
                self._path,
                self._query,
                self._headers,
                self._params,
                caller,
                body if is_post else b"",
                responder,
            )
            answer = self._route.handler(request)
            if isinstance(answer, Response):
                self._respond(answer)
                return
            self._future = answer if isinstance(answer, asyncio.Future) else asyncio.ensure_future(answer)
        except Exception as error:
            self._fail(error)
        else:
            self._future.add_done_callback(self._on_done)
        finally:
            CURRENT.reset(token)

    def cancel(self) -> None:
        """The client has left, before the response was complete. Raises nothing."""
        if self._is_cancelled:
            return
        self._is_cancelled = True
        if self._future is not None:
            self._future.cancel()
        elif self._responder is None:  # its body is incomplete
            self._end()

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
            request_id = self._head.request_id
            log.error("request %s: %s %r failed", request_id, self._method, self._path, exc_info=error)
            error = InternalError(f"The server had an error while processing your request. Its id is {request_id}.")
        self._respond(error_response(error, self._path))

    def _respond(self, response: Response) -> None:
        assert self._responder is not None
        self._status = response.status_code
        headers = [*response.raw_headers, *self._calls.recorder.response_headers(self._context)]
        caller = self._caller
        if caller is not None and caller.requests_per_minute is not None and self._method == "POST":
            headers += self._calls.control.headers(caller, self._started)
        frames: Sequence[bytes | memoryview]
        if isinstance(response, FrameResponse):
            frames, self._on_end = response.frames, response.take_on_end()
        elif isinstance(response, ErrorResponse):
            self._calls.metrics.error(response.code, response.status_code)
            frames = [bytes(response.body)]
        elif type(response) is Response:
            frames = [bytes(response.body)]
        elif isinstance(response, PushedResponse):
            self._push(response, headers)
            return
        else:
            response.raw_headers = headers
            self._responder.run(partial(self._stream, response), self._scope())
            return
        try:
            self._responder.respond(response.status_code, headers, frames, self._end)
        except RuntimeError as error:  # a header that is not allowed
            on_end, self._on_end = self._on_end, None
            if on_end is not None:
                on_end()
            self._fail(error)

    def _push(self, response: PushedResponse, headers: list[tuple[bytes, bytes]]) -> None:
        """Let the source of the response write it to the connection."""
        assert self._responder is not None
        self._on_end = response.source.close
        writer = self._responder.stream(response.status_code, headers, self._end)
        if writer is not None:
            response.source.attach(writer)

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
            "method": self._method,
            "path": self._path,
            "headers": self._headers,
        }

    def _end(self) -> None:
        """The client has read the response, or has left."""
        calls = self._calls
        calls.metrics.request(self._route.template, self._status, time.monotonic() - self._started)
        if self._caller is not None:
            calls.control.leave(self._caller, is_post=self._method == "POST")
        # Through each of these the call refers to itself: results would be held until garbage is collected.
        on_end, self._on_end = self._on_end, None
        responder, self._responder = self._responder, None
        self._future = None
        self._is_cancelled = True  # nothing is left to be cancelled
        if on_end is not None:
            on_end()
        if calls.recorder.is_on:  # now that tasks which nobody waits for have been cancelled
            self._record(0 if responder is None else responder.body_bytes)

    def _record(self, size: int) -> None:
        owner = "" if self._caller is None else self._caller.owner
        where = self._method, self._path, self._route.template
        self._calls.recorder.end(self._context, *where, self._status, self._started, owner=owner, size=size)
