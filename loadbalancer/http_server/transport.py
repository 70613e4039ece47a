"""The transport of a connection as the protocol and its responses see it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl


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


class InputFlowControl(FlowControl):
    """Reads nothing while requests are queued. uvicorn would go on as soon as a request reads its own body."""

    def __init__(self, transport: LingeringTransport, has_queued_input: Callable[[], bool]) -> None:
        super().__init__(transport)  # type: ignore[arg-type]
        self._has_queued_input = has_queued_input

    def resume_reading(self) -> None:
        if self.read_paused and not self._has_queued_input():
            super().resume_reading()
