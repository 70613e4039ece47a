"""The target of a request in its request line: a path, the absolute URL, or `*` (RFC 9112, section 3.2)."""

from __future__ import annotations

import re
from typing import NamedTuple

import httptools

from loadbalancer.schema.http_errors import MalformedRequest

#: The target of `OPTIONS` for the whole server.
ASTERISK = b"*"
_SCHEMES = (b"http", b"https")
_AUTHORITY = re.compile(rb"[^:/?#]+://([^/?#]*)")


class RequestTarget(NamedTuple):
    """A path, still encoded, its query, and the host with its port where the target is a URL."""

    path: bytes
    query: bytes
    authority: bytes | None = None


def parse_target(target: bytes, method: bytes) -> RequestTarget:
    """Return the parts of the target, of which the path is ASCII. Raises `MalformedRequest`."""
    if target == ASTERISK and method != b"OPTIONS":
        raise MalformedRequest("The target * is for OPTIONS only.")
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        text = "The target of the request is not a valid path or URL. Characters beyond ASCII are encoded with %."
        raise MalformedRequest(text) from None
    found = _AUTHORITY.match(target)
    if found is None:
        return RequestTarget(url.path, url.query or b"")
    if url.schema.lower() not in _SCHEMES or b"@" in found[1]:
        raise MalformedRequest("A target that is a URL must be of http or https, without a user.")
    return RequestTarget(url.path or b"/", url.query or b"", found[1])


def with_host(headers: list[tuple[bytes, bytes]], authority: bytes) -> list[tuple[bytes, bytes]]:
    """Return the headers with this Host: that of a URL in the request line counts, whatever the header says."""
    return [(b"host", authority), *(line for line in headers if line[0] != b"host")]
