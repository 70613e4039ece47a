"""Content types and codings of request bodies (RFC 9110, sections 8.3 and 8.4)."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Callable
from typing import NoReturn

from starlette.datastructures import Headers

from loadbalancer.api.charsets import check_json_charset
from loadbalancer.schema.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType

#: `zlib.decompressobj` detects gzip and zlib by their headers.
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_CODINGS = ("gzip", "x-gzip", "deflate")
#: Bytes that are decompressed in a thread before memory for more is reserved.
_PART_BYTES = 1 << 20
#: Bytes that go into the decoder at once: it copies what it has not used of them.
_INPUT_BYTES = 1 << 14


def check_json(content_type: str) -> None:
    """Raises `UnsupportedMediaType` for a form where JSON is expected, `InvalidRequest` for another charset.

    Other types pass: many clients, such as `curl -d`, send JSON without naming it.
    """
    check_json_charset(content_type)
    if content_type.partition(";")[0].strip().lower() == "multipart/form-data":
        raise UnsupportedMediaType("This path takes application/json, not a form; /v1/images/edits takes forms.")


async def decode_body(headers: Headers, body: bytes, max_bytes: int, reserve: Callable[[int], None]) -> bytes:
    """Undo the Content-Encoding. `reserve` is called with the size of each part that becomes known.

    Raises `BodyTooLarge` above `max_bytes`, `InvalidRequest`, `UnsupportedMediaType`, and what `reserve` raises.
    """
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding in ("", "identity"):
        return body
    if coding not in _CODINGS:
        raise UnsupportedMediaType(
            "The Content-Encoding of the body is not supported; send gzip, or none.",
            headers={"accept-encoding": "gzip"},
        )
    decoding = _Decompression(body)
    parts, size = [], 0
    while not decoding.is_complete:
        part = await asyncio.to_thread(decoding.next_part)
        size += len(part)
        if size > max_bytes:
            raise BodyTooLarge(max_bytes, "after decompression")
        reserve(len(part))
        parts.append(part)
    return b"".join(parts)


class _Decompression:
    """A body that is decompressed in parts."""

    def __init__(self, body: bytes) -> None:
        self._decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
        self._body = body
        self._position = 0
        #: Bytes before the position that the decoder has not used.
        self._remaining = b""
        self.is_complete = False

    def next_part(self) -> bytes:
        """Return up to `_PART_BYTES`. Raises `InvalidRequest` where the body is broken or cut short."""
        parts, size = [], 0
        while size < _PART_BYTES and not self.is_complete:
            parts.append(self._next(_PART_BYTES - size))
            size += len(parts[-1])
        return b"".join(parts)

    def _next(self, max_bytes: int) -> bytes:
        decoder = self._decoder
        if not self._remaining:
            self._remaining = self._body[self._position : self._position + _INPUT_BYTES]
            self._position += len(self._remaining)
        is_at_end = not self._remaining
        try:
            part = decoder.decompress(self._remaining, max_bytes)
        except zlib.error:
            _invalid("it is broken")
        self._remaining = decoder.unconsumed_tail
        self.is_complete = decoder.eof
        if decoder.unused_data or (decoder.eof and self._position < len(self._body)):
            _invalid("more bytes follow its end")
        if is_at_end and not part and not decoder.eof:
            _invalid("it is cut short")
        return part


def _invalid(reason: str) -> NoReturn:
    raise InvalidRequest(f"The compressed body cannot be read: {reason}.", code="invalid_body")
