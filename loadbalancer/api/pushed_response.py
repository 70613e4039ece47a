"""Responses that are pushed: their source writes each part itself, without a task or a framework in between."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from http import HTTPStatus
from typing import Protocol

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from loadbalancer.api.direct_calls import ResponseWriter
from loadbalancer.api.http_helpers import wait_disconnect

#: Some reverse proxies buffer responses without the last header.
_HEADERS = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
)


class PushSource(Protocol):
    """What a response comes from."""

    def attach(self, sink: ResponseWriter) -> None:
        """Write everything to this client from now on, what has come before first."""

    def close(self) -> None:
        """The client has read the response, or has left. Idempotent."""


class PushedResponse(Response):
    """Server-sent events of a source. It always closes its source."""

    def __init__(self, source: PushSource, headers: Mapping[str, str] | None = None) -> None:
        # Not `super().__init__`: it would render a body.
        self._source: PushSource | None = source
        self.status_code = HTTPStatus.OK
        self.media_type = "text/event-stream"
        self.background = None
        self.raw_headers = list(_HEADERS)
        if headers:
            self.raw_headers += [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]

    def take_source(self) -> PushSource:
        """Return the source, which the caller must close. It may hold this response: it is forgotten."""
        source, self._source = self._source, None
        if source is None:
            raise RuntimeError("the source of this response was taken")
        return source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it as an ASGI application: for requests that came through the framework."""
        del scope
        source, sink = self.take_source(), _Queue()
        disconnected = asyncio.create_task(wait_disconnect(receive))
        disconnected.add_done_callback(lambda _: sink.finish())
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            source.attach(sink)
            while (part := await sink.take()) and not disconnected.done():
                await send({"type": "http.response.body", "body": part, "more_body": True})
            if not disconnected.done():
                await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            disconnected.cancel()
            source.close()


class _Queue:
    """Parts that wait until those before are sent."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0
        self._is_finished = False
        self._changed = asyncio.Event()

    def write(self, data: bytes) -> int:
        self._parts.append(data)
        self._size += len(data)
        self._changed.set()
        return self._size

    def finish(self) -> None:
        self._is_finished = True
        self._changed.set()

    async def take(self) -> bytes:
        """Remove and return what there is; empty at the end."""
        while not self._parts and not self._is_finished:
            self._changed.clear()
            await self._changed.wait()
        parts, self._parts, self._size = self._parts, [], 0
        return b"".join(parts)
