"""Requests that repeat the head of the one before are taken without parsing, and are the same as parsed ones."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from configs.sections import Server
from loadbalancer.api.direct_calls import HeaderList, Responder
from loadbalancer.http_server.protocol import BoundedHttpProtocol
from loadbalancer.http_server.repeated_head import MAX_HEAD_BYTES, RepeatedHead, repeated_head
from loadbalancer.http_server.request_parser import MAX_OTHER_HEADS
from loadbalancer.http_server.server import HttpConfig
from loadbalancer.metrics.refusals import RefusalCounter
from tests.support.http_server import RecordingTransport, echo

MAX_BYTES = 5000
HEAD = b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\nX: y\r\n\r\n"
GET = b"GET /a HTTP/1.1\r\nHost: a\r\n\r\n"


@dataclass
class AnswersAll:
    """An application whose requests are all direct calls. It keeps what they were, and answers at once."""

    max_bytes: int = MAX_BYTES
    found: int = 0
    calls: list[tuple[HeaderList, bytes]] = field(default_factory=list)

    @property
    def direct(self) -> AnswersAll:
        return self

    def find(self, method: bytes, target: bytes, headers: HeaderList) -> AnswersAll:
        del method, target, headers
        self.found += 1
        return self

    def new_call(self, headers: HeaderList) -> Call:
        return Call(self, headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)


@dataclass
class Call:
    app: AnswersAll
    headers: HeaderList

    def begin(self, responder: Responder, body: bytes) -> None:
        self.app.calls.append((self.headers, body))
        responder.respond(200, [(b"content-length", b"0")], [], lambda: None)

    def cancel(self) -> None:
        pass


def connected() -> tuple[AnswersAll, BoundedHttpProtocol, RecordingTransport]:
    app, transport = AnswersAll(), RecordingTransport()
    config = HttpConfig(app, Server(), 10, RefusalCounter(), lifespan="off", log_config=None, access_log=False)
    protocol = BoundedHttpProtocol(config, ServerState())
    protocol.connection_made(transport)
    return app, protocol, transport


def head_of(data: bytes) -> RepeatedHead | None:
    headers: HeaderList = []
    for line in data.split(b"\r\n")[1:]:
        if b":" in line:
            name, _, value = line.partition(b":")
            headers.append((name.strip().lower(), value.strip()))
    return repeated_head(data, headers, "POST", b"/a", AnswersAll())


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (HEAD % 3 + b"abc", b"abc"),
        (HEAD % 0, b""),
        (HEAD % 12 + b"x" * 12, b"x" * 12),
        (HEAD % MAX_BYTES + b"x" * MAX_BYTES, b"x" * MAX_BYTES),
        (HEAD % (MAX_BYTES + 1) + b"x" * (MAX_BYTES + 1), None),
        (HEAD % 3 + b"ab", None),
        (HEAD % 3 + b"abcd", None),
        (HEAD % 3, None),
        (HEAD.replace(b"%d", b"+3") + b"abc", None),
        (HEAD.replace(b"%d", b"") + b"abc", None),
        (HEAD.replace(b"%d", b"3 ") + b"abc", None),
        (HEAD.replace(b"%d", b"1000000") + b"abc", None),
        (HEAD.replace(b"/a", b"/b") % 3 + b"abc", None),
        (HEAD.replace(b"X: y", b"X: z") % 3 + b"abc", None),
        ((HEAD % 3)[:-1], None),
        (b"", None),
    ],
)
def test_only_one_whole_request_with_this_head_counts(data: bytes, body: bytes | None) -> None:
    head = head_of(HEAD % 7)
    assert head is not None
    found = head.match(data)
    if body is None:
        assert found is None
    else:
        assert found == ([(b"host", b"a"), (b"content-length", b"%d" % len(body)), (b"x", b"y")], body)


@pytest.mark.parametrize("data", [GET + b"x", GET[:-1], GET + GET])
def test_head_without_a_body_is_compared_as_a_whole(data: bytes) -> None:
    head = head_of(GET)
    assert head is not None
    assert head.match(GET) == ([(b"host", b"a")], b"")
    assert head.match(data) is None


@pytest.mark.parametrize(
    "data",
    [
        b"POST /a HTTP/1.1\r\nHost: a\r\nX: y\n\nabc\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\ncontent-length: 3\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length : 3\r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: a\r\nContent-Length: 3 \r\n\r\n",
        b"POST /a HTTP/1.1\r\nHost: %b\r\n\r\n" % (b"a" * MAX_HEAD_BYTES),
    ],
)
def test_heads_that_might_be_read_in_two_ways_are_parsed(data: bytes) -> None:
    assert head_of(data) is None


@given(st.lists(st.tuples(st.sampled_from([HEAD, HEAD.replace(b"X", b"Y"), GET]), st.binary(max_size=20)), max_size=12))
async def test_repeated_and_parsed_requests_are_the_same(requests: list[tuple[bytes, bytes]]) -> None:
    app, protocol, transport = connected()
    parsed = []
    for head, body in requests:
        data = head if head is GET else head % len(body) + body
        protocol.data_received(data)
        fresh, other, _ = connected()
        other.data_received(data)
        other.connection_lost(None)
        parsed += fresh.calls
    assert app.calls == parsed
    assert transport.written.count(b"HTTP/1.1 200 ") == len(requests)
    protocol.connection_lost(None)


@given(st.lists(st.binary(max_size=20), min_size=2, max_size=6), st.lists(st.integers(0, 500), max_size=5))
async def test_repeated_heads_in_any_pieces(bodies: list[bytes], cuts: list[int]) -> None:
    app, protocol, transport = connected()
    protocol.data_received(HEAD % 1 + b"x")
    data = b"".join(HEAD % len(body) + body for body in bodies)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    for start, stop in itertools.pairwise(places):
        if start < stop:
            protocol.data_received(data[start:stop])
    while len(protocol.config.parse_queue):
        protocol.config.parse_queue._run_turn()
    assert [body for _, body in app.calls] == [b"x", *bodies]
    assert transport.written.count(b"HTTP/1.1 200 ") == len(bodies) + 1
    protocol.connection_lost(None)


async def test_head_is_looked_up_once() -> None:
    app, protocol, _ = connected()
    for size in (3, 3, 0, 1000):
        protocol.data_received(HEAD % size + b"x" * size)
    assert app.found == 1
    assert [len(body) for _, body in app.calls] == [3, 3, 0, 1000]
    protocol.data_received(b"POST /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n")
    await asyncio.gather(*protocol.server_state.tasks)
    protocol.data_received(HEAD % 3 + b"abc")
    assert len(app.calls) == 5
    protocol.connection_lost(None)


async def test_client_with_other_heads_each_time_keeps_none() -> None:
    app, protocol, _ = connected()
    for number in range(2 * MAX_OTHER_HEADS):
        protocol.data_received(HEAD.replace(b"y", b"%d" % number) % 1 + b"x")
    before = app.found
    protocol.data_received(HEAD.replace(b"y", b"%d" % number) % 1 + b"x")
    assert app.found == before + 1
    protocol.connection_lost(None)
