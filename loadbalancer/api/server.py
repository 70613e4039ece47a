"""The HTTP server: uvicorn with its own way to stop, and a time-out for clients that do not read."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections import Counter
from collections.abc import Iterator
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

log = logging.getLogger(__name__)

#: Seconds for complete responses that their clients have not read yet when the server stops.
_FLUSH_S = 1.0
#: A client that reads this many bytes within `server.send_timeout_s` is not slow.
_MIN_PROGRESS_BYTES = 64 * 2**10


def set_socket_limits(listener: socket.socket, send_timeout_s: float) -> None:
    """Limit the kernel's send buffer per connection, and time out connections whose peer accepts no data.

    A small buffer makes slow readers visible to `SlowReaderProtocol`. The kernel's time-out is twice as long: it is
    for data that has left this process.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2 * _MIN_PROGRESS_BYTES)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * send_timeout_s))


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration with a send time-out and counters of connections."""

    def __init__(self, app: ASGIApp, *, send_timeout_s: float, **options: Any) -> None:
        super().__init__(app, http=SlowReaderProtocol, **options)
        self.send_timeout_s = send_timeout_s
        self.counters: Counter[str] = Counter()


class HttpServer(uvicorn.Server):
    """uvicorn without signal handlers: on a signal it would refuse connections before requests are answered."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End every connection. Connections that are not read are aborted after `_FLUSH_S`."""
        timer = asyncio.get_running_loop().call_later(_FLUSH_S, self._abort_connections)
        await super().shutdown(sockets)
        timer.cancel()

    def _abort_connections(self) -> None:
        """Abort before uvicorn cancels the requests: they then end as if the clients had disconnected."""
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class SlowReaderProtocol(HttpToolsProtocol):
    """Aborts the connection when its client does not read the response.

    uvicorn pauses the application while more than 64 KiB are buffered, so that at most that and one chunk are. The
    application sees an aborted connection as a disconnect.
    """

    _timer: asyncio.TimerHandle | None = None
    #: Buffered bytes when the timer was started.
    _buffered = 0

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._stop_timer()
        self._start_timer()

    def resume_writing(self) -> None:
        self._stop_timer()
        super().resume_writing()

    def _start_timer(self) -> None:
        assert isinstance(self.config, HttpConfig)
        self._buffered = self.transport.get_write_buffer_size()
        self._timer = self.loop.call_later(self.config.send_timeout_s, self._check_progress)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_progress(self) -> None:
        assert isinstance(self.config, HttpConfig)
        if self._buffered - self.transport.get_write_buffer_size() >= _MIN_PROGRESS_BYTES:
            self._start_timer()
            return
        self._timer = None
        self.config.counters["slow_readers"] += 1
        log.info("aborted a connection: its client read almost nothing for %g s", self.config.send_timeout_s)
        self.transport.abort()  # `close` would wait for the client, too
