"""The position of a request in a distributed trace, and the header `traceparent` of W3C Trace Context. Pure."""

from __future__ import annotations

import re
from typing import NamedTuple

#: Version 00, and later ones by their first four fields.
_TRACEPARENT = re.compile(r"(?P<version>[0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(?P<rest>-[!-~]*)?")
#: Later versions may be longer than the 55 characters of version 00.
_MAX_CHARS = 256
_INVALID_VERSION = "ff"
_SAMPLED = 1


class TraceContext(NamedTuple):
    """A span of this server, or of the client where this server writes none. Ids are lower-case hexadecimal digits."""

    trace_id: str
    span_id: str
    #: Whether its spans are written.
    is_sampled: bool
    #: Span of the caller; empty at the beginning of a trace.
    parent_id: str = ""

    @property
    def traceparent(self) -> str:
        """The header for those that this span calls."""
        return f"00-{self.trace_id}-{self.span_id}-{int(self.is_sampled):02x}"

    def child(self, span_id: str) -> TraceContext:
        """Return the context of a span below this one."""
        return TraceContext(self.trace_id, span_id, self.is_sampled, self.span_id)


def parse_traceparent(header: str) -> TraceContext | None:
    """Return the caller's span; None for a header that is missing or not valid, which is ignored."""
    if not header or len(header) > _MAX_CHARS:
        return None
    found = _TRACEPARENT.fullmatch(header)
    if found is None or found["version"] == _INVALID_VERSION or (found["version"] == "00" and found["rest"]):
        return None
    trace_id, span_id, flags = found[2], found[3], int(found[4], 16)
    if not int(trace_id, 16) or not int(span_id, 16):
        return None
    return TraceContext(trace_id, span_id, bool(flags & _SAMPLED))
