"""How many requests of one connection wait for earlier responses."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from configs.sections import Server
from loadbalancer.http_server.protocol import BoundedHttpProtocol
from loadbalancer.http_server.server import HttpConfig
from loadbalancer.metrics.refusals import RefusalCounter
from tests.support.http_server import RecordingTransport

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"


@pytest.mark.parametrize("request_bytes", [GET, POST])
@pytest.mark.parametrize("piece", [100, 1000, 4096, 20_000, 70_000])
async def test_requests_in_memory_are_few(request_bytes: bytes, piece: int) -> None:
    """The rest of what has arrived is kept as bytes, and then all are answered in order."""
    gate, answered = asyncio.Event(), 0

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal answered
        await gate.wait()
        answered += 1
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    config = HttpConfig(app, Server(), 10, RefusalCounter(), lifespan="off", log_config=None, access_log=False)
    transport = RecordingTransport()
    protocol = BoundedHttpProtocol(config, ServerState())
    protocol.connection_made(transport)
    data, most = request_bytes * 2000, 0
    for start in range(0, len(data), piece):
        protocol.data_received(data[start : start + piece])
        most = max(most, len(protocol.pipeline))
    assert most == 0
    gate.set()
    async with asyncio.timeout(30):
        while answered < 2000:
            await asyncio.sleep(0)
            assert not protocol.pipeline
    assert transport.written.count(b"HTTP/1.1 200 ") == 2000
    protocol.connection_lost(None)
    await asyncio.gather(*protocol.server_state.tasks)
