"""A hot route has one handler and one entry in the document, whichever way a request comes."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import Callable, Mapping
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from loadbalancer.access.api_keys import Caller
from loadbalancer.api.app import add_error_handlers
from loadbalancer.api.body_budget import BodyBudget, BodyReservation
from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.hot_routes import HotRequest, HotRoutes
from loadbalancer.api.request_head import RequestHead
from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.schema.errors import InvalidRequest

BODIES = BodyBudget(1 << 20, 1 << 20, RefusalCounter())


def application() -> tuple[ASGIApp, FastAPI, HotRoutes]:
    app, router, hot = FastAPI(), APIRouter(), HotRoutes()

    @router.post("/v1/models/{name}:predict", summary="Predict")
    @hot.endpoint(max_bytes=100)
    async def predict(request: HotRequest) -> Response:
        """What the document says."""
        await asyncio.sleep(0)
        if request.body == b"bad":
            raise InvalidRequest("It is bad.")
        parts: list[bytes | memoryview] = [request.params["name"].encode(), memoryview(b":"), request.json()]
        request.release_body()
        assert request.body == b""
        return FrameResponse(parts, "text/plain", 202, {"X-Caller": request.caller.owner})

    @router.get("/ping")
    @hot.endpoint(max_bytes=0)
    def ping(request: HotRequest) -> Response:
        return FrameResponse([request.query], "text/plain")

    @router.get("/cold")
    async def cold(_: Request) -> Response:
        return Response("cold")

    add_error_handlers(app)
    app.include_router(router)
    hot.collect(router)

    async def with_state(scope: Scope, receive: Receive, send: Send) -> None:
        head = RequestHead(scope["headers"])
        scope["state"] = {"head": head, "caller": Caller("ann"), "body": BodyReservation(BODIES, "ann")}
        await app(scope, receive, send)

    return with_state, app, hot


def call(method: str, path: str, **options: Any) -> httpx.Response:
    async def run() -> httpx.Response:
        transport = httpx.ASGITransport(application()[0])
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            return await client.request(method, path, **options)

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("body", "headers", "status", "text"),
    [
        (b"{}", {}, 202, "digits:{}"),
        (b"\xef\xbb\xbf{}", {}, 202, "digits:{}"),
        (gzip.compress(b"{}", mtime=0), {"content-encoding": "gzip"}, 202, "digits:{}"),
        (b"x" * 101, {}, 413, "maximum"),
        (b"bad", {}, 400, "It is bad."),
        (b"{}", {"content-type": "application/json; charset=utf-16"}, 400, "UTF-8"),
    ],
)
def test_handler_through_the_framework(body: bytes, headers: Mapping[str, str], status: int, text: str) -> None:
    answer = call("POST", "/v1/models/digits:predict", content=body, headers=headers)
    assert (answer.status_code, text in answer.text) == (status, True)
    assert BODIES.held == 0


def test_response_has_its_headers() -> None:
    answer = call("POST", "/v1/models/digits:predict", content=b"{}")
    assert answer.headers["x-caller"] == "ann"
    assert (answer.headers["content-length"], answer.headers["content-type"]) == ("9", "text/plain")


def test_handler_that_does_not_wait() -> None:
    assert call("GET", "/ping?a=1").text == "a=1"


def test_document_lists_hot_routes() -> None:
    paths = application()[1].openapi()["paths"]
    assert paths["/v1/models/{name}:predict"]["post"]["description"] == "What the document says."
    assert set(paths) == {"/v1/models/{name}:predict", "/ping", "/cold"}


@pytest.mark.parametrize(
    ("method", "path", "template", "params"),
    [
        ("POST", "/v1/models/digits:predict", "/v1/models/{name}:predict", {"name": "digits"}),
        ("GET", "/ping", "/ping", {}),
        ("POST", "/ping", None, None),
        ("GET", "/v1/models/digits:predict", None, None),
        ("POST", "/v1/models/a/b:predict", None, None),
        ("POST", "/v1/models/digits:explain", None, None),
        ("GET", "/cold", None, None),
    ],
)
def test_routes_are_found(method: str, path: str, template: str | None, params: dict[str, str] | None) -> None:
    hot = application()[2]
    for _ in range(2):  # the second time from memory
        found = hot.find(method, path)
        assert (found and found[0].template, found and found[1]) == (template, params)


def test_any_number_of_paths_matches() -> None:
    find: Callable[[str, str], Any] = application()[2].find
    assert all(find("POST", f"/v1/models/{n}:predict")[1] == {"name": str(n)} for n in range(3000))


def test_a_handler_without_a_route_is_an_error() -> None:
    hot = HotRoutes()
    hot.endpoint(max_bytes=0)(lambda _: Response())
    with pytest.raises(RuntimeError):
        hot.collect(APIRouter())
