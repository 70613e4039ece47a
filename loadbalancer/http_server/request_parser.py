"""Takes the input of a connection, and parses it in turns and within limits.

uvicorn's own protocol bounds neither headers nor trailers. It also ends a request that offers an upgrade at its
headers, so that the body would be parsed as the next request. RFC 9110, section 7.8: an offer that is not accepted is
ignored, and the body is read.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import httptools

from loadbalancer.http_server.connection_table import client_of
from loadbalancer.http_server.exchange import Exchange
from loadbalancer.http_server.input_budget import FREE_BYTES
from loadbalancer.http_server.message_parser import HEALTH, SLICE, MessageParser, new_parser
from loadbalancer.http_server.parse_queue import CHUNKS_PER_COST
from loadbalancer.http_server.repeated_head import RepeatedHead, repeated_head
from loadbalancer.http_server.stages import BODY, HANDLING, HEAD, IDLE, NEW, REFUSED
from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.http_errors import IncompleteRequest, InputMemoryFull, MalformedRequest, UnsupportedMethod

if TYPE_CHECKING:
    from loadbalancer.http_server.server import HttpConfig

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
#: Direct requests in a row with other heads than those before. After them, the heads of the connection are not kept.
MAX_OTHER_HEADS = 8
#: A request line, whose method the parser does not know.
_REQUEST_LINE = re.compile(rb"([A-Za-z-]{1,32}) [!-~]+ HTTP/1\.[01]\r\n")
_HEALTH_REQUESTS = tuple(method + path + b" " for method in (b"GET ", b"HEAD ") for path in HEALTH)


def _error(error: httptools.HttpParserError, data: bytes | memoryview) -> ApiError:
    """Return the error of what the parser has refused. `data` are its last piece of input."""
    if isinstance(error, httptools.HttpParserInvalidMethodError) and (found := _REQUEST_LINE.match(data)):
        return UnsupportedMethod(f"The method {found[1].decode()} is not supported. Methods are in upper case.")
    return MalformedRequest(f"The request is not valid HTTP/1.1{_reason(error)}.")


def _reason(error: httptools.HttpParserError) -> str:
    """What the parser says about the bytes, none of which are in it."""
    if isinstance(error, httptools.HttpParserCallbackError):
        return ""
    text = str(error)
    if text.startswith("Pause"):
        return ": HTTP/2 is not supported"
    is_header = "-" in text.partition(" ")[0]
    return f": {text if is_header else text[:1].lower() + text[1:]}"


class BoundedRequestParser(MessageParser):
    """The input of a connection."""

    def __init__(self, config: HttpConfig) -> None:
        super().__init__(config)
        #: Input that waits for an earlier response, or for its turn.
        self._unparsed = b""
        self._awaits_turn = False
        #: Bytes of this connection in the budget of all.
        self._counted_input = 0
        self._wire_bytes = 0
        #: That of the last direct request, and how many in a row have had another one.
        self._repeated_head: RepeatedHead | None = None
        self._other_heads = 0

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

    def eof_received(self) -> None:
        """Answer a request that ends too early. After a complete one, this is how a client leaves."""
        if self._stage in (HEAD, BODY) and not self._unparsed:
            self._refuse(IncompleteRequest("The request is cut short: its client has closed before the end of it."))

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
        if len(data) > SLICE:
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
        chunks, start, size, stage = self._chunks, 0, len(data), self._stage
        repeated = self._repeated_head
        if repeated is not None and stage == IDLE and (found := repeated.match(data)):
            # A complete request whose head is that of the last one. The parser does not notice it.
            self._other_heads, self._stage = 0, HANDLING
            self.url, (self.headers, body) = repeated.url, found
            call = repeated.direct.new_call(self.headers)
            exchange = Exchange(self, repeated.method, None, call, self.headers, body=body, more_body=False)
            self._last = self._active = exchange
            exchange.begin_call()
            return
        while start < size:
            stop = self._end_of_slice(data, start)
            self._parse(data if not start and stop >= size else memoryview(data)[start:stop])
            if not start and stage <= IDLE and self._direct_head is not None:
                self._remember_head(data[:stop])
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

    def _remember_head(self, data: bytes) -> None:
        """Keep the complete head of a direct request, unless those of this client differ each time."""
        exchange, head = self._last, self._direct_head
        if exchange is None or head is None or self._messages != 1 or self._body_bytes:
            return  # the data are not exactly one head
        self._other_heads += 1
        is_kept = self._other_heads <= MAX_OTHER_HEADS
        self._repeated_head = repeated_head(data, self.headers, exchange.method, self.url, head) if is_kept else None

    def _end_of_slice(self, data: bytes, start: int) -> int:
        if self._stage == HEAD and start < len(_END_OF_HEAD):  # the end of the headers may have begun in earlier input
            line_end = data.find(b"\n", start, start + SLICE)
            return line_end + 1 or start + SLICE
        if self._stage == BODY and not self._is_chunked:
            return start + min(max(self._length - self._body_bytes, 1), _BODY_SLICE)
        first = start + _MIN_CHUNKED_SLICE if self._stage == BODY else start
        found = data.find(_END_OF_HEAD, first, start + SLICE + len(_END_OF_HEAD) - 1)
        return start + SLICE if found < 0 else found + len(_END_OF_HEAD)

    def _parse(self, data: bytes | memoryview) -> None:
        self._messages, chunks = 0, self._chunks
        try:
            try:
                self._parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                self._feed_without_upgrade(memoryview(data)[offer.args[0] :])
        except httptools.HttpParserError as error:
            self._refuse(self._refusal or _error(error, data))
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
            self._parser = new_parser(self)
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
