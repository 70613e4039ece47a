"""Hot routes: handlers that a request reaches without FastAPI, although FastAPI documents them.

    hot = HotRoutes()

    @routes.post("/v1/models/{name}:predict", summary="...", openapi_extra=..., responses=...)
    @hot.endpoint(max_bytes=server.max_body_bytes)
    async def predict(request: HotRequest) -> Response:
        return FrameResponse([encode(...)], "application/json")

The route is declared once, so the OpenAPI document lists it. A small request with a plain body goes from the HTTP
server straight to the handler. Any other goes through FastAPI and reaches the same handler with the same request.
"""

from __future__ import annotations

import asyncio
import codecs
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import NamedTuple, Protocol

import msgspec
from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from loadbalancer.access.api_keys import Caller
from loadbalancer.api.body_budget import BodyReservation
from loadbalancer.api.content_coding import check_json
from loadbalancer.api.http_helpers import read_whole, wait_first
from loadbalancer.api.request_head import RequestHead

RawHeaders = Sequence[tuple[bytes, bytes]]

#: Paths of patterns that are remembered with what they matched.
_MAX_MATCHES = 1024
_PLAIN_JSON = ("", "application/json")


class Connection(Protocol):
    """What is known of the way of a request."""

    @property
    def scheme(self) -> str:
        """Of the client's URL: `http` or `https`."""

    @property
    def server(self) -> tuple[str, int | None] | None:
        """The address and port that the client has connected to."""


class _FrameworkConnection(NamedTuple):
    """That of a request that came through FastAPI."""

    scheme: str
    server: tuple[str, int | None] | None


class HotRequest(msgspec.Struct, eq=False):
    """A request whose body has arrived completely."""

    method: str
    #: Decoded.
    path: str
    query: bytes
    #: What was found in the `headers`.
    head: RequestHead
    #: Their names are in lower case.
    headers: RawHeaders
    #: What the pattern of the route has matched in the path.
    params: Mapping[str, str]
    caller: Caller
    #: Without a Content-Encoding.
    body: bytes
    connection: Connection
    #: Where the bytes of the body count until `release_body`.
    reservation: BodyReservation | None = None

    def header(self, name: bytes, default: bytes = b"") -> bytes:
        """The value of the first header with this name, which is in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return default

    def json(self) -> bytes:
        """The body as UTF-8 without a byte order mark.

        Raises `InvalidRequest` if it names another character set, `UnsupportedMediaType` for a form.
        """
        kind = self.head.content_type
        if kind not in _PLAIN_JSON:
            check_json(kind)
        return self.body.removeprefix(codecs.BOM_UTF8)

    def release_body(self) -> None:
        """Drop the body once it has been parsed, so that a request that waits in the queue does not hold it."""
        self.body = b""
        if self.reservation is not None:
            self.reservation.release()


#: Returns the response, or what is awaited for it. It raises `ApiError`. When the client leaves, what is awaited is
#: cancelled. A `FrameResponse` is sent at the least cost; any other response of Starlette, such as a stream, works too.
HotHandler = Callable[[HotRequest], Response | Awaitable[Response]]


class HotRoute:
    """A handler, and the largest body that it takes."""

    def __init__(self, handler: HotHandler, max_bytes: int) -> None:
        self.handler = handler
        self.max_bytes = max_bytes
        #: The path of the route with its parameters, for metrics.
        self.template = ""

    async def answer(self, request: Request) -> Response:
        """Answer a request that came through FastAPI. Raises `ApiError`."""
        body = await read_whole(request, self.max_bytes) if request.method == "POST" else b""
        hot = hot_request(request, body)
        del body  # the handler releases it
        answer = self.handler(hot)
        del hot
        if isinstance(answer, Response):
            return answer
        future = asyncio.ensure_future(answer)
        future.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may wait for it any more
        try:
            await wait_first(request, future)
            return future.result()
        finally:
            future.cancel()


def hot_request(request: Request, body: bytes) -> HotRequest:
    """Return the request of FastAPI as that of a hot route."""
    scope, state = request.scope, request.state
    return HotRequest(
        request.method,
        scope["path"],
        scope.get("query_string", b""),
        state.head,
        scope["headers"],
        request.path_params,
        state.caller,
        body,
        _FrameworkConnection(scope.get("scheme", "http"), scope.get("server")),
        state.body if request.method == "POST" else None,
    )


class HotRoutes:
    """The hot routes of an application, by method and path."""

    def __init__(self) -> None:
        self._by_endpoint: dict[object, HotRoute] = {}
        self._patterns: list[tuple[APIRoute, HotRoute]] = []
        self._matches: dict[tuple[str, str], tuple[HotRoute, Mapping[str, str]]] = {}
        self._max_matches = 0

    def endpoint(self, *, max_bytes: int) -> Callable[[HotHandler], Callable[[Request], Awaitable[Response]]]:
        """Make a handler the endpoint of a route of FastAPI. Only bodies of POST are read; larger ones get 413."""

        def decorate(handler: HotHandler) -> Callable[[Request], Awaitable[Response]]:
            route = HotRoute(handler, max_bytes)

            async def endpoint(request: Request) -> Response:
                return await route.answer(request)

            endpoint.__name__, endpoint.__doc__ = handler.__name__, handler.__doc__
            self._by_endpoint[endpoint] = route
            return endpoint

        return decorate

    def collect(self, *routers: APIRouter) -> None:
        """Take the paths and methods from the routers that have been included, without a prefix, in the application.

        Raises `RuntimeError` for a handler without a route.
        """
        missing = set(self._by_endpoint)
        for each in (route for router in routers for route in router.routes):
            if isinstance(each, APIRoute) and (hot := self._by_endpoint.get(each.endpoint)) is not None:
                missing.discard(each.endpoint)
                hot.template = hot.template or each.path
                if each.param_convertors:
                    self._patterns.append((each, hot))
                    continue
                for method in each.methods or ():
                    self._matches[method, each.path] = hot, {}
        if missing:
            raise RuntimeError(f"{len(missing)} hot routes are registered with no router")
        self._max_matches = len(self._matches) + _MAX_MATCHES

    def find(self, method: str, path: str) -> tuple[HotRoute, Mapping[str, str]] | None:
        """Return the route and the parameters of its path; None if no hot route has this method and path."""
        found = self._matches.get((method, path))
        if found is not None:
            return found
        for route, hot in self._patterns:
            if method in (route.methods or ()) and (match := route.path_regex.match(path)) is not None:
                found = hot, match.groupdict()
                if len(self._matches) < self._max_matches:
                    self._matches[method, path] = found
                return found
        return None
