"""What runs before every route: request id, allowed origins, API key, rate limit, idempotency key.

It is plain ASGI. Starlette's `BaseHTTPMiddleware` would hide disconnects and the end of a stream. Requests for hot
routes pass the same checks in `hot_calls.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Container
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.sections import Access
from loadbalancer.access.access_control import AccessControl
from loadbalancer.api.allowed_methods import SERVER_OPTIONS
from loadbalancer.api.body_budget import BodyBudget, BodyReservation
from loadbalancer.api.direct_calls import DirectCalls
from loadbalancer.api.head_requests import answer_head
from loadbalancer.api.hot_calls import HotCalls
from loadbalancer.api.http_helpers import ERROR_CODE, error_response
from loadbalancer.api.idempotency_keys import HEADER, PATHS
from loadbalancer.api.request_head import RequestHead
from loadbalancer.api.request_recorder import RequestRecorder
from loadbalancer.context.request_context import CURRENT
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.schema.errors import ApiError, InternalError

log = logging.getLogger(__name__)

#: Response headers that a page of another origin may read.
_EXPOSED_HEADERS = (
    "x-request-id",
    "traceresponse",
    "retry-after",
    "x-muster-proxied",
    "x-muster-seed",
    "x-muster-flagged",
    "x-muster-truncated-tokens",
    "x-tensor-dtype",
    "x-tensor-shape",
    "inference-header-content-length",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
)


#: Request headers that a page of another origin may send.
_ALLOWED_HEADERS = (
    "authorization",
    "content-type",
    HEADER,
    "traceparent",
    "x-request-id",
    "inference-header-content-length",
)


class ApiMiddleware:
    """Passes each request that may enter to the application."""

    def __init__(
        self,
        app: ASGIApp,
        replaying: ASGIApp,
        access: Access,
        control: AccessControl,
        metrics: Metrics,
        bodies: BodyBudget,
        hot: HotCalls | None = None,
        replayed: Container[str] = PATHS,
        recorder: RequestRecorder | None = None,
    ) -> None:
        """`replaying` answers the requests with an idempotency key on one of the paths in `replayed`.

        `hot` answers those that need no application.
        """
        self._app = app
        self._replaying = replaying
        self._replayed = replayed
        self._recorder = recorder or RequestRecorder()
        self._control = control
        self._metrics = metrics
        self._bodies = bodies
        #: For the HTTP server.
        self.direct: DirectCalls | None = hot
        metrics.in_flight.add(lambda: {"calls": control.posts, "body_bytes": bodies.held})
        self._enter: ASGIApp = self._authenticate
        if access.cors_origins:  # before authentication, because a browser's preflight request has no key
            self._enter = CORSMiddleware(
                self._authenticate,
                allow_origins=access.cors_origins,
                allow_methods=("GET", "POST", "DELETE"),
                allow_headers=_ALLOWED_HEADERS,
                expose_headers=_EXPOSED_HEADERS,
            )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Give the request an id, check its origin, count it; answer unexpected exceptions with a neutral 500."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if scope["method"] == "HEAD":
            await answer_head(self, scope, receive, send)
            return
        started, head = time.monotonic(), RequestHead(scope["headers"])
        scope.setdefault("state", {})["head"] = head
        context = self._recorder.begin(head, scope["method"], scope["path"])
        sender = _Sender(send, self._recorder.response_headers(context))
        token = CURRENT.set(context)
        try:
            try:
                self._control.check(scope.get("query_string", b""), head.host, head.origin)
            except ApiError as error:
                await _reject(error, scope, receive, sender.send)
            else:
                await self._enter(scope, receive, sender.send)
        except Exception:
            log.exception("request %s: %s %r failed", context.request_id, scope["method"], scope["path"])
            if sender.status is not None:
                raise  # the server closes the connection, so that the client notices the incomplete response
            text = f"The server had an error while processing your request. Its id is {context.request_id}."
            await error_response(InternalError(text), scope["path"])(scope, receive, sender.send)
        finally:
            CURRENT.reset(token)
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.route(route).record(sender.status or 500, time.monotonic() - started)
            if self._recorder.is_on:
                caller = scope["state"].get("caller")
                owner, status = "" if caller is None else caller.owner, sender.status or 500
                where = scope["method"], scope["path"], route
                self._recorder.end(context, *where, status, started, owner=owner, size=sender.size)
            if (code := scope["state"].get(ERROR_CODE)) is not None:
                self._metrics.error(code, sender.status or 500)

    async def _authenticate(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find out who calls; apply the limits of the key, and the idempotency key to requests that create work."""
        state: dict[str, Any] = scope["state"]
        head: RequestHead = state["head"]
        is_post, now = scope["method"] == "POST", time.monotonic()
        try:
            caller = self._control.authenticate(scope["path"], head.authorization)
            self._control.enter(caller, is_post=is_post, now=now)
        except ApiError as error:
            await _reject(error, scope, receive, send)
            return
        state["caller"] = caller
        body: BodyReservation | None = None
        app: ASGIApp = SERVER_OPTIONS if scope["path"] == "*" else self._app
        if is_post:
            if not head.is_small:
                body = BodyReservation(self._bodies, caller.owner)
                receive = body.counting(receive)
            state["body"] = body
            if head.has_key and scope["path"] in self._replayed:
                app = self._replaying
            if limits := self._control.headers(caller, now):
                send = _Sender(send, limits).send
        try:
            await app(scope, receive, send)
        finally:
            if body is not None:
                body.release()
            self._control.leave(caller, is_post=is_post)


class _Sender:
    """Adds headers to a response, and notes its status and size."""

    __slots__ = ("_headers", "_send", "size", "status")

    def __init__(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        self._send = send
        self._headers = headers
        self.status: int | None = None
        self.size = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            added = [name for name, _ in self._headers]
            message["headers"] = [line for line in message["headers"] if line[0] not in added] + self._headers
        else:
            self.size += len(message.get("body", b""))
        await self._send(message)


async def _reject(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    log.debug("%s %r is rejected with %d: %s", scope["method"], scope["path"], error.status, error.message)
    await error_response(error, scope["path"])(scope, receive, send)
