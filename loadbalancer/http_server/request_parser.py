"""Parses the requests of a connection, within limits.

uvicorn's own protocol bounds neither headers nor trailers. It also ends a request that offers an upgrade at its
headers, so that the body would be parsed as the next request. RFC 9110, section 7.8: an offer that is not accepted is
ignored, and the body is read.
"""

from __future__ import annotations

import abc
import asyncio
import time
import urllib.parse
from collections import deque
from typing import TYPE_CHECKING, Any

import httptools
from starlette.types import ASGIApp
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl

from loadbalancer.api.direct_calls import MAX_DIRECT_BYTES, DirectCall
from loadbalancer.http_server.connection_table import client_of
from loadbalancer.http_server.exchange import Exchange
from loadbalancer.http_server.input_budget import FREE_BYTES
from loadbalancer.http_server.parse_queue import CHUNKS_PER_COST
from loadbalancer.http_server.stages import BODY, HANDLING, HEAD, IDLE, NEW, REFUSED
from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.http_errors import (
    ConnectRefused,
    ExpectationFailed,
    HeadersTooLarge,
    InputMemoryFull,
    MalformedRequest,
    TooManyConnections,
    UnknownTransferCoding,
    UriTooLong,
)

if TYPE_CHECKING:
    from loadbalancer.http_server.server import HttpConfig

#: Input is parsed in pieces of at most this many bytes, which end where headers end: the parser cannot be stopped, and
#: the next request waits for the response to this one.
_SLICE = 4096
#: Pieces of a body whose end is known.
_BODY_SLICE = 16 * 2**10
#: Minimum size of a piece of a body in chunks, in which the end of headers means nothing.
_MIN_CHUNKED_SLICE = 64
#: Memory of a header beside its bytes.
_BYTES_PER_HEADER = 160
_END_OF_HEAD = b"\r\n\r\n"
#: Bytes of trailers and chunk extensions, beyond those that each chunk needs.
MAX_CHUNK_OVERHEAD = 16 * 2**10
_BYTES_PER_CHUNK = 24
#: Chunks that are parsed before other connections have their turn.
MAX_CHUNKS_AT_ONCE = 500
#: Unread rest of a body that is discarded after its response, so that the connection can be used again.
MAX_DISCARD = 2**20

_HEALTH = (b"/healthz", b"/livez", b"/readyz", b"/health")
_HEALTH_REQUESTS = tuple(method + path + b" " for method in (b"GET ", b"HEAD ") for path in _HEALTH)
#: Paths that are answered on connections beyond `server.max_connections`.
_UNRESTRICTED_PATHS = frozenset((*_HEALTH, b"/metrics"))
_SPECIAL_HEADERS = frozenset({b"expect", b"transfer-encoding"})


def _new_parser(protocol: object) -> Any:
    parser = httptools.HttpRequestParser(protocol)
    # Data after a request that closes the connection is ignored, not an error.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


