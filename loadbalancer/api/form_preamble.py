"""Removes what a multipart form may have before its first part, which the parser of forms does not know."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator

from starlette.formparsers import MultiPartException

_MAX_PREAMBLE_BYTES = 64 * 2**10
#: Limit of the spaces behind a boundary.
_MAX_PADDING = 100


async def without_preamble(stream: AsyncGenerator[bytes, None], boundary: bytes) -> AsyncGenerator[bytes, None]:
    """Yield the body from its first boundary on (RFC 2046, 5.1.1), without spaces behind that one.

    Raises `MultiPartException` where the first 64 KiB have no boundary, and for lines that end in LF.
    """
    ends = rb"--|[ \t]{0,%d}\r?\n|[ \t]{%d}" % (_MAX_PADDING, _MAX_PADDING + 1)
    line = re.compile(rb"(?:\A|\n)(--%b)(%b)" % (re.escape(boundary), ends))
    longest = len(boundary) + _MAX_PADDING + 5
    begin, found = bytearray(), None
    async for chunk in stream:
        searched = max(len(begin) - longest, 0)
        begin += chunk
        found = line.search(begin, searched)
        if found is not None or len(begin) > _MAX_PREAMBLE_BYTES + longest:
            break
    if not begin:
        return
    if found is None or found.start() > _MAX_PREAMBLE_BYTES:
        raise MultiPartException("its first part does not begin with the boundary of its Content-Type")
    end = found[2].lstrip(b" \t")
    if not end:
        raise MultiPartException("there are too many spaces behind its first boundary")
    if end == b"\n":
        raise MultiPartException("its lines end in LF; they must end in CRLF")
    yield found[1] + end + begin[found.end() :]
    del begin
    async for chunk in stream:
        yield chunk
