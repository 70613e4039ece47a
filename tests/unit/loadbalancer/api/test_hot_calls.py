"""Requests that reach their handler from the HTTP server directly, against those that come through the framework."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import re
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import generate_latest
from starlette.responses import StreamingResponse
from uvicorn.server import ServerState

from configs.sections import Access, Server
from loadbalancer.access.access_control import AccessControl
from loadbalancer.access.api_keys import ApiKey, Authenticator, KeyRing, fingerprint
from loadbalancer.api.app import add_error_handlers
from loadbalancer.api.body_budget import BodyBudget
from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.hot_calls import HotCalls
from loadbalancer.api.hot_routes import HotRequest, HotRoutes
from loadbalancer.api.middleware import ApiMiddleware
from loadbalancer.http_server.parse_queue import AWAITED_COST, PER_TURN
from loadbalancer.http_server.protocol import BoundedHttpProtocol
from loadbalancer.http_server.server import HttpConfig
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.schema.errors import InvalidRequest
from scripts.harness.processes import wait_until
from tests.support.certificates import needs_openssl, self_signed
from tests.support.http_server import HttpService, RecordingTransport, http_service, read_all
from wire.snapshot import Snapshot

LARGE = 3 << 20
CHUNKED = (
    b"POST /echo/a HTTP/1.1\r\nHost: a.localhost\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n0\r\n\r\n"
)


@dataclass
class Keys:
    """Any keys."""

    ring: KeyRing | None = None


class Owner:
    """Holds the future of its response, which calls it at its end: so do the calls of engines."""

    def __init__(self) -> None:
        self.response: asyncio.Future[Response] = asyncio.get_running_loop().create_future()
        self.response.set_result(FrameResponse([b"owned"], "text/plain", on_end=self.close))

    def close(self) -> None:
        pass


@dataclass
class Application:
    """Hot routes inside the middleware, and what their handlers have seen."""

    keys: Keys = field(default_factory=Keys)
    started: list[str] = field(default_factory=list)
    cancelled: list[str] = field(default_factory=list)
    ended: list[str] = field(default_factory=list)
    through_framework: list[str] = field(default_factory=list)
    owners: list[weakref.ref[Owner]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.metrics = Metrics(lambda: Snapshot(0.0, 1.0, [], []), lambda _: [])
        self.control = AccessControl(Access(), Authenticator("t" * 43, loopback=True), self.keys)
        self.release = threading.Event()

    def build(self) -> ApiMiddleware:
        router, hot, app = APIRouter(), HotRoutes(), FastAPI()
        for method, path, handler in (
            ("POST", "/echo/{name}", self.echo),
            ("POST", "/fails", self.fails),
            ("POST", "/fails-later", self.fails_later),
            ("GET", "/waits", self.waits),
            ("GET", "/large", self.large),
            ("GET", "/stream", self.stream),
            ("GET", "/plain", self.plain),
            ("GET", "/owned", self.owned),
        ):
            router.add_api_route(path, hot.endpoint(max_bytes=1000)(handler), methods=[method])

        @app.middleware("http")
        async def count(request: Request, call_next: Callable[[Request], Any]) -> Response:
            self.through_framework.append(request.url.path)
            response: Response = await call_next(request)
            return response

        app.include_router(router)
        hot.collect(router)
        add_error_handlers(app)
        bodies = BodyBudget(1 << 20, 1 << 20, self.metrics.refusals)
        calls = HotCalls(hot, self.control, self.metrics)
        return ApiMiddleware(app, app, Access(), self.control, self.metrics, bodies, calls)

    async def echo(self, request: HotRequest) -> Response:
        await asyncio.sleep(0)
        text = {"name": request.params["name"], "body": request.body.decode(), "owner": request.caller.owner}
        return FrameResponse([json.dumps(text).encode()], "application/json")

    def fails(self, request: HotRequest) -> Response:
        if request.body == b"known":
            raise InvalidRequest("It is known.")
        if request.body == b"header":
            return FrameResponse([b"x"], "text/plain\r\nx-evil: 1", on_end=lambda: self.ended.append("header"))
        raise RuntimeError("secret detail")

    async def fails_later(self, request: HotRequest) -> Response:
        await asyncio.sleep(0)
        return self.fails(request)

    async def waits(self, _: HotRequest) -> Response:
        self.started.append("waits")
        try:
            while not self.release.is_set():
                await asyncio.sleep(0.01)
        except asyncio.CancelledError:
            self.cancelled.append("waits")
            raise
        return FrameResponse([b"waited"], "text/plain")

    def large(self, _: HotRequest) -> Response:
        self.started.append("large")
        frames: list[bytes | memoryview] = [memoryview(bytes(LARGE)), b"end"]
        return FrameResponse(frames, "application/octet-stream", on_end=lambda: self.ended.append("large"))

    def stream(self, _: HotRequest) -> Response:
        async def parts() -> AsyncIterator[bytes]:
            try:
                yield b"a"
                while not self.release.is_set():
                    await asyncio.sleep(0.01)
                yield b"b"
            finally:
                self.ended.append("stream")

        return StreamingResponse(parts(), media_type="text/plain")

    def plain(self, _: HotRequest) -> Response:
        return Response(b"plain", 201, {"x-a": "b"})

    def owned(self, _: HotRequest) -> asyncio.Future[Response]:
        owner = Owner()
        self.owners.append(weakref.ref(owner))
        return owner.response

    def count(self, route: str, status: int) -> bool:
        """Whether a request has been counted that ended so."""
        line = f'muster_http_requests_total{{route="{route}",status="{status}"}}'
        return line.encode() in generate_latest(self.metrics.registry)


@contextlib.contextmanager
def running(keys: Mapping[str, ApiKey] | None = None, **options: Any) -> Iterator[tuple[Application, HttpService]]:
    """`options` are those of `http_service`."""
    application = Application(Keys(KeyRing(dict(keys)) if keys else None))
    with http_service(app=application.build(), **options) as service:
        yield application, service
        application.release.set()
    assert application.control.posts == 0


def post(path: str, body: bytes, *headers: bytes, close: bool = True) -> bytes:
    lines = [b"Host: 127.0.0.1", b"Content-Length: %d" % len(body), *headers, *([b"Connection: close"] * close)]
    return b"POST %s HTTP/1.1\r\n%s\r\n\r\n%s" % (path.encode(), b"\r\n".join(lines), body)


def get(path: str, *, close: bool = True) -> bytes:
    end = b"Connection: close\r\n\r\n" if close else b"\r\n"
    return b"GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n%s" % (path.encode(), end)


def statuses(answers: bytes) -> list[int]:
    return [int(each) for each in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


@pytest.fixture(scope="module")
def shared() -> Iterator[tuple[Application, HttpService]]:
    with running() as found:
        yield found


@pytest.mark.parametrize(
    ("headers", "through_framework"),
    [
        ([], False),
        ([b"Content-Type: image/png", b"X-Forwarded-For: 1.2.3.4", b"Accept: */*"], False),
        ([b"Origin: http://127.0.0.1"], True),
        ([b"Idempotency-Key: a"], True),
        ([b"Content-Encoding: identity"], True),
        ([b"Expect: 100-continue"], True),
    ],
)
def test_both_ways_have_the_same_answer(
    shared: tuple[Application, HttpService], headers: list[bytes], through_framework: bool
) -> None:
    application, service = shared
    application.through_framework.clear()
    application.ended.clear()
    answer = service.exchange(post("/echo/a?b=c", b"text", b"X-Request-Id: mine", *headers))
    head, _, body = answer.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    assert json.loads(body) == {"name": "a", "body": "text", "owner": "anonymous"}
    assert b"HTTP/1.1 200 OK" in head
    assert head.count(b"\r\nx-request-id: mine") == 1
    assert head.count(b"\r\nconnection: close") == 1
    assert application.through_framework == ["/echo/a"] * through_framework
    wait_until(lambda: application.count("/echo/{name}", 200), "the request is counted")


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (post("/echo/a", b"x" * 1001), 413),
        (CHUNKED, 200),
        (post("/echo/%61", b""), 200),
        (b"POST /echo/a HTTP/1.0\r\nContent-Length: 1\r\n\r\nx", 200),
        (post("/echo/\xc3", b""), 400),
        (get("/echo/a"), 405),
        (get("/plain"), 201),
        (post("/echo/a?" + "&" * 100, b""), 400),
        (post("/echo/a", b"").replace(b"127.0.0.1", b"example.org"), 403),
        (b"HEAD /plain HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", 201),
    ],
)
def test_requests_that_are_unusual(shared: tuple[Application, HttpService], request_bytes: bytes, status: int) -> None:
    _, service = shared
    assert statuses(service.exchange(request_bytes)) == [status]


@pytest.mark.parametrize("path", ["/fails", "/fails-later"])
@pytest.mark.parametrize(
    ("body", "status", "text"), [(b"known", 400, b"known"), (b"", 500, b"Its id is"), (b"header", 500, b"")]
)
def test_failures_are_answered(
    shared: tuple[Application, HttpService], path: str, body: bytes, status: int, text: bytes
) -> None:
    application, service = shared
    application.through_framework.clear()
    application.ended.clear()
    answer = service.exchange(post(path, body))
    assert statuses(answer) == [status]
    assert text in answer
    assert b"secret" not in answer
    assert b"x-evil" not in answer
    assert application.ended == ["header"] * (body == b"header")
    wait_until(lambda: application.count(path, status), "the request is counted")
    code = "invalid_value" if status == 400 else "internal_error"
    counted = f'muster_http_errors_total{{code="{code}",status="{status}"}}'
    assert counted.encode() in generate_latest(application.metrics.registry)


def test_client_that_leaves_cancels_its_call() -> None:
    with running() as (application, service):
        with service.connect() as connection:
            connection.sendall(get("/waits"))
            wait_until(lambda: bool(application.started), "the handler has begun")
        wait_until(lambda: bool(application.cancelled), "the handler is cancelled")
        wait_until(lambda: application.count("/waits", 499), "the request is counted")


def test_client_that_leaves_within_its_body_is_counted() -> None:
    with running() as (application, service):
        with service.connect() as connection:
            connection.sendall(post("/echo/a", b"text")[:-2])
        wait_until(lambda: application.count("/echo/{name}", 499), "the request is counted")


def test_answer_ends_when_it_has_been_read() -> None:
    with running() as (application, service):
        with service.connect(receive_buffer=4096) as connection:
            connection.sendall(get("/large"))
            wait_until(lambda: bool(application.started), "the handler has begun")
            assert not application.ended
            answer = read_all(connection)
        assert answer.endswith(b"\0end")
        assert len(answer.partition(b"\r\n\r\n")[2]) == LARGE + 3
        wait_until(lambda: bool(application.ended), "the answer has ended")


@needs_openssl
def test_large_answer_over_tls(tmp_path: Path) -> None:
    with running(certificate=self_signed(tmp_path, "server")) as (application, service):
        with service.connect(receive_buffer=4096) as connection:
            connection.sendall(get("/large"))
            wait_until(lambda: bool(application.started), "the handler has begun")
            assert not application.ended
            answer = read_all(connection)
        assert len(answer.partition(b"\r\n\r\n")[2]) == LARGE + 3
        wait_until(lambda: bool(application.ended), "the answer has ended")


def test_slow_body_is_refused() -> None:
    with running(body_timeout_s=0.3, min_body_rate=1000) as (application, service):
        answer = service.exchange(post("/echo/a", b"text")[:-2])
        assert statuses(answer) == [408]
        wait_until(lambda: application.count("/echo/{name}", 499), "the request is counted")


@pytest.mark.parametrize(("path", "per_turn"), [("/plain", PER_TURN), ("/waits", PER_TURN // AWAITED_COST)])
async def test_a_crowd_begins_over_turns(path: str, per_turn: int) -> None:
    application = Application()
    config = HttpConfig(application.build(), Server(), 5000, RefusalCounter(), lifespan="off", log_config=None)
    crowd = [(BoundedHttpProtocol(config, ServerState()), RecordingTransport()) for _ in range(2 * PER_TURN)]
    for protocol, transport in crowd:
        protocol.connection_made(transport)
        protocol.data_received(get(path))
    waiting = len(config.parse_queue)
    for protocol, _ in crowd:
        protocol.connection_lost(None)
    assert len(crowd) - waiting == per_turn
    await asyncio.sleep(0)


@pytest.mark.parametrize("path", ["/owned", "/plain", "/large"])
async def test_nothing_waits_for_a_collection_of_garbage(path: str) -> None:
    """Results would be held until then, and full collections would be pauses."""
    application = Application()
    config = HttpConfig(application.build(), Server(), 10, RefusalCounter(), lifespan="off", log_config=None)
    protocol, transport = BoundedHttpProtocol(config, ServerState()), RecordingTransport()
    protocol.connection_made(transport)
    gc.disable()
    try:
        protocol.data_received(get(path, close=False))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert b" 20" in transport.written
        assert [owner() for owner in application.owners] == [None] * (path == "/owned")
        protocol.connection_lost(None)
        connection = weakref.ref(protocol)
        del protocol
        await asyncio.sleep(0)
        assert connection() is None
    finally:
        gc.enable()


def test_client_that_leaves_ends_its_answer() -> None:
    with running() as (application, service):
        with service.connect(receive_buffer=4096) as connection:
            connection.sendall(get("/large"))
            wait_until(lambda: bool(application.started), "the handler has begun")
        wait_until(lambda: bool(application.ended), "the answer has ended")
        assert application.ended == ["large"]


def test_a_stream_is_sent_as_it_comes() -> None:
    with running() as (application, service):
        with service.connect() as connection:
            connection.sendall(get("/stream"))
            received = b""
            while not received.endswith(b"1\r\na\r\n"):
                received += connection.recv(1000)
            application.release.set()
            received += read_all(connection)
        assert received.endswith(b"1\r\na\r\n1\r\nb\r\n0\r\n\r\n")
        assert b"x-request-id" in received
        wait_until(lambda: application.count("/stream", 200), "the request is counted")


def test_a_stream_whose_client_leaves_ends() -> None:
    with running() as (application, service):
        with service.connect() as connection:
            connection.sendall(get("/stream"))
            connection.recv(1000)
        wait_until(lambda: bool(application.ended), "the stream has ended")


def test_pipelined_requests_are_answered_in_order() -> None:
    with running() as (_, service):
        sent = [post(f"/echo/{n}", b"x" * (n % 7), close=False) + get("/plain", close=False) for n in range(200)]
        answers = service.exchange(*sent, get("/plain"))
        assert statuses(answers) == [200, 201] * 200 + [201]
        assert [int(n) for n in re.findall(rb'"name": "(\d+)"', answers)] == list(range(200))


def test_limits_of_a_key_count() -> None:
    key = ApiKey(fingerprint("secret"), requests_per_minute=2)
    with running({"ann": key}) as (application, service):
        requests = [post("/echo/a", b"", b"Authorization: Bearer secret", close=False) for _ in range(3)]
        answers = service.exchange(*requests, post("/echo/a", b"", b"Authorization: Bearer other"))
        assert statuses(answers) == [200, 200, 429, 401]
        assert answers.count(b'"owner": "ann"') == 2
        assert answers.count(b"x-ratelimit-limit-requests: 2\r\n") == 3
        assert application.through_framework == []


def test_revoked_key_ends_on_an_open_connection() -> None:
    keys = {"ann": ApiKey(fingerprint("secret"))}
    with running(keys) as (application, service), service.connect() as connection:
        request = post("/echo/a", b"text", b"Authorization: Bearer secret", close=False)
        for ring, status in ((KeyRing(keys), 200), (KeyRing(keys), 200), (KeyRing({}), 401), (KeyRing(keys), 200)):
            application.keys.ring = ring
            connection.sendall(request)
            answer = b""
            while not answer.endswith(b"}"):
                answer += connection.recv(4096)
            assert statuses(answer) == [status]
