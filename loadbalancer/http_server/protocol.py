"""One HTTP connection: responses, the close, and time limits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import msgspec
from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle
from uvicorn.server import ServerState

from loadbalancer.api.http_helpers import error_response
from loadbalancer.http_server.request_parser import (
    BODY,
    HANDLING,
    HEAD,
    IDLE,
    LINGERING,
    NEW,
    REFUSED,
    BoundedRequestParser,
)
from loadbalancer.http_server.tls import TlsHandshake
from loadbalancer.http_server.transport import InputFlowControl, LingeringTransport
from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.http_errors import RequestTimeout

if TYPE_CHECKING:
    from loadbalancer.http_server.server import HttpConfig

#: A client that reads this many bytes within `server.send_timeout_s` is not slow.
MIN_PROGRESS_BYTES = 64 * 2**10
#: Seconds for a client to read its response while the rest of its request is discarded: in all, and without input.
_LINGER_S, _LINGER_IDLE_S = 5.0, 2.0

_encode = msgspec.json.Encoder().encode


class BoundedHttpProtocol(BoundedRequestParser):
    """A connection with limits. `check_deadlines` must be called regularly."""

    def __init__(
        self,
        config: HttpConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        handshake: TlsHandshake | None = None,
    ) -> None:
        """`handshake` has been this connection in the table until now."""
        super().__init__(config, server_state, app_state, _loop)
        self._handshake = handshake
        self._socket: asyncio.Transport = None  # type: ignore[assignment]
        self.address = ""
        #: The request whose response is next on the wire.
        self._active: RequestResponseCycle | None = None
        self._linger_until = 0.0
        self._send_timer: asyncio.TimerHandle | None = None
        #: Buffered bytes of a response when the timer was started.
        self._buffered = 0
        #: Those of a complete response, and since when they have not decreased.
        self._unread, self._unread_since = 0, float("inf")

    # ---- the connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._socket = transport
        lingering = LingeringTransport(transport, self._close, lambda: self._stage == LINGERING)
        super().connection_made(lingering)  # type: ignore[arg-type]
        self.flow = InputFlowControl(lingering, self._has_queued_input)
        self.address = self.client[0] if self.client else ""
        if self._handshake is not None:
            self.config.table.remove(self._handshake)
        self.config.table.admit(self, self._since)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_send_timer()
        self.config.table.remove(self)
        active = self._active
        if active is not None and not active.response_complete:
            active.disconnected = True
            active.message_event.set()
        self.pipeline.clear()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        if self._stage >= REFUSED and self._active is None:
            self._socket.close()
        else:
            super().shutdown()

    def abort(self) -> None:
        self._socket.abort()

    def idle_since(self) -> float | None:
        """When it became idle, or began to send headers. None while a request is under way."""
        return self._since if self._stage in (NEW, IDLE, HEAD, LINGERING) and not self._is_busy() else None

    def _has_queued_input(self) -> bool:
        return bool(self.pipeline or self._unparsed)

    def _is_busy(self) -> bool:
        return self._active is not None and not self._active.response_complete

    def _close(self) -> None:
        """Close after the response. Input that is under way is discarded for a while, so that the client reads it."""
        socket = self._socket
        if self._stage in (BODY, REFUSED) and socket.can_write_eof() and not socket.is_closing():
            self._stage, self._since = LINGERING, self.loop.time()
            self._linger_until, self._window_received = self._since + _LINGER_S, self._received
            socket.write_eof()
            self.flow.resume_reading()
        elif self._stage != LINGERING:
            socket.close()

    # ---- responses

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._active = cycle
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        if self._stage == LINGERING or self._socket.is_closing():
            return
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            self.flow.resume_reading()
            return
        if self._stage == BODY and self._awaits_continue:
            self._close()  # the client does not send the body now, but may send another request
            return
        if self._stage == HANDLING:
            self._stage, self._since = IDLE, self.loop.time()
        if self._unparsed:
            self._resume_parsing()
        self.flow.resume_reading()

    def _refuse(self, error: ApiError) -> None:
        """Answer with the error, after the responses to earlier requests, and close. Nothing more is parsed."""
        self.config.refusals.add(error.code or "")
        stage, self._stage = self._stage, REFUSED
        self._unparsed = b""
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
        self.pipeline.appendleft((cycle, error_response(error)))  # type: ignore[arg-type]

    # ---- time

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_send_timer()
        self._start_send_timer()

    def resume_writing(self) -> None:
        self._stop_send_timer()
        super().resume_writing()

    def _start_send_timer(self) -> None:
        self._buffered = self._socket.get_write_buffer_size()
        self._send_timer = self.loop.call_later(self._limits.send_timeout_s, self._check_send_progress)

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _check_send_progress(self) -> None:
        if self._buffered - self._socket.get_write_buffer_size() >= MIN_PROGRESS_BYTES:
            self._start_send_timer()
            return
        self._send_timer = None
        self.config.on_slow_reader()
        self._socket.abort()  # `close` would wait for the client, too

    def check_deadlines(self, now: float) -> None:
        """End what takes too long."""
        stage, limits = self._stage, self._limits
        if self._socket.is_closing() or stage in (IDLE, LINGERING):
            self._check_unread_response(now)
        if self._socket.is_closing():
            return
        waited_s = now - self._since
        if stage == NEW and waited_s >= limits.header_timeout_s:
            self.config.refusals.add("silent_connection")
            self._socket.close()
        elif stage == IDLE and waited_s >= limits.keep_alive_s:
            self._socket.close()
        elif stage == HEAD:
            if self.flow.read_paused:
                self._since = now
            elif waited_s >= limits.header_timeout_s:
                text = f"The headers did not arrive within {limits.header_timeout_s:g} s."
                self._refuse(RequestTimeout(text))
        elif stage == BODY:
            self._check_body_rate(now)
        elif stage == LINGERING:
            self._check_lingering(now)

    def _check_body_rate(self, now: float) -> None:
        if self.flow.read_paused or self.cycle.waiting_for_100_continue or self.cycle is not self._active:
            self._since, self._window_received = now, self._received  # it is this server that waits
            return
        limits, waited_s = self._limits, now - self._since
        if waited_s < limits.body_timeout_s:
            return
        if self._received - self._window_received < limits.min_body_rate * waited_s:
            text = f"The body arrives at less than {limits.min_body_rate} bytes/s over {limits.body_timeout_s:g} s."
            self._refuse(RequestTimeout(text))
        else:
            self._since, self._window_received = now, self._received

    def _check_lingering(self, now: float) -> None:
        if self._window_received != self._received:
            self._window_received, self._since = self._received, now
        if now - self._since >= _LINGER_IDLE_S or now >= self._linger_until:
            self._socket.abort()

    def _check_unread_response(self, now: float) -> None:
        """Abort a connection whose client does not read the rest of its last response."""
        size = self._socket.get_write_buffer_size()
        if size == 0 and not self._socket.is_closing():
            self._unread_since = float("inf")
        elif self._unread_since > now or self._unread - size >= MIN_PROGRESS_BYTES:
            self._unread_since, self._unread = now, size
        elif now - self._unread_since >= self._limits.send_timeout_s:
            self.config.on_slow_reader()
            self._socket.abort()
