"""Responses of frames: bytes that are sent as they are, without being joined or copied."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from http import HTTPStatus

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

#: Of a frame that is sent before the client has read those before it.
_PART_BYTES = 64 << 10


class FrameResponse(Response):
    """Sends its frames in parts, each when the client has read those before.

    It ends when its client has read it, so that what it holds is released then and not before.
    """

    def __init__(
        self,
        frames: Sequence[bytes | memoryview],
        media_type: str,
        status: int = HTTPStatus.OK,
        headers: Mapping[str, str] | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        """A `memoryview` has items of one byte. `media_type` is the header Content-Type as it is sent.

        `on_end` is called when the response has been sent, or the client has left.
        """
        # Not `super().__init__`: it would render and copy the body.
        self.frames = frames
        self.status_code = status
        self.media_type = media_type
        self.background = None
        self._on_end = on_end
        self.raw_headers = [
            (b"content-type", media_type.encode("latin-1")),
            (b"content-length", b"%d" % sum(map(len, frames))),
        ]
        if headers:
            self.raw_headers += [(key.lower().encode("latin-1"), headers[key].encode("latin-1")) for key in headers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        del scope, receive
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            unsent = sum(map(len, self.frames))
            if not unsent:
                await send({"type": "http.response.body", "body": b"", "more_body": False})
            for frame in self.frames:
                view = memoryview(frame)
                for offset in range(0, len(view), _PART_BYTES):
                    part = view[offset : offset + _PART_BYTES]
                    unsent -= len(part)
                    # The last bytes say so: what is to be done before a client has all of them is done before these.
                    await send({"type": "http.response.body", "body": part, "more_body": unsent > 0})
        finally:
            on_end = self.take_on_end()
            if on_end is not None:
                on_end()

    def take_on_end(self) -> Callable[[], None] | None:
        """Return `on_end`, which the caller must call. What it belongs to may hold this response: it is forgotten."""
        on_end, self._on_end = self._on_end, None
        return on_end
