"""uvicorn, as it is to behave here: told from outside when to stop, and done with clients that do not read."""

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

#: For answers that are complete but not yet read by their clients, when the server stops.
_FLUSH_S = 1.0
#: A client that takes so much within `server.send_timeout_s` reads, however slowly.
_LEAST_BYTES = 64 * 2**10


def set_socket_limits(listener: socket.socket, send_timeout_s: float) -> None:
    """Have the system hold little for each client of this socket, and give up those that make no room for it at all.

    Little, so that what a client takes shows here at once, not after megabytes. Giving up comes later than `Connection`
    does it: it is for what has left this process, and is counted nowhere.
    """
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, 2 * _LEAST_BYTES)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(2000 * send_timeout_s))


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration and ours, beside a count of what became of connections."""

    def __init__(self, app: ASGIApp, *, send_timeout_s: float, **options: Any) -> None:
        super().__init__(app, http=SlowReaderProtocol, **options)
        self.send_timeout_s = send_timeout_s
        self.counters: Counter[str] = Counter()


class HttpServer(uvicorn.Server):
    """uvicorn, told when to stop by us: it would refuse connections at once, where clients are owed an answer."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End every connection; those whose clients do not read are hung up on after `_FLUSH_S`."""
        hanging_up = asyncio.get_running_loop().call_later(_FLUSH_S, self._abort_connections)
        await super().shutdown(sockets)
        hanging_up.cancel()

    def _abort_connections(self) -> None:
        """Before uvicorn cancels their requests: to those it is then as if the clients had gone."""
        for connection in list(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class SlowReaderProtocol(HttpToolsProtocol):
    """A connection that is broken off when its client leaves what it asked for lying.

    uvicorn holds the application up while more than 64 KiB lie here for its client, so that the most is that and one
    chunk. Broken off, it is to the application as if the client had hung up.
    """

    _timer: asyncio.TimerHandle | None = None
    #: Bytes that lay here at the last look.
    _buffered = 0

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_timer()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not take what is sent."""
        super().pause_writing()
        self._stop_timer()
        self._start_timer()

    def resume_writing(self) -> None:
        """It has taken nearly everything."""
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
        if self._buffered - self.transport.get_write_buffer_size() >= _LEAST_BYTES:
            self._start_timer()
            return
        self._timer = None
        self.config.counters["slow_readers"] += 1
        log.info("broke off a connection: its client took next to nothing for %g s", self.config.send_timeout_s)
        self.transport.abort()  # `close` would wait for the client, too
