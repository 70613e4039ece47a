"""Bounds of JSON objects that a request carries for others: schemas, and variables of chat templates."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from loadbalancer.schema.errors import InvalidRequest

#: Deeper schemas are of no use to a grammar, and costly for one.
_MAX_DEPTH = 32


class JsonBounds(NamedTuple):
    """How large one object may be. `setting` names the configured limit."""

    max_bytes: int
    setting: str
    max_depth: int = _MAX_DEPTH


def is_absent(value: msgspec.Raw) -> bool:
    """Return whether an optional member is left out, or null."""
    return bytes(memoryview(value)[:4]) in (b"", b"null")


def bounded_object(value: msgspec.Raw, place: str, bounds: JsonBounds) -> dict[str, Any]:
    """Return the object. Raises `InvalidRequest` for another value, and for one that is too large or too deep.

    `place` is its name in the request.
    """
    size = len(memoryview(value))
    if size > bounds.max_bytes:
        text = f"Invalid value for '{place}': {size} bytes. At most {bounds.max_bytes} are allowed ({bounds.setting})."
        raise InvalidRequest(text, param=place)
    decoded = msgspec.json.decode(value)
    if not isinstance(decoded, dict):
        raise InvalidRequest(f"Invalid type for '{place}'. Expected an object.", param=place, code="invalid_type")
    if not is_shallow(decoded, bounds.max_depth):
        text = f"Invalid value for '{place}': it is nested more than {bounds.max_depth} levels deep."
        raise InvalidRequest(text, param=place)
    return decoded


def is_shallow(value: Any, max_depth: int) -> bool:
    """Return whether no part of this JSON value is in more than `max_depth` objects and lists."""
    level = [value]
    for _ in range(max_depth + 1):
        level = [each for each in level if isinstance(each, dict | list)]
        if not level:
            return True
        level = [inner for each in level for inner in (each.values() if isinstance(each, dict) else each)]
    return False
