"""Content types and codings of request bodies (RFC 9110, sections 8.3 and 8.4)."""

from __future__ import annotations

import asyncio
import zlib
from typing import NoReturn

from starlette.datastructures import Headers

from loadbalancer.schema.errors import BodyTooLarge, InvalidRequest, UnsupportedMediaType

#: `zlib.decompressobj` detects gzip and zlib by their headers.
_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_CODINGS = ("gzip", "x-gzip", "deflate")
#: Larger bodies are decompressed in a thread.
_INLINE_BYTES = 1 << 16
_PART_BYTES = 1 << 16


def check_json(headers: Headers) -> None:
    """Raises `UnsupportedMediaType` for a form where JSON is expected.

    Other types pass: many clients, such as `curl -d`, send JSON without naming it.
    """
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        raise UnsupportedMediaType("This path takes application/json, not a form; /v1/images/edits takes forms.")


async def decode_body(headers: Headers, body: bytes, max_bytes: int) -> bytes:
    """Undo the Content-Encoding.

    Raises `BodyTooLarge` above `max_bytes`, `InvalidRequest` and `UnsupportedMediaType`.
    """
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding in ("", "identity"):
        return body
    if coding not in _CODINGS:
        raise UnsupportedMediaType(
            "The Content-Encoding of the body is not supported; send gzip, or none.",
            headers={"accept-encoding": "gzip"},
        )
    if len(body) <= _INLINE_BYTES and max_bytes <= _INLINE_BYTES:
        return _decompress(body, max_bytes)
    return await asyncio.to_thread(_decompress, body, max_bytes)


def _decompress(body: bytes, max_bytes: int) -> bytes:
    decoder = zlib.decompressobj(_GZIP_OR_ZLIB)
    parts, size, remaining = [], 0, body
    while not decoder.eof:
        try:
            part = decoder.decompress(remaining, _PART_BYTES)
        except zlib.error:
            _invalid("it is broken")
        remaining = decoder.unconsumed_tail
        size += len(part)
        if size > max_bytes:
            raise BodyTooLarge(max_bytes, "after decompression")
        if not part and not remaining and not decoder.eof:
            _invalid("it is cut short")
        parts.append(part)
    if decoder.unused_data:
        _invalid("more bytes follow its end")
    return b"".join(parts)


def _invalid(reason: str) -> NoReturn:
    raise InvalidRequest(f"The compressed body cannot be read: {reason}.", code="invalid_body")
