"""Requests that offer an upgrade are parsed as those that do not, however their bytes are split."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from configs.sections import Server
from loadbalancer.http_server.protocol import BoundedHttpProtocol
from loadbalancer.http_server.server import HttpConfig
from loadbalancer.metrics.refusals import RefusalCounter
from tests.support.http_server import RecordingTransport

OFFERS = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
    b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n",
    b"Upgrade: foo\r\nConnection: keep-alive, upgrade\r\n",
    b"UPGRADE:\r\nconnection: Upgrade\r\n",
)
INNER = b"DELETE /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


@dataclass(frozen=True)
class Sent:
    """A request on the wire, without its offer."""

    method: str
    path: str
    body: bytes
    chunk: int | None
    trailer: bool = False

    def encoded(self, offer: bytes) -> bytes:
        head = f"{self.method} {self.path} HTTP/1.1\r\nHost: a\r\nX-Empty:\r\n".encode() + offer
        if self.chunk is None:
            return head + b"Content-Length: %d\r\n\r\n" % len(self.body) + self.body
        pieces = [self.body[at : at + self.chunk] for at in range(0, len(self.body), self.chunk)]
        chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(piece), piece) for piece in pieces)
        end = b"0\r\n" + (b"X-Trailer: 1\r\n" if self.trailer else b"") + b"\r\n"
        return head + b"Transfer-Encoding: chunked\r\n\r\n" + chunks + end


def parsed(data: bytes, cuts: list[int]) -> tuple[list[tuple[str, str, bytes]], bytes]:
    """The requests that the application gets, and the bytes that are written in response."""
    seen: list[tuple[str, str, bytes]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body, more = body + message["body"], message["more_body"]
        seen.append((scope["method"], scope["path"], body))
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"0")]})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> bytes:
        config = HttpConfig(app, Server(), 10, RefusalCounter(), lifespan="off", log_config=None, access_log=False)
        transport = RecordingTransport()
        protocol = BoundedHttpProtocol(config, ServerState())
        protocol.connection_made(transport)
        start = 0
        for end in [*sorted(cuts), len(data)]:
            if data[start:end]:
                protocol.data_received(data[start:end])
            start = end
            await asyncio.sleep(0)
        for _ in range(30):
            await asyncio.sleep(0)
        protocol.connection_lost(None)
        await asyncio.gather(*protocol.server_state.tasks)
        return transport.written

    return seen, asyncio.run(run())


requests = st.builds(
    Sent,
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "OPTIONS"]),
    st.sampled_from(["/", "/a?b=c", "/v1/jobs/%20"]),
    st.one_of(st.just(b""), st.just(INNER), st.binary(max_size=40)),
    st.one_of(st.none(), st.integers(1, 9)),
    st.booleans(),
)


@given(st.lists(st.tuples(requests, st.sampled_from((b"", *OFFERS))), min_size=1, max_size=4), st.data())
def test_offers_change_nothing(sent: list[tuple[Sent, bytes]], data: st.DataObject) -> None:
    plain = b"".join(request.encoded(b"") for request, _ in sent)
    offering = b"".join(request.encoded(offer) for request, offer in sent)
    cuts = data.draw(st.lists(st.integers(0, len(offering)), max_size=6))
    expected = [
        (request.method, request.path.partition("?")[0].replace("%20", " "), request.body) for request, _ in sent
    ]
    assert parsed(plain, []) == (parsed(offering, cuts))
    assert parsed(offering, cuts)[0] == expected


@pytest.mark.parametrize("offer", OFFERS)
@pytest.mark.parametrize("chunk", [None, 5])
def test_a_body_is_no_request_at_any_split(offer: bytes, chunk: int | None) -> None:
    data = Sent("POST", "/predict", INNER, chunk).encoded(offer)
    for cut in range(len(data)):
        assert parsed(data, [cut])[0] == [("POST", "/predict", INNER)]
