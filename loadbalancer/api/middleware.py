"""What runs before every route: request id, allowed origins, API key, rate limit, idempotency key.

It is plain ASGI. Starlette's `BaseHTTPMiddleware` would hide disconnects and the end of a stream.
"""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Iterable
from typing import Protocol

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.sections import Access
from loadbalancer.access.api_keys import ANONYMOUS, INTERNAL, Authenticator, Caller, KeyRing
from loadbalancer.access.origin_policy import OriginPolicy
from loadbalancer.access.rate_limit import RateLimiter
from loadbalancer.api.body_budget import BodyBudget, BodyReservation, is_small
from loadbalancer.api.head_requests import answer_head
from loadbalancer.api.http_helpers import error_response
from loadbalancer.api.idempotency import HEADER, PATHS
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.schema.errors import ApiError, InternalError, InvalidRequest

log = logging.getLogger(__name__)

#: Response headers that a page of another origin may read.
_EXPOSED_HEADERS = (
    "x-request-id",
    "retry-after",
    "x-muster-proxied",
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
)
#: A key may send so many GET and DELETE requests per minute for each request that its limit allows.
_READS_PER_REQUEST = 60
#: Parameters of a query, which are parsed for every route. No route has more than a few.
_MAX_QUERY_PARAMETERS = 64
#: Request ids of clients that are safe in headers and logs.
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


class CurrentKeys(Protocol):
    """The API keys in force."""

    @property
    def ring(self) -> KeyRing | None:
        """The keys; None while keys are off."""


class ApiMiddleware:
    """Passes each request that may enter to the application."""

    def __init__(
        self,
        app: ASGIApp,
        replaying: ASGIApp,
        access: Access,
        authenticator: Authenticator,
        keys: CurrentKeys,
        metrics: Metrics,
        bodies: BodyBudget,
        machine: Iterable[str] = (),
        max_reads: int = 256,
    ) -> None:
        """`replaying` answers the requests with an idempotency key.

        `machine` are the names of this machine. `max_reads` bounds the GET and DELETE requests of one API key at once.
        """
        self._app = app
        self._replaying = replaying
        self._origins = OriginPolicy(
            access.hosts, access.cors_origins, loopback=authenticator.loopback, machine=machine
        )
        self._authenticator = authenticator
        self._keys = keys
        self._limits = RateLimiter()
        self._reads = RateLimiter("GET and DELETE requests")
        self._max_reads = max_reads
        self._metrics = metrics
        self._bodies = bodies
        self._posts = 0
        metrics.in_flight.add(lambda: {"calls": self._posts, "body_bytes": bodies.held})
        self._enter: ASGIApp = self._authenticate
        if access.cors_origins:  # before authentication, because a browser's preflight request has no key
            self._enter = CORSMiddleware(
                self._authenticate,
                allow_origins=access.cors_origins,
                allow_methods=("GET", "POST", "DELETE"),
                allow_headers=("authorization", "content-type", HEADER, "x-request-id"),
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
        started = time.monotonic()
        headers = Headers(scope=scope)
        client_id = headers.get("x-request-id", "")
        request_id = client_id if _SAFE_ID.fullmatch(client_id) else uuid.uuid4().hex
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            try:
                _check_query(scope.get("query_string", b""))
                keyless = self._keys.ring is None
                self._origins.check(headers.get("host"), headers.get("origin"), keyless=keyless)
            except ApiError as error:
                await _reject(error, scope, receive, send_with_id)
            else:
                await self._enter(scope, receive, send_with_id)
        except Exception:
            log.exception("request %s: %s %r failed", request_id, scope["method"], scope["path"])
            if status is not None:
                raise  # the server closes the connection, so that the client notices the incomplete response
            text = f"The server had an error while processing your request. Its id is {request_id}."
            await error_response(InternalError(text))(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.request(route, status or 500, time.monotonic() - started)

    async def _authenticate(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Find out who calls; apply the rate limits of the key and the idempotency key to requests that create work."""
        is_post, headers, now = scope["method"] == "POST", Headers(scope=scope), time.monotonic()
        try:
            caller = self._authenticator.enter(scope["path"], headers.get("authorization", ""), self._keys.ring)
            limited = is_post and bool(caller.requests_per_minute or caller.max_concurrent)
            if limited:
                self._limits.enter(caller.owner, caller.requests_per_minute, caller.max_concurrent, now)
        except ApiError as error:
            await _reject(error, scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["caller"] = caller
        if not is_post:  # nothing reads a body
            await self._read(caller, now, scope, receive, send)
            return
        body = state["body"] = None if is_small(headers) else BodyReservation(self._bodies, caller.owner)
        if body is not None:
            receive = body.counting(receive)
        app = self._replaying if HEADER in headers and scope["path"] in PATHS else self._app
        self._posts += 1
        try:
            answer = self._send_with_limits(caller.owner, now, send) if limited else send
            await app(scope, receive, answer)
        finally:
            if body is not None:
                body.release()
            self._posts -= 1
            if limited:
                self._limits.leave(caller.owner)

    async def _read(self, caller: Caller, now: float, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on a request that creates no work. Its limits are generous, and only for API keys."""
        if caller.owner in (ANONYMOUS, INTERNAL):
            await self._app(scope, receive, send)
            return
        per_minute = None if caller.requests_per_minute is None else caller.requests_per_minute * _READS_PER_REQUEST
        try:
            self._reads.enter(caller.owner, per_minute, self._max_reads, now)
        except ApiError as error:
            await _reject(error, scope, receive, send)
            return
        try:
            await self._app(scope, receive, send)
        finally:
            self._reads.leave(caller.owner)

    def _send_with_limits(self, owner: str, now: float, send: Send) -> Send:
        headers = self._limits.headers(owner, now)

        async def send_with_limits(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(headers)
            await send(message)

        return send_with_limits


def _check_query(query: bytes) -> None:
    if query.count(b"&") >= _MAX_QUERY_PARAMETERS:
        text = f"The query has more than {_MAX_QUERY_PARAMETERS} parameters."
        raise InvalidRequest(text, code="too_many_query_parameters")


async def _reject(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    log.debug("%s %r is rejected with %d: %s", scope["method"], scope["path"], error.status, error.message)
    await error_response(error)(scope, receive, send)
