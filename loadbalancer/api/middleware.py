"""The middlewares in front of every route: request ids, allowed origins, authentication and rate limits.

They are plain ASGI. Starlette's `BaseHTTPMiddleware` would hide disconnects and the end of a stream.
"""

from __future__ import annotations

import abc
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loadbalancer.access.origin_policy import OriginPolicy
from loadbalancer.access.rate_limit import RateLimiter
from loadbalancer.api.http_helpers import error_response
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.schema.errors import ApiError, InternalError
from loadbalancer.services import Services

log = logging.getLogger(__name__)

#: Response headers that a page of another origin may read.
EXPOSED_HEADERS = (
    "retry-after",
    "x-muster-proxied",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)
#: Request ids of clients that are safe in headers and logs.
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class _HttpMiddleware(abc.ABC):
    """Calls `handle` for each HTTP request and passes other scopes on."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await (self.handle if scope["type"] == "http" else self._app)(scope, receive, send)

    @abc.abstractmethod
    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one HTTP request."""

    async def reject(self, error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
        log.debug("%s %s is rejected with %d: %s", scope["method"], scope["path"], error.status, error.message)
        await error_response(error)(scope, receive, send)


class RequestIdMiddleware(_HttpMiddleware):
    """Gives every request an id, answers unexpected exceptions with a neutral 500, and counts requests."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        super().__init__(app)
        self._metrics = metrics

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = time.monotonic()
        client_id = Headers(scope=scope).get("x-request-id", "")
        request_id = client_id if _SAFE_ID.fullmatch(client_id) else uuid.uuid4().hex
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
            if status is not None:
                raise  # the server closes the connection, so that the client notices the incomplete response
            text = f"The server had an error while processing your request. Its id is {request_id}."
            await error_response(InternalError(text))(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.request(route, status or 500, time.monotonic() - started)


class OriginMiddleware(_HttpMiddleware):
    """Rejects requests that pages of other sites send through a browser. Runs before authentication."""

    def __init__(self, app: ASGIApp, policy: OriginPolicy) -> None:
        super().__init__(app)
        self._policy = policy

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = Headers(scope=scope)
        try:
            self._policy.check(headers.get("host"), headers.get("origin"))
        except ApiError as error:
            await self.reject(error, scope, receive, send)
            return
        await self._app(scope, receive, send)


class AuthMiddleware(_HttpMiddleware):
    """Authenticates the caller and applies the rate limits of its key to POST requests."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        super().__init__(app)
        self._authenticator = services.authenticator
        self._ring = services.ring
        self._limits = RateLimiter()
        services.metrics.in_flight.add(lambda: {"calls": len(self._limits)})

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        is_limited = scope["method"] == "POST"  # only these create work
        authorization = Headers(scope=scope).get("authorization", "")
        try:
            caller = self._authenticator.enter(scope["path"], authorization, self._ring())
            if is_limited:
                self._limits.enter(caller.owner, caller.requests_per_minute, caller.max_concurrent, time.monotonic())
        except ApiError as error:
            await self.reject(error, scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        if not is_limited:
            await self._app(scope, receive, send)
            return

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        try:
            headers = self._limits.headers(caller.owner, time.monotonic())
            await self._app(scope, receive, send_with_limits if headers else send)
        finally:
            self._limits.leave(caller.owner)
