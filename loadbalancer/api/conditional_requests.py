"""Headers about a file that the client may have, or takes compressed (RFC 9110, sections 12.5.3 and 13.1.2)."""

from __future__ import annotations

import re

_TAG = re.compile(r'(?:W/)?("[^"]*")')
_QUALITY = re.compile(r"\s*q\s*=\s*([0-9.]{1,5})\s*", re.IGNORECASE)
#: Longer headers are ignored: the file is sent as it is.
_MAX_CHARS = 1000


def has_entity_tag(if_none_match: str, etag: str) -> bool:
    """Return whether the header names the tag of a file, weakly or not; `*` names each."""
    if len(if_none_match) > _MAX_CHARS:
        return False
    return if_none_match.strip() == "*" or etag in _TAG.findall(if_none_match)


def accepts_gzip(accept_encoding: str) -> bool:
    """Return whether a body may be sent with gzip: it is named, or everything is, with a weight above 0."""
    weights = {}
    for entry in accept_encoding.split(",") if len(accept_encoding) <= _MAX_CHARS else ():
        coding, _, parameters = entry.partition(";")
        found = _QUALITY.fullmatch(parameters)
        weights[coding.strip().lower()] = found[1].strip("0.") if found else "1"
    return bool(weights.get("gzip", weights.get("*", "")))
