"""The headers of a request that are read before its route is known, found in one pass."""

from __future__ import annotations

import re
from collections.abc import Iterable

from loadbalancer.schema.media_types import parse_accept

#: Bodies up to this size need no reservation: the server buffers so much of each connection in any case.
SMALL_BYTES = 64 * 2**10
#: Request ids of clients that are safe in headers and logs.
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_NAMES = frozenset(
    {
        b"accept",
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"idempotency-key",
        b"origin",
        b"traceparent",
        b"x-request-id",
    }
)


class RequestHead:
    """What the headers say about the caller and the body. Of headers that are repeated, the first counts."""

    __slots__ = (
        "accepted",
        "authorization",
        "content_type",
        "given_id",
        "has_key",
        "host",
        "is_encoded",
        "length",
        "media_type",
        "origin",
        "traceparent",
    )

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Names of headers are in lower case."""
        found: dict[bytes, str] = {}
        for name, value in headers:
            if name in _NAMES and name not in found:
                found[name] = value.decode("latin-1")
        self.host = found.get(b"host")
        self.origin = found.get(b"origin")
        self.authorization = found.get(b"authorization", "")
        #: What the client accepts.
        self.accepted = parse_accept(found.get(b"accept", ""))
        #: Of the body, and without parameters, in lower case. Empty if there is none.
        self.content_type = content_type = found.get(b"content-type", "")
        self.media_type = content_type.partition(";")[0].strip().lower()
        length = found.get(b"content-length", "")
        #: Content-Length, or -1.
        self.length = int(length) if length.isdecimal() else -1
        #: Whether the body has a Content-Encoding, and the request an Idempotency-Key.
        self.is_encoded = b"content-encoding" in found
        self.has_key = b"idempotency-key" in found
        given_id = found.get(b"x-request-id", "")
        self.traceparent = found.get(b"traceparent", "")
        #: The id that the client has given to the request; empty if there is none that is safe.
        self.given_id = given_id if given_id and _SAFE_ID.fullmatch(given_id) else ""

    @property
    def is_small(self) -> bool:
        """Whether the body needs no reservation."""
        return 0 <= self.length <= SMALL_BYTES and not self.is_encoded
