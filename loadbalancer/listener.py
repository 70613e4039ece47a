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

#: A client that takes so much within `server.send_timeout_s` reads, however slowly.
_LEAST_BYTES = 64 * 2**10


def impatient(listener: socket.socket, send_timeout_s: float) -> None:
    """Have the system give up clients of this socket that make no room at all for what it holds for them."""
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * send_timeout_s))


class HttpConfig(uvicorn.Config):
    """uvicorn's configuration and ours, beside a count of what became of connections."""

    def __init__(self, app: ASGIApp, *, send_timeout_s: float, **options: Any) -> None:
        super().__init__(app, http=Connection, **options)
        self.send_timeout_s = send_timeout_s
        self.counters: Counter[str] = Counter()


class HttpServer(uvicorn.Server):
    """uvicorn, told when to stop by us: it would refuse connections at once, where clients are owed an answer."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


class Connection(HttpToolsProtocol):
    """A connection that is broken off when its client leaves what it asked for lying.

    uvicorn holds the application up while more than 64 KiB lie here for its client, so that the most is that and one
    chunk. Broken off, it is to the application as if the client had hung up.
    """

    _patience: asyncio.TimerHandle | None = None
    #: Bytes that lay here at the last look.
    _lying = 0

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._rest()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """The client does not take what is sent."""
        super().pause_writing()
        self._rest()
        self._watch()

    def resume_writing(self) -> None:
        """It has taken nearly everything."""
        self._rest()
        super().resume_writing()

    def _watch(self) -> None:
        assert isinstance(self.config, HttpConfig)
        self._lying = self.transport.get_write_buffer_size()
        self._patience = self.loop.call_later(self.config.send_timeout_s, self._look)

    def _rest(self) -> None:
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None

    def _look(self) -> None:
        assert isinstance(self.config, HttpConfig)
        if self._lying - self.transport.get_write_buffer_size() >= _LEAST_BYTES:
            self._watch()
            return
        self._patience = None
        self.config.counters["slow_readers"] += 1
        log.info("broke off a connection: its client took next to nothing for %g s", self.config.send_timeout_s)
        self.transport.abort()  # `close` would wait for the client, too
