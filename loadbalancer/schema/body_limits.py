"""Limits of a JSON body that are checked before it becomes objects, so that a large one costs little.

Values are skipped at the speed of the parser: undecoded members are `msgspec.Raw`.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TypeVar

import msgspec

from configs.text import clip
from loadbalancer.schema.errors import BodyTooLarge, InvalidRequest

RawMembers = dict[str, msgspec.Raw]
Entries = TypeVar("Entries", RawMembers, list[msgspec.Raw])

#: Members of an object and items of a list: more than any request needs. Beyond it, pydantic would collect an error for
#: each of them.
MAX_ENTRIES = 64
#: Deeper values are rejected by their type, without a look at their entries.
_MAX_DEPTH = 4


class _ImageReference(msgspec.Struct):
    image_url: msgspec.Raw = msgspec.Raw()


class _ImageMembers(msgspec.Struct):
    """The members of a body that hold files."""

    image: msgspec.Raw = msgspec.Raw()
    images: msgspec.Raw = msgspec.Raw()
    mask: msgspec.Raw = msgspec.Raw()


def check_size_without_images(body: bytes | memoryview, max_bytes: int) -> None:
    """Raises `BodyTooLarge` when all but the strings of images exceeds `max_bytes`."""
    if _bytes_without_images(body) > max_bytes:
        raise BodyTooLarge(max_bytes, "beside its images")


def _bytes_without_images(body: bytes | memoryview) -> int:
    """Size of the body without the strings of `image`, `mask`, `images[0].image_url` and `mask.image_url`."""
    try:
        found = msgspec.json.decode(body, type=_ImageMembers)
    except msgspec.ValidationError:  # not an object
        return len(body)
    except (msgspec.DecodeError, RecursionError):  # not JSON, which the parser explains
        return 0
    return len(body) - sum(_image_bytes(member) for member in (found.image, found.images, found.mask))


def _image_bytes(member: msgspec.Raw) -> int:
    """Size of a string, of the string in an object, or of that in a list of one object."""
    text = memoryview(member)
    if bytes(text[:1]) == b'"':
        return len(text)
    try:
        found = msgspec.json.decode(member, type=_ImageReference | tuple[_ImageReference])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return 0
    url = memoryview((found[0] if isinstance(found, tuple) else found).image_url)
    return len(url) if bytes(url[:1]) == b'"' else 0


def check_entries(body: bytes) -> RawMembers:
    """The members of the object, undecoded; none for a body that is no object.

    Raises `InvalidRequest` for a member that holds an object or list of more than `MAX_ENTRIES`.
    """
    members = _entries(body, RawMembers)
    for name, value in members.items():
        _check_nested(name, value, depth=1)
    return members


def _check_nested(name: str, value: msgspec.Raw, depth: int) -> None:
    first = bytes(memoryview(value)[:1])
    if first not in (b"{", b"[") or depth > _MAX_DEPTH:
        return
    entries: Collection[msgspec.Raw]
    entries = _entries(value, RawMembers).values() if first == b"{" else _entries(value, list[msgspec.Raw])
    if len(entries) > MAX_ENTRIES:
        text = f"Invalid value for {clip(repr(name), 80)}: {len(entries)} entries. At most {MAX_ENTRIES} are allowed."
        raise InvalidRequest(text, param=name)
    for entry in entries:
        _check_nested(name, entry, depth + 1)


def _entries(value: bytes | msgspec.Raw, kind: type[Entries]) -> Entries:
    try:
        return msgspec.json.decode(value, type=kind)
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        return kind()
