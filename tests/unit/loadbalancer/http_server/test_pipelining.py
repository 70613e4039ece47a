"""How many requests of one connection wait for earlier responses."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from configs.sections import Server
from loadbalancer.api.direct_calls import MAX_DIRECT_BYTES, HeaderList, Responder
from loadbalancer.http_server.input_budget import FREE_BYTES
from loadbalancer.http_server.protocol import BoundedHttpProtocol
from loadbalancer.http_server.server import HttpConfig
from loadbalancer.metrics.refusals import RefusalCounter
from scripts.harness.processes import PATIENCE_S
from tests.support.http_server import RecordingTransport, echo

GET = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
HTTP_1_0 = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"


class AnswersAtOnce:
    """An application whose requests are all direct calls. It counts them."""

    max_bytes = MAX_DIRECT_BYTES

    def __init__(self) -> None:
        self.direct, self.begun = self, 0

    def find(self, method: bytes, target: bytes, headers: HeaderList) -> AnswersAtOnce:
        del method, target, headers
        return self

    def new_call(self, headers: HeaderList) -> AnswersAtOnce:
        del headers
        return self

    def begin(self, responder: Responder, body: bytes) -> None:
        del body
        self.begun += 1
        responder.respond(200, [(b"content-length", b"0")], [], lambda: None)

    def cancel(self) -> None:
        pass

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)


class ClosingTransport(RecordingTransport):
    """The client leaves when it is sent something."""

    def write(self, data: Any) -> None:
        super().write(data)
        self.closed = True


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
    async with asyncio.timeout(PATIENCE_S):
        while answered < 2000:
            await asyncio.sleep(0)
            assert not protocol.pipeline
    assert transport.written.count(b"HTTP/1.1 200 ") == 2000
    protocol.connection_lost(None)
    await asyncio.gather(*protocol.server_state.tasks)


@pytest.mark.parametrize(
    ("request_bytes", "kind", "is_restricted"),
    [
        (GET, ClosingTransport, False),
        (POST, ClosingTransport, False),
        (HTTP_1_0, RecordingTransport, False),
        (HEALTH, RecordingTransport, True),
    ],
    ids=["client left", "client left, bodies", "closed by HTTP/1.0", "closed by a restricted connection"],
)
@pytest.mark.parametrize("waits_first", [False, True])
async def test_nothing_is_parsed_after_the_close(
    request_bytes: bytes, kind: type[RecordingTransport], is_restricted: bool, waits_first: bool
) -> None:
    """The rest would be parsed in a single turn of the loop, because no request waits for a response any more."""
    app = AnswersAtOnce()
    config = HttpConfig(app, Server(), 1, RefusalCounter(), lifespan="off", log_config=None, access_log=False)
    state, transport = ServerState(), kind()
    if is_restricted:
        BoundedHttpProtocol(config, state).connection_made(RecordingTransport())
    protocol = BoundedHttpProtocol(config, state)
    protocol.connection_made(transport)
    if waits_first:
        config.parse_queue.add("other", lambda: None, is_health=True)
    protocol.data_received(request_bytes * (4 * FREE_BYTES // len(request_bytes)))
    for _ in range(5):
        await asyncio.sleep(0)
    assert app.begun == 1
    assert config.input_budget.held == 0
    protocol.connection_lost(None)


async def test_input_of_a_client_that_left_meanwhile_is_dropped() -> None:
    """It left while its requests waited for their turn."""
    app = AnswersAtOnce()
    config = HttpConfig(app, Server(), 1, RefusalCounter(), lifespan="off", log_config=None, access_log=False)
    transport, protocol = RecordingTransport(), BoundedHttpProtocol(config, ServerState())
    protocol.connection_made(transport)
    config.parse_queue.add("other", lambda: None, is_health=True)
    protocol.data_received(GET * (4 * FREE_BYTES // len(GET)))
    assert config.input_budget.held > 0
    transport.close()
    await asyncio.sleep(0)
    assert (app.begun, config.input_budget.held) == (0, 0)
    protocol.connection_lost(None)
