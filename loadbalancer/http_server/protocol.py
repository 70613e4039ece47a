"""One HTTP connection: its place in the table of connections, and time limits."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from uvicorn.server import ServerState

from loadbalancer.http_server.listener import TlsHandshake
from loadbalancer.http_server.responses import OrderedResponses
from loadbalancer.http_server.stages import BODY, HEAD, IDLE, LINGERING, NEW, REFUSED
from loadbalancer.schema.http_errors import RequestTimeout

if TYPE_CHECKING:
    from loadbalancer.http_server.server import HttpConfig

#: A client that reads this many bytes within `server.send_timeout_s` is not slow.
MIN_PROGRESS_BYTES = 64 * 2**10
#: Seconds without input, after which a connection that is to be closed is closed.
_LINGER_IDLE_S = 2.0


class BoundedHttpProtocol(OrderedResponses):
    """A connection with limits. `check_deadlines` must be called regularly."""

    def __init__(self, config: HttpConfig, server_state: ServerState, handshake: TlsHandshake | None = None) -> None:
        """`handshake` has been this connection in the table until now."""
        super().__init__(config, server_state)
        self._handshake = handshake
        self.address = ""
        self._send_timer: asyncio.TimerHandle | None = None
        #: Buffered bytes of a response when the timer was started.
        self._buffered = 0
        #: Those of a complete response, and since when they have not decreased.
        self._unread, self._unread_since = 0, float("inf")

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.address = self.client[0] if self.client else ""
        if self._handshake is not None:
            self.config.table.remove(self._handshake)
        self.config.table.admit(self, self._since)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_send_timer()
        self.config.table.remove(self)
        super().connection_lost(exc)

    def shutdown(self) -> None:
        """Close it after the response to the request that is under way."""
        if self._active is None or self._active.response_complete:
            self.transport.close()
        else:
            self._active.keep_alive = False

    def abort(self) -> None:
        self.transport.abort()

    def idle_since(self) -> float | None:
        """When its input began that no response is due for: nothing, headers, or a body that is discarded.

        None while a request is under way, or its response is not sent yet.
        """
        if self._stage == REFUSED or self._is_busy() or self._unparsed or self.transport.get_write_buffer_size():
            return None
        return self._since

    def pause_writing(self) -> None:
        self.flow.pause_writing()
        self._stop_send_timer()
        self._start_send_timer()

    def resume_writing(self) -> None:
        self._stop_send_timer()
        self.flow.resume_writing()
        if self._active is not None:
            self._active.continue_call()

    def _start_send_timer(self) -> None:
        self._buffered = self.transport.get_write_buffer_size()
        self._send_timer = asyncio.get_running_loop().call_later(self._limits.send_timeout_s, self._check_send_progress)

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _check_send_progress(self) -> None:
        if self._buffered - self.transport.get_write_buffer_size() >= MIN_PROGRESS_BYTES:
            self._start_send_timer()
            return
        self._send_timer = None
        self.config.on_slow_reader()
        self.transport.abort()  # `close` would wait for the client, too

    def check_deadlines(self, now: float) -> None:
        """End what takes too long."""
        stage, limits = self._stage, self._limits
        if self.transport.is_closing() or stage in (IDLE, LINGERING):
            self._check_unread_response(now)
        if self.transport.is_closing():
            return
        waited_s = 0.0 if self._unparsed else now - self._since
        if stage == NEW and waited_s >= limits.header_timeout_s:
            self.config.refusals.add("silent_connection")
            self.transport.close()
        elif stage == IDLE and waited_s >= limits.keep_alive_s:
            self.transport.close()
        elif stage == HEAD:
            if self.flow.read_paused or self._unparsed:
                self._since = now
            elif waited_s >= limits.header_timeout_s:
                text = f"The headers did not arrive within {limits.header_timeout_s:g} s."
                self._refuse(RequestTimeout(text))
        elif stage == BODY:
            self._check_body_rate(now)
        elif stage == LINGERING:
            self._check_lingering(now)

    def _check_body_rate(self, now: float) -> None:
        exchange = self._last
        if (
            self._unparsed
            or self.flow.read_paused
            or exchange is None
            or exchange.waiting_for_100_continue
            or exchange is not self._active
        ):
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
            self.transport.abort()

    def _check_unread_response(self, now: float) -> None:
        """Abort a connection whose client does not read the rest of its last response."""
        size = self.transport.get_write_buffer_size()
        if size == 0 and not self.transport.is_closing():
            self._unread_since = float("inf")
        elif self._unread_since > now or self._unread - size >= MIN_PROGRESS_BYTES:
            self._unread_since, self._unread = now, size
        elif now - self._unread_since >= self._limits.send_timeout_s:
            self.config.on_slow_reader()
            self.transport.abort()
