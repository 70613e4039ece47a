"""What many connections may hold, and may make the event loop do in one turn."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket
import threading
from itertools import pairwise
from typing import Any, cast

import pytest
import uvloop
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from configs.sections import Server
from loadbalancer.http_server.connection_table import ConnectionTable
from loadbalancer.http_server.input_budget import FREE_BYTES, MAX_INPUT_BYTES, InputBudget
from loadbalancer.http_server.listener import ConnectionListener
from loadbalancer.http_server.parse_queue import CHUNKS_PER_COST, PER_TURN, TASK_COST
from loadbalancer.http_server.protocol import BoundedHttpProtocol
from loadbalancer.http_server.server import HttpConfig
from loadbalancer.metrics.refusals import RefusalCounter
from scripts.harness.processes import PATIENCE_S, wait_until
from tests.support.http_server import RecordingTransport, echo, http_service, read_all

GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
CHUNKED = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"
CHUNKED_HEAD = b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n"
SMALL_BODY = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
#: Requests in a turn whose answers are tasks.
A_TURN = PER_TURN // TASK_COST


class Crowd:
    """Connections to an application that never answers."""

    def __init__(self) -> None:
        self.begun: list[str] = []

        async def never(scope: Scope, receive: Receive, send: Send) -> None:
            self.begun.append(scope["path"])
            await asyncio.Event().wait()

        self.config = HttpConfig(never, Server(), 5000, RefusalCounter(), lifespan="off", log_config=None)
        self.state = ServerState()

    def open(self) -> tuple[BoundedHttpProtocol, RecordingTransport]:
        protocol = BoundedHttpProtocol(self.config, self.state)
        transport = RecordingTransport()
        protocol.connection_made(transport)
        return protocol, transport

    async def close(self) -> None:
        for task in self.state.tasks:
            task.cancel()
        await asyncio.gather(*self.state.tasks, return_exceptions=True)


def statuses(transport: RecordingTransport) -> list[int]:
    return [int(each) for each in re.findall(rb"HTTP/1\.1 (\d{3}) ", transport.written)]


def test_requests_that_arrive_at_once_begin_over_turns() -> None:
    async def run() -> list[int]:
        crowd = Crowd()
        for _ in range(3 * A_TURN):
            crowd.open()[0].data_received(GET)
        counts = []
        for _ in range(5):
            await asyncio.sleep(0)
            counts.append(len(crowd.begun))
        await crowd.close()
        return counts

    counts = asyncio.run(run())
    assert counts[-1] == 3 * A_TURN
    assert max(after - before for before, after in zip([0, *counts], counts, strict=False)) <= A_TURN


def test_a_health_check_overtakes_a_crowd() -> None:
    async def run() -> list[str]:
        crowd = Crowd()
        for _ in range(3 * A_TURN):
            crowd.open()[0].data_received(GET)
        crowd.open()[0].data_received(HEALTH)
        for _ in range(10):
            await asyncio.sleep(0)
        await crowd.close()
        return crowd.begun

    assert asyncio.run(run()).index("/healthz") <= A_TURN


@pytest.mark.parametrize("request_", [GET, CHUNKED, SMALL_BODY])
@pytest.mark.parametrize("piece", [1, 3, 7, 41, 4096, 1 << 18])
def test_pipelined_requests_are_not_parsed_early(request_: bytes, piece: int) -> None:
    """Each takes some kilobytes while it waits. A few may be parsed with the end of a body."""

    async def run() -> tuple[int, int]:
        crowd = Crowd()
        protocol, _ = crowd.open()
        data = request_ * 200
        for start in range(0, len(data), piece):
            protocol.data_received(data[start : start + piece])
            if start % 100 == 0:
                await asyncio.sleep(0)
        for _ in range(5):
            await asyncio.sleep(0)
        found = len(protocol.pipeline), len(crowd.begun)
        await crowd.close()
        return found

    queued, begun = asyncio.run(run())
    assert queued <= 2
    assert begun == 1


@pytest.mark.parametrize(
    "held",
    [
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: " + b"b" * 30_000,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + (b"a: " + b"b" * 1000 + b"\r\n") * 60,
        b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 90,
        GET + GET * 2000,
    ],
    ids=["long header", "long headers", "short headers", "pipelined requests"],
)
def test_held_input_of_all_connections_is_bounded(held: bytes) -> None:
    async def run() -> tuple[int, int, int]:
        crowd = Crowd()
        opened = []
        for _ in range(700):
            opened.append(crowd.open())
            with contextlib.suppress(AttributeError):  # the recording transport has no socket
                opened[-1][0].data_received(held)
            await asyncio.sleep(0)
        most = crowd.config.input_budget.held
        kept = sum(len(each._unparsed) + sum(len(value) for _, value in each.headers) for each, _ in opened)
        assert kept <= MAX_INPUT_BYTES + len(opened) * FREE_BYTES
        refused = crowd.config.refusals.counts["input_memory_full"]
        for protocol, _ in opened:
            protocol.connection_lost(None)
        await crowd.close()
        return most, refused, crowd.config.input_budget.held

    most, refused, left = asyncio.run(run())
    assert most <= MAX_INPUT_BYTES
    assert refused > 0
    assert left == 0


def test_an_ordinary_request_is_never_refused_for_others() -> None:
    async def run() -> list[str]:
        crowd = Crowd()
        crowd.config.input_budget.change(0, MAX_INPUT_BYTES)
        protocol, _ = crowd.open()
        head = b"GET /a HTTP/1.1\r\nHost: a\r\n" + b"a: b\r\n" * 8
        protocol.data_received(head)
        await asyncio.sleep(0)
        protocol.data_received(b"\r\n")
        await asyncio.sleep(0)
        await crowd.close()
        return crowd.begun

    assert asyncio.run(run()) == ["/a"]


def test_a_large_body_that_waits_is_parsed_when_memory_is_full() -> None:
    """It may be a complete request, for which other limits hold."""

    async def run() -> int:
        crowd = Crowd()
        crowd.config.input_budget.change(0, MAX_INPUT_BYTES)
        for _ in range(PER_TURN + 1):
            protocol, _ = crowd.open()
            protocol.data_received(b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 200000\r\n\r\n" + b"x" * 100_000)
        await asyncio.sleep(0)
        await crowd.close()
        return len(crowd.begun)

    assert asyncio.run(run()) == PER_TURN + 1


def test_budget_refuses_whoever_holds_bytes_beyond_it() -> None:
    budget = InputBudget(100)
    assert budget.change(0, 100)
    assert not budget.change(0, 50)
    assert not budget.change(50, 20), "all together hold too much, though it holds less than before"
    assert budget.held == 120
    assert budget.change(20, 0)
    assert budget.change(100, 90)
    assert FREE_BYTES < MAX_INPUT_BYTES


def test_pipelined_requests_are_answered_in_order() -> None:
    """Whatever the pieces are."""
    paths = [f"/{number}" for number in range(50)]
    pipelined = b"".join(f"GET {path} HTTP/1.1\r\nHost: a\r\n\r\n".encode() for path in paths)
    last = b"GET /last HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
    with http_service() as service:
        for piece in (5, 97, 100_000):
            data = pipelined + last
            pieces = [data[start : start + piece] for start in range(0, len(data), piece)]
            answer = service.exchange(*pieces)
            found = re.findall(rb'"path": "(/[^"]+)"', answer)
            assert [each.decode() for each in found] == [*paths, "/last"]


def test_a_disconnect_is_noticed_while_a_request_waits() -> None:
    ended: list[str] = []

    async def until_gone(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        ended.append(scope["path"])

    with http_service(app=cast("Any", until_gone)) as service:
        with service.connect() as connection:
            connection.sendall(GET + GET)
        wait_until(lambda: bool(ended), "the end of the first request")


def test_many_connections_at_once_are_all_served() -> None:
    with http_service(max_connections=1000) as service, contextlib.ExitStack() as stack:
        opened = [stack.enter_context(service.connect()) for _ in range(300)]
        for connection in opened:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert all(read_all(connection).startswith(b"HTTP/1.1 200 ") for connection in opened)


def test_a_crowd_displaces_no_health_check_that_came_with_it() -> None:
    """The event loop is busy while they arrive, so that all wait to be accepted."""
    blocked, arrived = threading.Event(), threading.Event()

    async def block(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/block":
            blocked.set()
            arrived.wait(PATIENCE_S)
        await echo(scope, receive, send)

    body = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n"
    with http_service(max_connections=16, app=block) as service, contextlib.ExitStack() as stack:

        def send(data: bytes) -> socket.socket:
            connection = stack.enter_context(service.connect())
            connection.sendall(data)
            return connection

        for _ in range(15):
            send(body)
        wait_until(lambda: len(service.config.table) == 15, "15 connections")
        send(b"GET /block HTTP/1.1\r\nHost: a\r\n\r\n")
        assert blocked.wait(PATIENCE_S)
        checks = []
        for _ in range(4):
            for _ in range(10):
                send(HEALTH[:-2])
            checks.append(send(HEALTH))
        arrived.set()
        assert [read_all(each)[:12] for each in checks] == [b"HTTP/1.1 200"] * 4


def test_pipelined_input_beyond_the_maximum_is_refused() -> None:
    """Also that of a connection whose first request was parsed, so that it holds less than before."""

    async def run() -> int:
        crowd = Crowd()
        many = GET * (MAX_INPUT_BYTES // len(GET) // 8)
        for _ in range(PER_TURN + 16):
            crowd.open()[0].data_received(many)
        await asyncio.sleep(0)
        held = crowd.config.input_budget.held
        await crowd.close()
        return held - MAX_INPUT_BYTES

    assert asyncio.run(run()) <= 0


def test_crowd_is_accepted_in_few_turns_of_the_loop() -> None:
    """The loop of the product: by itself it accepts one connection in a turn."""

    async def run() -> int:
        with contextlib.ExitStack() as opened:
            listener = opened.enter_context(socket.create_server(("127.0.0.1", 0), backlog=512))
            for _ in range(200):
                opened.enter_context(socket.create_connection(listener.getsockname()))
            accepted: list[asyncio.Protocol] = []

            def create(handshake: object) -> asyncio.Protocol:
                del handshake
                accepted.append(asyncio.Protocol())
                return accepted[-1]

            table = ConnectionTable(Server(), 1000, RefusalCounter())
            accepting = ConnectionListener(listener, None, table, RefusalCounter(), 5.0, create)
            turns = 0
            while len(accepted) < 200 and turns < 1000:
                await asyncio.sleep(0)
                turns += 1
            accepting.close()
            await accepting.wait_closed()
            return turns

    assert uvloop.run(run()) < 60


def test_chunks_that_are_parsed_in_a_turn_are_few() -> None:
    """Of all connections together, those that arrive with the headers and those that follow."""
    # The last piece of a turn has more chunks than cost 1.
    most = (PER_TURN + 8) * CHUNKS_PER_COST
    piece = b"1\r\na\r\n" * 2000

    async def run() -> tuple[list[int], int]:
        crowd = Crowd()
        opened, counts = [crowd.open()[0] for _ in range(60)], [0]
        for data in (CHUNKED_HEAD + piece, piece):
            for protocol in opened:
                protocol.data_received(data)
            for _ in range(60):
                counts.append(sum(each._chunks for each in opened))
                await asyncio.sleep(0)
        await crowd.close()
        return counts, crowd.config.refusals.counts["input_memory_full"]

    counts, refused = asyncio.run(run())
    assert counts[-1] == 60 * 2000 * 2
    assert max(after - before for before, after in pairwise(counts)) <= most
    assert refused == 0


def test_a_body_of_small_chunks_is_refused_where_memory_is_full() -> None:
    """Large chunks are parsed at once, for which there are other limits."""

    async def run() -> list[list[int]]:
        crowd = Crowd()
        crowd.config.input_budget.change(0, MAX_INPUT_BYTES)
        seen = []
        for chunks in (b"1\r\na\r\n" * 5000, b"4000\r\n" + b"a" * 16384 + b"\r\n"):
            protocol, transport = crowd.open()
            protocol.data_received(CHUNKED_HEAD)
            protocol.data_received(chunks)
            seen.append(statuses(transport))
        await crowd.close()
        return seen

    assert asyncio.run(run()) == [[503], []]