class BoundedRequestParser(asyncio.Protocol, abc.ABC):
    """The input of a connection."""

    transport: asyncio.Transport
    flow: FlowControl

    def __init__(self, config: HttpConfig) -> None:
        self.config = config
        self._limits = config.limits
        self._parser = _new_parser(self)
        #: Address and port of both sides, and the scheme, once they are known.
        self.client: tuple[str, int] | None = None
        self.server: tuple[str, int | None] | None = None
        self.scheme = "http"
        self._stage = NEW
        #: When the stage began, and for a body its current window.
        self._since = time.monotonic()
        #: Bytes of all input, and at the start of the window.
        self._received = self._window_received = 0
        #: Input that waits for an earlier response, or for its turn.
        self._unparsed = b""
        self._awaits_turn = False
        #: Bytes of this connection in the budget of all.
        self._counted_input = 0
        self._refusal: ApiError | None = None
        #: Whether only health checks and the controller are answered.
        self.restricted = False
        #: Messages that began in the current piece of input.
        self._messages = 0
        # The current message
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self._incomplete_bytes = self._hosts = 0
        self._is_chunked = False
        #: Declared by the header Content-Length, or 0.
        self._length = 0
        self._wire_bytes = self._body_bytes = 0
        #: Chunks of all messages, and those before the current message.
        self._chunks = self._first_chunk = 0
        #: Whether the current message had more chunks in one piece of input than are parsed at once.
        self._has_small_chunks = False
        #: Whether the client waits with the body for a response, and whether it has said so.
        self._awaits_continue = self._expects_continue = False
        #: The request without the upgrade that it offers, to be parsed again.
        self._without_upgrade: bytes | None = None
        #: The last request, and the one whose response is next on the wire.
        self._last: Exchange | None = None
        self._active: Exchange | None = None
        #: Those whose responses are due after it.
        self.pipeline: deque[Exchange] = deque()

    @abc.abstractmethod
    def _refuse(self, error: ApiError) -> None:
        """Answer with the error, after the responses to earlier requests, and close. Nothing more is parsed."""

    @abc.abstractmethod
    def _close(self) -> None:
        """Close the connection such that the client can read the response."""

    @abc.abstractmethod
    def _start(self, exchange: Exchange) -> None:
        """Answer it: it is the turn of this exchange."""

    @abc.abstractmethod
    def start_task(self, exchange: Exchange, app: ASGIApp) -> None:
        """Let an application answer."""

    @abc.abstractmethod
    def on_response_complete(self, exchange: Exchange) -> None:
        """The response is written, and the client has read most of it."""

    @abc.abstractmethod
    def log_access(self, method: str, status: int) -> None:
        """Log a response."""

    def data_received(self, data: bytes) -> None:
        self._received += len(data)
        stage = self._stage
        if stage >= REFUSED:
            return
        if self._unparsed or (stage > IDLE and self._is_blocked()):
            self._set_aside(self._unparsed + data)
        elif (stage == BODY and not self._has_small_chunks) or self.config.parse_queue.try_begin():
            self._parse_slices(data)
        else:
            self._unparsed = data
            self._wait_for_turn()
        if self._unparsed or self._stage == HEAD or self._counted_input:
            self._count_input()

    def connection_lost(self, _: Exception | None) -> None:
        self.config.input_budget.change(self._counted_input, 0)
        self._counted_input = 0
        self._parser = None

    def _is_blocked(self) -> bool:
        """Whether a request has arrived completely whose response is due."""
        active = self._active
        return active is not None and not active.response_complete and not active.more_body

    def _count_input(self, *, may_resume: bool = True) -> None:
        """Count input that is held, and refuse it if that of all connections is too much.

        `may_resume`: a complete head may begin a large body, for which there are other limits, so it is parsed first.
        A body waits only if its chunks are small.
        """
        size = len(self._unparsed)
        if self._stage == HEAD:
            size += self._incomplete_bytes + _BYTES_PER_HEADER * len(self.headers)
        before, self._counted_input = self._counted_input, max(size - FREE_BYTES, 0)
        if before == self._counted_input or self.config.input_budget.change(before, self._counted_input):
            return
        is_complete = _END_OF_HEAD in self._unparsed
        stage = self._stage
        if stage in (HEAD, BODY) or self._is_blocked() or (stage < HEAD and not (is_complete and may_resume)):
            text = "Incomplete requests of other connections fill the memory for them. Please try again shortly."
            self._refuse(InputMemoryFull(text, retry_after_s=1))
            self._count_input()
        elif stage < HEAD:
            self._resume_parsing()

    def _parse_or_wait(self) -> None:
        """Parse what was set aside, or have it parsed when other connections have had their turn."""
        if self._awaits_turn or self._is_blocked():
            return
        if self.config.parse_queue.try_begin():
            self._resume_parsing()
        else:
            self._wait_for_turn()

    def _wait_for_turn(self) -> None:
        self._awaits_turn = True
        self._set_aside(self._unparsed)
        client = client_of(self.client[0]) if self.client else ""
        is_health = self._stage in (NEW, IDLE) and self._unparsed.startswith(_HEALTH_REQUESTS)
        self.config.parse_queue.add(client, self._resume_parsing, is_health=is_health)

    def _set_aside(self, data: bytes) -> None:
        """Keep input. A little more is read, because otherwise nobody would notice a disconnect."""
        self._unparsed = data
        if len(data) > _SLICE:
            self.flow.pause_reading()

    def resume_reading(self) -> None:
        """Read on, unless requests are queued."""
        if self.flow.read_paused and not (self.pipeline or self._unparsed):
            self.flow.resume_reading()

    def _resume_parsing(self) -> None:
        """Parse input that had to wait."""
        self._awaits_turn = False
        data, self._unparsed = self._unparsed, b""
        if self._parser is None:
            return
        if self.transport.is_closing():
            self._count_input()
        elif data and self._stage < HANDLING and not self._is_blocked():
            self._parse_slices(data)
            self.resume_reading()
            self._count_input(may_resume=False)  # what follows an answered request is another one
        else:
            self._unparsed = data

    def _parse_slices(self, data: bytes) -> None:
        """Parse up to the end of a request; the rest is parsed after its response."""
        chunks, start, size = self._chunks, 0, len(data)
        while start < size:
            stop = self._end_of_slice(data, start)
            self._parse(data if not start and stop >= size else memoryview(data)[start:stop])
            start = stop
            if start >= size or self._stage >= REFUSED or self.transport.is_closing():
                return  # nobody would read the responses to what follows
            active = self._active
            is_blocked = active is not None and not active.response_complete and not active.more_body
            # A request that was answered at once gives way to other connections before the next one.
            has_small_chunks = self._chunks - chunks > MAX_CHUNKS_AT_ONCE
            if is_blocked or self._stage == IDLE or has_small_chunks:
                self._has_small_chunks |= has_small_chunks
                self._set_aside(data[start:])
                if not is_blocked:
                    self._wait_for_turn()
                return

    def _end_of_slice(self, data: bytes, start: int) -> int:
        if self._stage == HEAD and start < len(_END_OF_HEAD):  # the end of the headers may have begun in earlier input
            line_end = data.find(b"\n", start, start + _SLICE)
            return line_end + 1 or start + _SLICE
        if self._stage == BODY and not self._is_chunked:
            return start + min(max(self._length - self._body_bytes, 1), _BODY_SLICE)
        first = start + _MIN_CHUNKED_SLICE if self._stage == BODY else start
        found = data.find(_END_OF_HEAD, first, start + _SLICE + len(_END_OF_HEAD) - 1)
        return start + _SLICE if found < 0 else found + len(_END_OF_HEAD)

    def _parse(self, data: bytes | memoryview) -> None:
        self._messages, chunks = 0, self._chunks
        try:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                self._feed_without_upgrade(memoryview(data)[offer.args[0] :])
        except httptools.HttpParserError:
            self._refuse(self._refusal or MalformedRequest("The request is not valid HTTP/1.1."))
            return
        if self._chunks != chunks:
            self.config.parse_queue.add_cost((self._chunks - chunks) // CHUNKS_PER_COST)
        if self._stage == HEAD:
            self._check_incomplete_head(len(data))
        elif self._stage == BODY and (self._is_chunked or self._body_bytes > MAX_DISCARD):
            self._check_incomplete_body(len(data))

    def _feed_without_upgrade(self, rest: memoryview) -> None:
        """Parse the head again, without the upgrade that it offered, and what follows it."""
        while True:
            head, self._without_upgrade = self._without_upgrade, None
            assert head is not None
            self._parser = _new_parser(self)
            self._parser.feed_data(head)
            if not rest:
                return
            try:
                self._parser.feed_data(rest)
                return
            except httptools.HttpParserUpgrade as offer:  # of the next request
                rest = rest[offer.args[0] :]

    def _check_incomplete_head(self, size: int) -> None:
        """Refuse an endless request line or header, of which the parser reports nothing before its end."""
        if len(self.url) > self._limits.max_request_line_bytes:
            self._refuse(self._uri_too_long())
            return
        if self._messages:  # its bytes in this piece are not known, and no more than a piece has
            return
        self._incomplete_bytes += size
        limits = self._limits
        if (
            self._incomplete_bytes > limits.max_request_line_bytes + limits.max_header_bytes
            or len(self.headers) > limits.max_headers
        ):
            self._refuse(self._headers_too_large())

    def _check_incomplete_body(self, size: int) -> None:
        assert self._last is not None
        if not self._is_chunked:
            if self._last.response_complete and self._body_bytes > MAX_DISCARD:
                self._close()
            return
        # Of the piece with the headers only the body counts.
        self._wire_bytes = self._body_bytes if self._messages else self._wire_bytes + size
        overhead = self._wire_bytes - self._body_bytes - _BYTES_PER_CHUNK * (self._chunks - self._first_chunk)
        if overhead > MAX_CHUNK_OVERHEAD:
            text = f"Chunk extensions and trailers are larger than {MAX_CHUNK_OVERHEAD} bytes, the maximum."
            self._refuse(MalformedRequest(text))
        elif self._last.response_complete and self._body_bytes > MAX_DISCARD:
            self._close()

    # ---- callbacks of the parser; an exception ends the parsing

    def on_message_begin(self) -> None:
        if self._stage != HEAD:
            self._stage, self._since = HEAD, time.monotonic()
        self._messages += 1
        self._incomplete_bytes = self._hosts = self._length = 0
        self._is_chunked = self._expects_continue = self._has_small_chunks = False
        self.url = b""
        self.headers = []

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._stage == BODY:  # a trailer: nothing here needs them
            return
        name = name.lower()
        if name == b"host":
            self._hosts += 1
        elif name == b"content-length":
            self._length = int(value) if value.isdigit() else 0  # the parser refuses other values
        elif name in _SPECIAL_HEADERS:
            self._on_special_header(name, value.strip().lower())
        self.headers.append((name, value))

    def _on_special_header(self, name: bytes, value: bytes) -> None:
        if name == b"expect":
            if value != b"100-continue":
                raise self._failure(ExpectationFailed("The only supported expectation is 100-continue."))
            self._expects_continue = True
        else:
            if value != b"chunked":
                raise self._failure(UnknownTransferCoding("The only supported Transfer-Encoding is chunked."))
            self._is_chunked, self._first_chunk = True, self._chunks

    def on_headers_complete(self) -> None:
        headers, limits, parser = self.headers, self._limits, self._parser
        if len(self.url) > limits.max_request_line_bytes:
            raise self._failure(self._uri_too_long())
        if len(headers) > limits.max_headers:
            raise self._failure(self._headers_too_large())
        # A head within two slices is small enough.
        if (self._incomplete_bytes or limits.max_header_bytes < 2 * _SLICE) and (
            sum(len(name) + len(value) + 4 for name, value in headers) > limits.max_header_bytes
        ):
            raise self._failure(self._headers_too_large())
        method = parser.get_method()
        if parser.should_upgrade():
            if method == b"CONNECT":
                raise self._failure(ConnectRefused("CONNECT is not supported: this server is no proxy."))
            self._without_upgrade = self._head_without_upgrade()
            return
        if self._hosts != 1:
            self._check_host()
        if self.restricted:
            self._check_restricted()
        self._stage, self._since = BODY, time.monotonic()
        self._window_received = self._received
        self._body_bytes = 0
        self._awaits_continue = self._expects_continue
        self._add_exchange(method)

    def _add_exchange(self, method: bytes) -> None:
        """Take the request whose headers are complete, and let the application answer it if it is the next one."""
        version, direct = self._parser.get_http_version(), self.config.direct
        call: DirectCall | None = None
        if direct is not None and self._length <= MAX_DIRECT_BYTES and not (self._is_chunked or self._expects_continue):
            call = direct.find(method, self.url, self.headers)
        # On a restricted connection a client does not hold its place with further requests.
        keep_alive = version != "1.0" and not self.restricted and self._parser.should_keep_alive()
        scope = None if call is not None else self._scope(method, version)
        name, expects = method.decode("ascii"), self._expects_continue
        exchange = self._last = Exchange(
            self, name, scope, call, self.headers, keep_alive=keep_alive, expects_continue=expects
        )
        active = self._active
        if active is None or active.response_complete:
            self._active = exchange
            if call is None:
                self._start(exchange)
        else:  # of a slice that holds more than one request
            self.flow.pause_reading()
            self.pipeline.append(exchange)

    def _scope(self, method: bytes, version: str) -> dict[str, Any]:
        """The scope of ASGI. Raises `UnicodeDecodeError` and `HttpParserInvalidURLError` for a malformed URL."""
        url = httptools.parse_url(self.url)
        path = url.path.decode("ascii")
        return {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": method.decode("ascii"),
            "root_path": "",
            "path": urllib.parse.unquote(path) if "%" in path else path,
            "raw_path": url.path,
            "query_string": url.query or b"",
            "headers": self.headers,
            "state": {},
        }

    def on_chunk_header(self) -> None:
        self._chunks += 1

    def on_body(self, body: bytes) -> None:
        self._body_bytes += len(body)
        self._awaits_continue = False
        exchange = self._last
        assert exchange is not None
        if not exchange.response_complete and exchange.add_body(body) > HIGH_WATER_LIMIT:
            self.flow.pause_reading()

    def on_message_complete(self) -> None:
        if self._without_upgrade is not None:
            return
        exchange = self._last
        assert exchange is not None
        if exchange.response_complete:
            self._stage, self._since = IDLE, time.monotonic()
            return
        self._stage = HANDLING
        exchange.end_body(is_next=exchange is self._active)

    def _head_without_upgrade(self) -> bytes:
        version = self._parser.get_http_version().encode()
        lines = [self._parser.get_method() + b" " + self.url + b" HTTP/" + version]
        lines += [name + b": " + value for name, value in self.headers if name != b"upgrade"]
        return b"\r\n".join((*lines, b"", b""))

    def _check_host(self) -> None:
        if self._hosts > 1:
            raise self._failure(MalformedRequest("The request has more than one Host header."))
        if self._parser.get_http_version() != "1.0":
            raise self._failure(MalformedRequest("The request has no Host header."))

    def _check_restricted(self) -> None:
        path = self.url.partition(b"?")[0]
        if path in _UNRESTRICTED_PATHS or self.config.is_internal(dict(self.headers).get(b"authorization", b"")):
            return
        raise self._failure(TooManyConnections("Too many connections. Please try again shortly.", retry_after_s=1))

    def _uri_too_long(self) -> UriTooLong:
        limit = self._limits.max_request_line_bytes
        return UriTooLong(f"The request line is longer than {limit} bytes, the maximum.")

    def _headers_too_large(self) -> HeadersTooLarge:
        limits = self._limits
        text = f"The maximum is {limits.max_headers} headers with {limits.max_header_bytes} bytes together."
        return HeadersTooLarge(text)

    def _failure(self, error: ApiError) -> ApiError:
        self._refusal = error
        return error
