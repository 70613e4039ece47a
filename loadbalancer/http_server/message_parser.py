"""The messages of a connection as its parser reports them: their heads within limits, and their exchanges."""

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

from loadbalancer.api.direct_calls import MAX_DIRECT_BYTES, DirectHead, HeaderList
from loadbalancer.http_server.exchange import Exchange
from loadbalancer.http_server.request_target import parse_target, with_host
from loadbalancer.http_server.stages import BODY, HANDLING, HEAD, IDLE, NEW
from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.http_errors import (
    ExpectationFailed,
    HeadersTooLarge,
    MalformedRequest,
    TooManyConnections,
    UnknownHttpVersion,
    UnknownTransferCoding,
    UnsupportedMethod,
    UriTooLong,
)

if TYPE_CHECKING:
    from loadbalancer.http_server.server import HttpConfig

#: Input is parsed in pieces of at most this many bytes, which end where headers end: the parser cannot be stopped, and
#: the next request waits for the response to this one.
SLICE = 4096

#: Paths of health checks.
HEALTH = (b"/healthz", b"/livez", b"/readyz", b"/health")
#: Paths that are answered on connections beyond `server.max_connections`.
_UNRESTRICTED_PATHS = frozenset((*HEALTH, b"/metrics"))
_VERSIONS = ("1.1", "1.0")
_SPECIAL_HEADERS = frozenset({b"expect", b"transfer-encoding"})


def new_parser(protocol: object) -> Any:
    parser = httptools.HttpRequestParser(protocol)
    # Data after a request that closes the connection is ignored, not an error.
    parser.set_dangerous_leniencies(lenient_data_after_close=True)
    return parser


class MessageParser(asyncio.Protocol, abc.ABC):
    """The current message of a connection, and the exchanges that it begins."""

    transport: asyncio.Transport
    flow: FlowControl

    def __init__(self, config: HttpConfig) -> None:
        self.config = config
        self._limits = config.limits
        self._parser = new_parser(self)
        #: Address and port of both sides, and the scheme, once they are known.
        self.client: tuple[str, int] | None = None
        self.server: tuple[str, int | None] | None = None
        self.scheme = "http"
        self._stage = NEW
        #: When the stage began, and for a body its current window.
        self._since = time.monotonic()
        #: Bytes of all input, and at the start of the window.
        self._received = self._window_received = 0
        self._refusal: ApiError | None = None
        #: Whether only health checks and the controller are answered.
        self.restricted = False
        #: Messages that began in the current piece of input.
        self._messages = 0
        # The current message
        self.url = b""
        self.headers: HeaderList = []
        self._incomplete_bytes = self._hosts = 0
        self._is_chunked = False
        #: Declared by the header Content-Length, or 0.
        self._length = 0
        self._body_bytes = 0
        #: Chunks of all messages, and those before the current message.
        self._chunks = self._first_chunk = 0
        #: Whether the current message had more chunks in one piece of input than are parsed at once.
        self._has_small_chunks = False
        #: Whether the client waits with the body for a response, and whether it has said so.
        self._awaits_continue = self._expects_continue = False
        #: The request without the upgrade that it offers, to be parsed again.
        self._without_upgrade: bytes | None = None
        #: Where the current message is a request that is taken directly, and whose connection is kept.
        self._direct_head: DirectHead | None = None
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
    def resume_reading(self) -> None:
        """Read on, unless requests are queued."""

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

    # ---- callbacks of the parser; an exception ends the parsing

    def on_message_begin(self) -> None:
        if self._stage != HEAD:
            self._stage, self._since = HEAD, time.monotonic()
        self._messages += 1
        self._incomplete_bytes = self._hosts = self._length = 0
        self._is_chunked = self._expects_continue = self._has_small_chunks = False
        self._direct_head = None
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
            # HTTP/1.0 does not know the answer (RFC 9110, section 10.1.1).
            self._expects_continue = self._parser.get_http_version() != "1.0"
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
        if (self._incomplete_bytes or limits.max_header_bytes < 2 * SLICE) and (
            sum(len(name) + len(value) + 4 for name, value in headers) > limits.max_header_bytes
        ):
            raise self._failure(self._headers_too_large())
        method = parser.get_method()
        if parser.should_upgrade():
            if method == b"CONNECT":
                raise self._failure(UnsupportedMethod("CONNECT is not supported: this server is no proxy."))
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
        if version not in _VERSIONS:
            raise self._failure(UnknownHttpVersion(f"HTTP/{version} is not supported; use HTTP/1.1."))
        head: DirectHead | None = None
        if direct is not None and self._length <= MAX_DIRECT_BYTES and not (self._is_chunked or self._expects_continue):
            head = direct.find(method, self.url, self.headers)
        # On a restricted connection a client does not hold its place with further requests.
        has_chunks = version != "1.0"
        keep_alive = has_chunks and not self.restricted and self._parser.should_keep_alive()
        if keep_alive:
            self._direct_head = head
        call, scope = (None, self._scope(method, version)) if head is None else (head.new_call(self.headers), None)
        name, expects = method.decode("ascii"), self._expects_continue
        exchange = self._last = Exchange(
            self,
            name,
            scope,
            call,
            self.headers,
            keep_alive=keep_alive,
            has_chunks=has_chunks,
            waiting_for_100_continue=expects,
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
        """The scope of ASGI. The host of a target that is a URL replaces the header Host."""
        try:
            target = parse_target(self.url, method)
        except MalformedRequest as error:
            raise self._failure(error) from None
        if target.authority is not None:
            self.headers = with_host(self.headers, target.authority)
        path = target.path.decode("ascii")
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
            "raw_path": target.path,
            "query_string": target.query,
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
