"""The transport of a connection as the protocol and its responses see it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any


class LingeringTransport:
    """Passes everything to the socket's transport, except that `close` is the protocol's decision.

    A socket that is closed while it has unread input resets the connection, and the client may lose the response. The
    protocol therefore closes the sending direction first and discards input for a while.
    """

    __slots__ = ("_lingers", "_socket", "close", "write")

    def __init__(self, socket: asyncio.Transport, close: Callable[[], None], lingers: Callable[[], bool]) -> None:
        self._socket = socket
        self._lingers = lingers
        self.close = close
        self.write = socket.write

    def is_closing(self) -> bool:
        return self._lingers() or self._socket.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._socket, name)
