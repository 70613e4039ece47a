"""Streams that their source writes to the connection itself, without an application in between."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest
from starlette.types import Receive, Scope, Send

from loadbalancer.api.direct_calls import MAX_DIRECT_BYTES, HeaderList, Responder, ResponseWriter
from scripts.harness.processes import PATIENCE_S
from tests.support.http_server import echo, http_service, read_all

REQUEST = b"POST /s HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\n{}"
CLOSING = b"GET /last HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
PART = b"x" * 50_000


class PushesParts:
    """An application whose POST requests are answered by so many parts, one in each turn of the loop."""

    max_bytes = MAX_DIRECT_BYTES

    def __init__(self, parts: int) -> None:
        self.direct, self.parts = self, parts
        self.writer: ResponseWriter | None = None
        #: Most bytes that waited for the client.
        self.max_unread = 0
        self.ended = threading.Event()
        self.ends = 0

    def find(self, method: bytes, target: bytes, headers: HeaderList) -> PushesParts | None:
        del target, headers
        return self if method == b"POST" else None

    def new_call(self, headers: HeaderList) -> PushesParts:
        del headers
        return self

    def begin(self, responder: Responder, body: bytes) -> None:
        assert body == b"{}"
        self.writer = responder.stream(200, [(b"content-type", b"text/event-stream")], self._on_end)
        self._left = self.parts
        asyncio.get_running_loop().call_soon(self._push)

    def _push(self) -> None:
        assert self.writer is not None
        if not self._left:
            self.writer.finish()
            self.writer.finish()
            return
        self._left -= 1
        self.max_unread = max(self.max_unread, self.writer.write(PART))
        asyncio.get_running_loop().call_soon(self._push)

    def _on_end(self) -> None:
        self.ends += 1
        self.ended.set()

    def cancel(self) -> None:
        """Its client has left."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await echo(scope, receive, send)


def unchunked(body: bytes) -> tuple[bytes, bytes]:
    """Return the content of a chunked body, and what follows it."""
    found = []
    while True:
        size, _, body = body.partition(b"\r\n")
        length = int(size, 16)
        found.append(body[:length])
        body = body[length + 2 :]
        if not length:
            return b"".join(found), body


@pytest.mark.parametrize("slow", [False, True])
def test_stream_is_complete_and_the_next_request_is_answered(slow: bool) -> None:
    app = PushesParts(100)
    with http_service(app=app) as service, service.connect(receive_buffer=4096 if slow else 0) as client:
        client.sendall(REQUEST + CLOSING)
        if slow:  # the server has written all of it before anything is read
            deadline = time.monotonic() + PATIENCE_S
            while app.max_unread < 10 * len(PART) and time.monotonic() < deadline:
                time.sleep(0.01)
            assert not app.ended.is_set(), "it ends when its client has read it"
        head, _, rest = read_all(client).partition(b"\r\n\r\n")
        assert b"transfer-encoding: chunked" in head.lower()
        content, following = unchunked(rest)
        assert content == PART * 100
        assert following.startswith(b"HTTP/1.1 200")
        assert app.ended.wait(PATIENCE_S)
        assert app.ends == 1


def test_client_that_leaves_ends_the_stream() -> None:
    app = PushesParts(10**9)
    with http_service(app=app) as service:
        with service.connect() as client:
            client.sendall(REQUEST)
            assert client.recv(100)
        assert app.ended.wait(PATIENCE_S)
        assert app.ends == 1
        app._left = 0
        assert app.writer is not None
        assert app.writer.write(PART) == 0, "nothing is written any more"
