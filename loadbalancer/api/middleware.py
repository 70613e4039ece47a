"""In front of every route: who asks, from where, whether that is allowed, and whether it is too often.

Plain ASGI, like `RequestIdMiddleware`: it must see the end of a streamed answer, and hide no disconnect.
"""

from __future__ import annotations

import logging
import time

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loadbalancer.access.api_keys import Caller
from loadbalancer.access.origin_policy import OriginPolicy
from loadbalancer.access.rate_limit import RateLimiter
from loadbalancer.api.http_helpers import Services, error_response
from loadbalancer.schema.errors import ApiError

log = logging.getLogger(__name__)

#: Headers of ours that a page of another origin may read.
EXPOSED_HEADERS = (
    "retry-after",
    "x-muster-proxied",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)


class OriginMiddleware:
    """Keeps out what a web page of elsewhere has a browser send, before any question for a key."""

    def __init__(self, app: ASGIApp, origins: OriginPolicy) -> None:
        self._app = app
        self._origins = origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            try:
                self._origins.check(headers.get("host"), headers.get("origin"))
            except ApiError as error:
                log.debug("%s %s is answered %d: %s", scope["method"], scope["path"], error.status, error.message)
                await error_response(error)(scope, receive, send)
                return
        await self._app(scope, receive, send)


class AuthMiddleware:
    """Lets requests through to the application, or answers them itself."""

    def __init__(self, app: ASGIApp, services: Services) -> None:
        self._app = app
        self._authenticator = services.authenticator
        self._ring = services.ring
        self._limits = RateLimiter()
        services.metrics.in_flight.add(lambda: {"calls": len(self._limits)})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        limited = scope["method"] == "POST"  # what makes work; looking is free
        try:
            caller = self._authenticator.enter(
                scope["path"], Headers(scope=scope).get("authorization", ""), self._ring()
            )
            if limited:
                self._limits.enter(caller.owner, caller.requests_per_minute, caller.max_concurrent, time.monotonic())
        except ApiError as error:
            log.debug("%s %s is answered %d: %s", scope["method"], scope["path"], error.status, error.message)
            await error_response(error)(scope, receive, send)
            return
        scope.setdefault("state", {})["caller"] = caller
        if not limited:
            await self._app(scope, receive, send)
            return
        try:
            await self._app(scope, receive, self._telling(caller, send))
        finally:
            self._limits.leave(caller.owner)

    def _telling(self, caller: Caller, send: Send) -> Send:
        """A `send` that adds the caller's limits to the headers."""
        headers = self._limits.headers(caller.owner, time.monotonic())

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        return send_with_limits if headers else send
