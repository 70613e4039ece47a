"""Media types and their negotiation by the header Accept (RFC 9110, section 12.5.1)."""

from __future__ import annotations

import functools
import re
from typing import NamedTuple

JSON = "application/json"
BYTES = "application/octet-stream"
EVENTS = "text/event-stream"
#: A type of a response, without parameters: safe in a header.
MEDIA_TYPE = re.compile(r"[a-z0-9][a-z0-9!#$&^_.+-]{0,63}/[a-z0-9][a-z0-9!#$&^_.+-]{0,63}")
#: Longer headers, and ranges beyond this number, are ignored.
_MAX_ACCEPT_CHARS = 1000
_QUALITY = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE)


class MediaRange(NamedTuple):
    """One entry of an Accept header: `image/png`, `image/*` or `*/*`, and its weight from 0 to 1."""

    kind: str
    quality: float

    def matches(self, media_type: str) -> bool:
        if self.kind == "*/*":
            return True
        main, _, sub = self.kind.partition("/")
        return media_type.startswith(f"{main}/") if sub == "*" else media_type == self.kind

    @property
    def precision(self) -> int:
        """More for a range that names more: of two that match, this one counts."""
        return 0 if self.kind == "*/*" else 1 if self.kind.endswith("/*") else 2


@functools.lru_cache(maxsize=64)  # of headers, most of which come again and again
def parse_accept(header: str) -> tuple[MediaRange, ...]:
    """Return the ranges of the header in their order, without broken ones; `*/*` for an empty or too long header."""
    ranges = []
    for entry in header.split(",") if len(header) <= _MAX_ACCEPT_CHARS else ():
        kind, *parameters = (each.strip() for each in entry.split(";"))
        if kind.count("/") != 1:
            continue
        found = next((match for each in parameters if (match := _QUALITY.fullmatch(each))), None)
        ranges.append(MediaRange(kind.lower(), float(found[1]) if found else 1.0))
    return tuple(ranges) or (MediaRange("*/*", 1.0),)


def quality(accepted: tuple[MediaRange, ...], media_type: str) -> float:
    """Return the weight of the type: that of the most precise range which matches; 0 if it is not acceptable."""
    matching = [each for each in accepted if each.matches(media_type)]
    return max(matching, key=lambda each: each.precision).quality if matching else 0.0


@functools.lru_cache(maxsize=64)  # the same clients ask again and again
def prefers_events(accepted: tuple[MediaRange, ...]) -> bool:
    """Return whether the client names streams of events, and not JSON as well: `text/*` may be any text."""
    named = max((each.quality for each in accepted if each.kind == EVENTS), default=0.0)
    return named > quality(accepted, JSON)


def prefers_json(header: str) -> bool:
    """Return whether the client that sends this header Accept takes JSON as gladly as anything else."""
    accepted = parse_accept(header)
    return quality(accepted, JSON) >= max(each.quality for each in accepted)


@functools.lru_cache(maxsize=64)  # the same clients ask the same models
def choose(accepted: tuple[MediaRange, ...], offered: tuple[str, ...]) -> str | None:
    """Return the offered type with the largest weight, of several the first; None if none is acceptable."""
    best = max(offered, key=lambda each: quality(accepted, each))  # `max` returns the first of several
    return best if quality(accepted, best) > 0 else None
