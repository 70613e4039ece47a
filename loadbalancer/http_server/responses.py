"""The responses of a connection, in the order of its requests, and its close."""

from __future__ import annotations

import asyncio
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from loadbalancer.api.http_helpers import error_response
from loadbalancer.http_server.request_parser import BoundedRequestParser
from loadbalancer.http_server.stages import BODY, HANDLING, HEAD, IDLE, LINGERING, REFUSED
from loadbalancer.http_server.transport import InputFlowControl, LingeringTransport
from loadbalancer.schema.errors import ApiError

if TYPE_CHECKING:
    from loadbalancer.http_server.server import HttpConfig

#: Seconds for a client to read its response while the rest of its request is discarded.
_LINGER_S = 5.0

_encode = msgspec.json.Encoder().encode


class OrderedResponses(BoundedRequestParser):
    """Input and output of a connection. An error response waits for the responses to earlier requests."""

    def __init__(
        self,
        config: HttpConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._socket: asyncio.Transport = None  # type: ignore[assignment]
        #: When the connection is closed, whatever the client still sends.
        self._linger_until = 0.0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._socket = transport
        lingering = LingeringTransport(transport, self._close, lambda: self._stage == LINGERING)
        super().connection_made(lingering)  # type: ignore[arg-type]
        self.flow = InputFlowControl(lingering, self._has_queued_input)

    def connection_lost(self, exc: Exception | None) -> None:
        active = self._active
        if active is not None and not active.response_complete:
            active.disconnected = True
            active.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def _has_queued_input(self) -> bool:
        return bool(self.pipeline or self._unparsed)

    def _is_busy(self) -> bool:
        return self._active is not None and not self._active.response_complete

    def _close(self) -> None:
        """Close after the response. Input that is under way is discarded for a while, so that the client reads it."""
        socket = self._socket
        if self._stage in (BODY, REFUSED) and socket.can_write_eof() and not socket.is_closing():
            self._stage, self._since, self._unparsed = LINGERING, self.loop.time(), b""
            self._linger_until, self._window_received = self._since + _LINGER_S, self._received
            socket.write_eof()
            self.flow.resume_reading()
        elif self._stage != LINGERING:
            socket.close()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self._active is not None:
            self._active.body = bytearray()  # what nobody has read
        if self._stage == LINGERING or self._socket.is_closing():
            return
        if self.pipeline:
            self._active, app = self.pipeline.pop()
            self._start_asgi_task(self._active, app)
            self._continue_input()
            return
        if self._stage == BODY and self._awaits_continue:
            self._close()  # the client does not send the body now, but may send another request
            return
        if self._stage == HANDLING:
            self._stage, self._since = IDLE, self.loop.time()
        self._continue_input()

    def _continue_input(self) -> None:
        if self._unparsed:
            self._parse_or_wait()
        else:
            self.flow.resume_reading()

    def _refuse(self, error: ApiError) -> None:
        """Answer with the error, after the responses to earlier requests, and close. Nothing more is parsed."""
        self.config.refusals.add(error.code or "")
        stage, self._stage = self._stage, REFUSED
        self._unparsed = b""
        if stage == HEAD:
            self.headers.clear()  # the connection may last for some seconds
        cycle = self.cycle
        if stage == BODY:  # the body of `cycle`
            if cycle is not self._active:
                self.pipeline.popleft()
            elif cycle.response_complete:
                self._close()
                return
            else:
                cycle.disconnected = True
                cycle.message_event.set()
                if cycle.response_started:
                    self._close()
                else:
                    self._write_error(error)
                return
        if self._is_busy():
            self._refuse_in_turn(error)
        else:
            self._write_error(error)

    def _write_error(self, error: ApiError) -> None:
        body = _encode(error.body)
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        headers["x-request-id"] = uuid.uuid4().hex
        lines = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
        lines += [name + b": " + value + b"\r\n" for name, value in self.server_state.default_headers]
        self._socket.write(b"".join((STATUS_LINE[error.status], *lines, b"\r\n", body)))
        self._close()

    def _refuse_in_turn(self, error: ApiError) -> None:
        """Queue the error behind the responses that are due."""
        self.flow.pause_reading()
        cycle = RequestResponseCycle(
            scope={**self.cycle.scope, "method": "GET"},
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=False,
            keep_alive=False,
            on_response=self.on_response_complete,
        )
        self.cycle = cycle
        response = error_response(error)
        response.headers["x-request-id"] = uuid.uuid4().hex
        self.pipeline.appendleft((cycle, response))  # type: ignore[arg-type]
