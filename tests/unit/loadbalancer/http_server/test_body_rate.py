"""The minimum rate of a body: what counts, and what is the server's own delay."""

from __future__ import annotations

import asyncio
import time

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from configs.sections import Server
from loadbalancer.http_server.protocol import BoundedHttpProtocol
from loadbalancer.http_server.server import HttpConfig
from loadbalancer.metrics.refusals import RefusalCounter
from tests.support.http_server import RecordingTransport

HEAD = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n"

SLOW = b"HTTP/1.1 408 Request Timeout"


async def wait_for_ever(scope: Scope, receive: Receive, send: Send) -> None:
    await asyncio.Event().wait()


@pytest.mark.parametrize(
    ("head", "sizes", "expected"),
    [
        pytest.param(HEAD, [11_000, 11_000, 11_000], b"", id="steady"),
        pytest.param(HEAD, [9_000], SLOW, id="too slow"),
        pytest.param(HEAD, [50_000, 0], SLOW, id="a start does not count for later"),
        pytest.param(HEAD, [0], SLOW, id="nothing"),
        pytest.param(HEAD + b"Expect: 100-continue\r\n", [0, 0, 0], b"", id="the client waits for this server"),
        pytest.param(HEAD, [100_000, 0, 0], b"", id="reading is paused"),
    ],
)
def test_rate_in_each_window(head: bytes, sizes: list[int], expected: bytes) -> None:
    """Windows of 10 s, at least 1000 bytes/s, of an application that never reads."""

    async def run() -> bytes:
        limits = Server(body_timeout_s=10.0, min_body_rate=1000)
        config = HttpConfig(wait_for_ever, limits, 10, RefusalCounter(), lifespan="off", log_config=None)
        transport = RecordingTransport()
        protocol = BoundedHttpProtocol(config, ServerState())
        protocol.connection_made(transport)
        protocol.data_received(head + b"\r\n")
        now = time.monotonic()
        for size in sizes:
            if size:
                protocol.data_received(b"x" * size)
            now += 10.001
            protocol.check_deadlines(now)
        for task in protocol.server_state.tasks:
            task.cancel()
        return transport.written.partition(b"\r\n")[0]

    assert asyncio.run(run()) == expected
