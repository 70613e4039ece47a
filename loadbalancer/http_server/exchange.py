"""One request of a connection and its response: what uvicorn's `RequestResponseCycle` does, at less cost."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import msgspec
from starlette.types import ASGIApp, Message, Scope
from uvicorn.protocols.http.httptools_impl import HEADER_VALUE_RE, STATUS_LINE

from loadbalancer.api.direct_calls import DirectCall, RawHeaders, ResponseWriter
from loadbalancer.http_server.parse_queue import AWAITED_COST
from loadbalancer.schema.errors import ApiError

if TYPE_CHECKING:
    from loadbalancer.http_server.message_parser import MessageParser

log = logging.getLogger(__name__)

#: Smaller responses are joined: that costs less than another buffer.
_JOINED_BYTES = 16 * 2**10
#: Of a response over TLS that is written before the client has read those before.
_PART_BYTES = 64 * 2**10
#: Statuses of responses that never have a body.
_WITHOUT_BODY = (204, 304)
_INTERNAL_ERROR = b"Internal Server Error"
_INVALID = HEADER_VALUE_RE.search


class Exchange(msgspec.Struct, eq=False):
    """`receive` and `send` are those of ASGI; `respond` and `run` are for direct calls."""

    _connection: MessageParser
    method: str
    #: That of the application; None for a direct call, and for a refusal.
    _scope: Scope | None
    call: DirectCall | None = None
    headers: Sequence[tuple[bytes, bytes]] = ()
    keep_alive: bool = True
    #: HTTP/1.0 has no chunks: the close ends a response without Content-Length.
    has_chunks: bool = True
    #: The client sends the body when it is told to continue.
    waiting_for_100_continue: bool = False
    #: An error that is answered when it is its turn.
    refusal: ApiError | None = None
    body: bytes | bytearray = b""
    more_body: bool = True
    #: Bytes of the response's body that were written.
    body_bytes: int = 0
    disconnected: bool = False
    response_started: bool = False
    response_complete: bool = False
    #: Whether `receive` has something to return, and what it waits for.
    _has_news: bool = False
    _event: asyncio.Event | None = None
    _head: bytes = b""
    #: The response has a body without Content-Length, and it is sent in chunks.
    _is_unbounded: bool = False
    _is_chunked: bool = False
    #: The body of a direct call is written part by part, and more may follow.
    _is_streaming: bool = False
    #: Bytes of the response that are not sent yet, of those that its Content-Length declares.
    _remaining: int = 0
    #: What is called when the response of a direct call has been read, and what is still to be written of it.
    _on_end: Callable[[], None] | None = None
    _parts: Iterator[memoryview] | None = None

    # ---- what arrives

    def add_body(self, data: bytes) -> int:
        """Keep a piece of the body until it is received. Return how much is kept."""
        body = self.body
        if not body:
            self.body = data
        elif isinstance(body, bytearray):
            body += data
        else:
            self.body = bytearray(body)
            self.body += data
        if self.call is None:
            self.notify()
        return len(self.body)

    def end_body(self, *, is_next: bool) -> None:
        """The body is complete. A direct call begins if its response `is_next` on the wire."""
        self.more_body = False
        if self.call is None:
            self.notify()
        elif is_next:
            self.begin_call()

    def disconnect(self) -> None:
        """The client has left, or is not answered any more."""
        self.disconnected = True
        self.notify()
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            self._parts, self._is_streaming = None, False
            on_end()
        elif self.call is not None:
            self.call.cancel()

    def notify(self) -> None:
        self._has_news = True
        if self._event is not None:
            self._event.set()

    # ---- direct calls

    @property
    def scheme(self) -> str:
        connection = self._connection
        if connection.client is not None and connection.config.is_trusted_proxy(connection.client[0]):
            for name, value in self.headers:
                if name == b"x-forwarded-proto" and value.strip() in (b"http", b"https"):
                    return value.strip().decode("ascii")
        return connection.scheme

    @property
    def server(self) -> tuple[str, int | None] | None:
        return self._connection.server

    def begin_call(self) -> None:
        body, self.body = self.body, b""
        if self.call is not None:
            self.call.begin(self, bytes(body))
            if not self.response_started:
                self._connection.config.parse_queue.add_cost(AWAITED_COST - 1)

    def respond(
        self,
        status: int,
        headers: RawHeaders,
        frames: Sequence[bytes | memoryview],
        on_end: Callable[[], None],
    ) -> None:
        if self.disconnected:
            on_end()
            return
        connection, head = self._connection, self._encode_head(status, headers)
        self._on_end = on_end
        self.body_bytes = size = self._remaining
        if size <= _JOINED_BYTES:
            connection.transport.write(b"".join((head, *frames)))
        elif connection.scheme == "http":
            connection.transport.writelines([head, *frames])
        else:  # what is written is encrypted at once, and held twice
            connection.transport.write(head)
            self._parts = _parts(frames)
        if not connection.flow.write_paused:
            self.continue_call()

    def stream(self, status: int, headers: RawHeaders, on_end: Callable[[], None]) -> ResponseWriter | None:
        if self.disconnected:
            on_end()
            return None
        self._head = self._encode_head(status, headers)
        self._on_end, self._is_streaming = on_end, True
        return self

    def write(self, data: bytes) -> int:
        """Send a part of a stream, with the head before the first."""
        if not self._is_streaming:
            return 0
        connection, head = self._connection, self._head
        if head:
            self._head = b""
        self.body_bytes += len(data)
        if self._is_chunked:
            data = b"%b%x\r\n%b\r\n" % (head, len(data), data)
        elif head:
            data = head + data
        connection.transport.write(data)
        return connection.transport.get_write_buffer_size() if connection.flow.write_paused else 0

    def finish(self) -> None:
        if self._is_streaming:
            self._is_streaming = False
            if end := self._head + (b"0\r\n\r\n" if self._is_chunked else b""):
                self._connection.transport.write(end)
            if not self._connection.flow.write_paused:
                self.continue_call()

    def continue_call(self) -> None:
        """The client has read what was written."""
        if self._on_end is None or self._is_streaming:
            return
        connection = self._connection
        while self._parts is not None and not connection.flow.write_paused:
            part = next(self._parts, None)
            if part is None:
                self._parts = None
            else:
                connection.transport.write(part)
        if not connection.flow.write_paused:
            on_end, self._on_end = self._on_end, None
            self.response_complete = True
            connection.on_response_complete(self)
            on_end()

    def run(self, app: ASGIApp, scope: Scope) -> None:
        self.call, self._scope = None, scope
        self._connection.start_task(self, app)

    # ---- ASGI

    async def run_asgi(self, app: ASGIApp) -> None:
        """Run the application. Its failure, or a response that it leaves incomplete, closes the connection."""
        failure: BaseException | None = None
        try:
            await app(self._scope or {}, self.receive, self.send)
        except BaseException as error:
            failure = error
        if failure is None and (self.disconnected or self.response_complete):
            return
        log.error("the application failed, or has not completed its response", exc_info=failure)
        if self.response_started:
            self._connection.transport.close()
        else:
            headers = [(b"content-length", b"%d" % len(_INTERNAL_ERROR)), (b"connection", b"close")]
            await self.send({"type": "http.response.start", "status": 500, "headers": headers})
            await self.send({"type": "http.response.body", "body": _INTERNAL_ERROR})

    async def receive(self) -> Message:
        connection = self._connection
        if self.waiting_for_100_continue and not connection.transport.is_closing():
            self.waiting_for_100_continue = False
            connection.transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if not self.disconnected and not self.response_complete:
            connection.resume_reading()
            if not self._has_news:
                if self._event is None:
                    self._event = asyncio.Event()
                await self._event.wait()
            self._has_news = False
            if self._event is not None:
                self._event.clear()
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        body, self.body = self.body, b""
        return {"type": "http.request", "body": bytes(body), "more_body": self.more_body}

    async def send(self, message: Message) -> None:
        """Raises `RuntimeError` for a message that is not allowed here."""
        connection = self._connection
        if connection.flow.write_paused and not self.disconnected:
            await connection.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if not self.response_started and kind == "http.response.start":
            self._head = self._encode_head(message["status"], message.get("headers", ()))
            if self._is_unbounded:  # the first part may take long
                connection.transport.write(self._head)
                self._head = b""
        elif self.response_started and not self.response_complete and kind == "http.response.body":
            self._send_body(message.get("body", b""), more=message.get("more_body", False))
        else:
            raise RuntimeError(f"unexpected ASGI message {kind!r}")

    def _send_body(self, body: bytes | memoryview, *, more: bool) -> None:
        connection, head, size = self._connection, self._head, len(body)
        self._head = b""
        self.body_bytes += size
        if self.method == "HEAD":
            self._remaining, body = 0, b""
        elif self._is_chunked:
            start, end = b"%x\r\n" % size if size else b"", b"\r\n" if size else b""
            body = b"".join((start, body, end if more else end + b"0\r\n\r\n"))
        elif not self._is_unbounded:
            self._remaining -= size
        if self._remaining < 0 or (self._remaining and not more):
            raise RuntimeError("the response is longer or shorter than its Content-Length")
        if head and len(body) <= _JOINED_BYTES:
            connection.transport.write(b"".join((head, body)))
        else:
            if head:
                connection.transport.write(head)
            if body:
                connection.transport.write(body)
        if not more:
            self.response_complete = True
            self.notify()
            connection.on_response_complete(self)

    # ---- both

    def _encode_head(self, status: int, headers: RawHeaders) -> bytes:
        """The status line and the headers. Raises `RuntimeError` for a header that would break the response."""
        connection = self._connection
        self._is_unbounded = self.method != "HEAD" and status not in _WITHOUT_BODY
        lines = [STATUS_LINE[status], connection.config.default_lines]
        for name, value in headers:
            if not value.isalnum() and _INVALID(value):  # names are those of this program
                raise RuntimeError("invalid HTTP header")
            if name == b"content-length":
                self._is_unbounded, self._remaining = False, int(value)
            elif name == b"connection" and value.lower() == b"close":
                self.keep_alive = False
                continue
            lines += (name, b": ", value, b"\r\n")
        self._is_chunked = self._is_unbounded and self.has_chunks
        if self._is_chunked:
            lines.append(b"transfer-encoding: chunked\r\n")
        lines.append(b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n")
        if connection.config.access_log:
            connection.log_access(self.method, status)
        self.response_started = True
        self.waiting_for_100_continue = False
        return b"".join(lines)


def _parts(frames: Sequence[bytes | memoryview]) -> Iterator[memoryview]:
    for frame in frames:
        view = memoryview(frame)
        for offset in range(0, len(view), _PART_BYTES):
            yield view[offset : offset + _PART_BYTES]
