"""Parts of a JSON body that are passed on undecoded: they are found at the speed of the parser, and never copied."""

from __future__ import annotations

import codecs
import functools
from typing import Any

import msgspec

Slice = memoryview

#: Marks the fields of an array struct that the array has no item for.
_ABSENT = msgspec.Raw(b"null")
#: An array of this size has few enough items to make an object of each.
_SMALL_BYTES = 1 << 16
_PART_BYTES = 1 << 16
_list_decoder = msgspec.json.Decoder(list[msgspec.Raw])
_value_decoder = msgspec.json.Decoder(msgspec.Raw)


class TooManyItems(ValueError):
    """The array has more items than allowed."""


def array_items(array: bytes | msgspec.Raw, max_items: int) -> list[Slice]:
    """Return the undecoded items of a JSON array.

    Raises `TooManyItems` at the first item beyond `max_items`, before the others become objects;
    `msgspec.ValidationError` for another value than an array; `msgspec.DecodeError` for text that is no JSON, and
    `RecursionError` where it is nested too deeply.
    """
    view = memoryview(array)
    if len(view) <= _SMALL_BYTES or bytes(view[:1]) != b"[":
        items = _list_decoder.decode(array)
        if len(items) > max_items:
            raise TooManyItems
        return [memoryview(item) for item in items]
    try:
        found = _bounded_decoder(max_items).decode(array)
    except msgspec.ValidationError as error:  # the length is all that can be wrong
        raise TooManyItems from error
    return [memoryview(item) for item in msgspec.structs.astuple(found) if item is not _ABSENT]


@functools.lru_cache(maxsize=8)
def _bounded_decoder(max_items: int) -> msgspec.json.Decoder[Any]:
    """A decoder of arrays that stops at the first item beyond `max_items`: a list would be bounded after its end."""
    fields = [(f"item{index}", msgspec.Raw, _ABSENT) for index in range(max_items)]
    bounded = msgspec.defstruct("BoundedArray", fields, array_like=True, forbid_unknown_fields=True)
    return msgspec.json.Decoder(bounded)


def invalid_reason(value: bytes | bytearray | memoryview) -> str:
    """Return why the bytes are not one JSON value in UTF-8; empty if they are. No object is made of it."""
    try:
        _value_decoder.decode(value)
    except msgspec.DecodeError as error:
        return str(error)
    except RecursionError:
        return "it is nested too deeply"
    return "" if is_utf8(value) else "it is not UTF-8"


def is_json(value: bytes | bytearray | memoryview) -> bool:
    """Return whether the bytes are one JSON value in UTF-8. No object is made of it."""
    return not invalid_reason(value)


def is_utf8(value: bytes | bytearray | memoryview) -> bool:
    """Return whether the bytes are UTF-8, which the parser does not check. Only a part becomes text at once."""
    try:
        if len(value) <= _PART_BYTES:
            str(value, "utf-8")
            return True
        decoder, view = codecs.getincrementaldecoder("utf-8")(), memoryview(value)
        for start in range(0, len(view), _PART_BYTES):
            decoder.decode(view[start : start + _PART_BYTES])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True
