"""Responses that end when their client has read them, so that what they hold is released then and not before."""

from __future__ import annotations

from collections.abc import Callable

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

_PART_BYTES = 64 << 10


class FlowControlledResponse(Response):
    """Sends its body in parts, each when the client has read those before."""

    def __init__(self, body: bytes, status: int, media_type: str, on_end: Callable[[], None]) -> None:
        """`on_end` is called when the response has been sent, or the client has left."""
        super().__init__(body, status, {"content-type": media_type})
        self._on_end = on_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        body = memoryview(self.body)
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for offset in range(0, max(len(body), 1), _PART_BYTES):
                part, end = bytes(body[offset : offset + _PART_BYTES]), offset + _PART_BYTES
                await send({"type": "http.response.body", "body": part, "more_body": end < len(body)})
        finally:
            del body
            self._on_end()
