"""The headers of a request that are read before its route is known, found in one pass."""

from __future__ import annotations

import re
from collections.abc import Iterable

from loadbalancer.access.request_ids import new_request_id

#: Bodies up to this size need no reservation: the server buffers so much of each connection in any case.
SMALL_BYTES = 64 * 2**10
#: Request ids of clients that are safe in headers and logs.
_SAFE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_NAMES = frozenset(
    {
        b"authorization",
        b"content-encoding",
        b"content-length",
        b"host",
        b"idempotency-key",
        b"origin",
        b"x-request-id",
    }
)


class RequestHead:
    """What the headers say about the caller and the body. Of headers that are repeated, the first counts."""

    __slots__ = ("authorization", "has_key", "host", "is_encoded", "length", "origin", "request_id")

    def __init__(self, headers: Iterable[tuple[bytes, bytes]]) -> None:
        """Names of headers are in lower case."""
        self.host: str | None = None
        self.origin: str | None = None
        self.authorization = ""
        #: Content-Length, or -1.
        self.length = -1
        #: Whether the body has a Content-Encoding, and the request an Idempotency-Key.
        self.is_encoded = self.has_key = False
        self.request_id = ""
        for name, value in headers:
            if name in _NAMES:
                self._add(name, value.decode("latin-1"))
        if not self.request_id:
            self.request_id = new_request_id()

    def _add(self, name: bytes, value: str) -> None:
        if name == b"host":
            self.host = value if self.host is None else self.host
        elif name == b"content-length":
            self.length = int(value) if self.length < 0 and value.isdecimal() else self.length
        elif name == b"authorization":
            self.authorization = self.authorization or value
        elif name == b"origin":
            self.origin = value if self.origin is None else self.origin
        elif name == b"content-encoding":
            self.is_encoded = True
        elif name == b"idempotency-key":
            self.has_key = True
        elif not self.request_id and _SAFE_ID.fullmatch(value):
            self.request_id = value

    @property
    def is_small(self) -> bool:
        """Whether the body needs no reservation."""
        return 0 <= self.length <= SMALL_BYTES and not self.is_encoded
