"""The size of a value in a result, without encoding it as it is sent."""

from __future__ import annotations

from typing import Any

import msgspec

from worker.engines.user.images import is_image
from worker.engines.user.tensors import is_array, is_tensor

#: Pixels of an image that take at least one byte of a PNG file: also those of a plot, of which most are white.
_PIXELS_PER_BYTE = 50
#: Shortest text of a number of an array: a digit and a comma.
_BYTES_PER_NUMBER = 2
#: What JSON has around each value.
_BYTES_PER_VALUE = 2
_encode = msgspec.json.Encoder().encode


def result_bytes(value: Any) -> int:
    """Return about how many bytes the value takes in a result, rather too few."""
    try:
        return _value_bytes(value)
    except Exception:  # such as a list that contains itself; why it cannot be sent is told at the end
        return _BYTES_PER_VALUE


def _value_bytes(value: Any) -> int:
    if isinstance(value, str | bytes | bytearray | memoryview):
        return len(value) or 1
    if is_image(value):
        return int(value.width * value.height) // _PIXELS_PER_BYTE + _BYTES_PER_VALUE
    if is_tensor(value) or is_array(value):
        numbers = int(value.numel()) if is_tensor(value) else int(value.size)
        return numbers * min(_BYTES_PER_NUMBER, int(value.itemsize)) + _BYTES_PER_VALUE
    try:
        return len(_encode(value)) + 1
    except Exception:  # values of other types are in it
        return _inner_bytes(value)


def _inner_bytes(value: Any) -> int:
    """Return the same for a value that is not plain JSON. Raises `RecursionError` for one that is too deep."""
    if isinstance(value, dict):
        return sum(map(_value_bytes, value.values())) + _BYTES_PER_VALUE
    if isinstance(value, list | tuple):
        return sum(map(_value_bytes, value)) + _BYTES_PER_VALUE
    return _BYTES_PER_VALUE
