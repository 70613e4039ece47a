"""Tensors of the Open Inference Protocol (KServe V2): their data types, and their elements as JSON and as bytes.

Elements are in C order and little-endian, as in the protocol's binary form and in the frames of workers. An element of
`BYTES` is its length as four bytes, then its bytes.
"""

from __future__ import annotations

import functools
import itertools
import math
import struct
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import msgspec

#: More dimensions are refused; numpy has 64.
MAX_DIMENSIONS = 32
#: More strings of one tensor are refused: each is looked at.
MAX_STRINGS = 65_536
#: Elements that become JSON at once.
_PART = 4096


class DataType(NamedTuple):
    """An element type: numpy's name (`BYTES` for strings), its code and size in `struct`, and its type in JSON."""

    dtype: str
    code: str
    size: int
    kind: type


BYTES = DataType("BYTES", "", 0, str)
#: By the protocol's names.
DATATYPES: dict[str, DataType] = {
    "BOOL": DataType("bool", "?", 1, bool),
    "UINT8": DataType("uint8", "B", 1, int),
    "UINT16": DataType("uint16", "H", 2, int),
    "UINT32": DataType("uint32", "I", 4, int),
    "UINT64": DataType("uint64", "Q", 8, int),
    "INT8": DataType("int8", "b", 1, int),
    "INT16": DataType("int16", "h", 2, int),
    "INT32": DataType("int32", "i", 4, int),
    "INT64": DataType("int64", "q", 8, int),
    "FP16": DataType("float16", "e", 2, float),
    "FP32": DataType("float32", "f", 4, float),
    "FP64": DataType("float64", "d", 8, float),
    "BYTES": BYTES,
}
#: The protocol's names by numpy's.
NAMES = {datatype.dtype: name for name, datatype in DATATYPES.items()}


class InvalidTensor(ValueError):
    """The elements do not fit the tensor's data type or shape. The text completes `... is invalid: `."""


def element_count(shape: Sequence[int]) -> int:
    return math.prod(shape)


def check_size(datatype: DataType, shape: Sequence[int], size: int) -> None:
    """Raise `InvalidTensor` where a tensor of this type and shape has another size in bytes; not for `BYTES`."""
    expected = element_count(shape) * datatype.size
    if datatype is not BYTES and size != expected:
        raise InvalidTensor(f"its shape {list(shape)} needs {expected} bytes, not {size}")


def from_json(datatype: DataType, shape: Sequence[int], data: msgspec.Raw) -> bytes:
    """Return the elements of a JSON array, nested as in the shape or flat. Raises `InvalidTensor`."""
    count = element_count(shape)
    if datatype is BYTES and count > MAX_STRINGS:
        raise InvalidTensor(f"it has {count} strings; at most {MAX_STRINGS} are allowed")
    values = _flat(datatype.kind, shape, data)
    if len(values) != count:
        raise InvalidTensor(f"its shape {list(shape)} needs {count} elements, not {len(values)}")
    if datatype is BYTES:
        return encode_strings([value.encode() for value in values])
    try:
        return struct.pack(f"<{count}{datatype.code}", *values)
    except (struct.error, OverflowError):
        raise InvalidTensor(f"an element is outside the range of {NAMES[datatype.dtype]}") from None


def _flat(kind: type, shape: Sequence[int], data: msgspec.Raw) -> list[Any]:
    """The elements without the nesting, whose lengths are checked."""
    try:
        values: list[Any] = _decoder(kind, 1).decode(data)
        return values
    except msgspec.ValidationError as error:
        if len(shape) < 2:
            raise InvalidTensor(_reason(error)) from None
    except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
        raise InvalidTensor(f"its data is not JSON: {error}") from None
    try:
        level = [_decoder(kind, len(shape)).decode(data)]
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise InvalidTensor(_reason(error)) from None
    for axis, size in enumerate(shape):
        if any(len(each) != size for each in level):
            raise InvalidTensor(f"its data does not have the shape {list(shape)}: axis {axis} is not {size} everywhere")
        level = list(itertools.chain.from_iterable(level)) if axis < len(shape) - 1 else level
    return list(itertools.chain.from_iterable(level))


def _reason(error: Exception) -> str:
    return str(error).replace("`", "").replace("$", "data", 1)


@functools.cache  # of 4 types and `MAX_DIMENSIONS` depths
def _decoder(kind: type, depth: int) -> msgspec.json.Decoder[Any]:
    expected: Any = kind
    for _ in range(depth):
        expected = list[expected]
    return msgspec.json.Decoder(expected)


def encode_strings(values: Sequence[bytes]) -> bytes:
    """Return the elements of a `BYTES` tensor in one piece."""
    return b"".join(itertools.chain.from_iterable((len(value).to_bytes(4, "little"), value) for value in values))


def decode_strings(data: bytes | bytearray | memoryview, count: int) -> list[bytes]:
    """Return the `count` elements of a `BYTES` tensor. Raises `InvalidTensor` where there are not as many."""
    view, position, values = memoryview(data), 0, []
    if count > MAX_STRINGS:
        raise InvalidTensor(f"it has {count} strings; at most {MAX_STRINGS} are allowed")
    for _ in range(count):
        start = position + 4
        position = start + int.from_bytes(view[position:start], "little")
        if start > len(view) or position > len(view):
            raise InvalidTensor(f"its bytes end before its {count} strings do")
        values.append(bytes(view[start:position]))
    if position != len(view):
        raise InvalidTensor(f"bytes follow its {count} strings")
    return values


def to_json(datatype: DataType, shape: Sequence[int], data: bytes | bytearray | memoryview) -> Iterator[bytes]:
    """Yield the elements as a flat JSON array in parts; a float that is not finite becomes null.

    Raises `InvalidTensor` for `BYTES` that are not UTF-8, which JSON cannot hold.
    """
    if datatype is BYTES:
        yield msgspec.json.encode(_texts(data, element_count(shape)))
        return
    view = memoryview(data)
    between = b"["
    for start in range(0, len(view), _PART * datatype.size):
        part = view[start : start + _PART * datatype.size]
        yield between + msgspec.json.encode(_values(datatype, part))[1:-1]
        between = b","
    yield b"[]" if between == b"[" else b"]"


def _texts(data: bytes | bytearray | memoryview, count: int) -> list[str]:
    try:
        return [value.decode() for value in decode_strings(data, count)]
    except UnicodeDecodeError:
        raise InvalidTensor("it is not text in UTF-8, which JSON cannot hold") from None


def _nested(values: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
    """Return the elements in lists as the shape is. No axis but the first is empty."""
    for size in reversed(shape[1:]):
        values = [values[start : start + size] for start in range(0, len(values), size)]
    return values


def _values(datatype: DataType, data: memoryview) -> tuple[Any, ...]:
    return struct.unpack(f"<{len(data) // datatype.size}{datatype.code}", data)


def nested_json(datatype: DataType, shape: Sequence[int], data: bytes | bytearray | memoryview) -> Iterator[bytes]:
    """Yield the elements as JSON lists nested as the shape is; a tensor without dimensions is one value."""
    if not shape:
        yield b"".join(to_json(datatype, (1,), data))[1:-1]
    elif len(shape) == 1 or not element_count(shape):
        yield from to_json(datatype, shape, data)
    elif datatype is BYTES:
        yield msgspec.json.encode(_nested(_texts(data, element_count(shape)), shape))
    else:
        yield from _nested_parts(datatype, shape, memoryview(data))


def _nested_parts(datatype: DataType, shape: Sequence[int], data: memoryview) -> Iterator[bytes]:
    """Yield the JSON of several axes: of many short rows at once, of long ones each by itself."""
    row = element_count(shape[1:])
    rows = max(_PART // row, 1)
    size = rows * row * datatype.size
    between = b"["
    for start in range(0, len(data), size):
        part = data[start : start + size]
        yield between
        between = b","
        if row <= _PART:
            yield msgspec.json.encode(_nested(_values(datatype, part), shape))[1:-1]
        else:
            yield from nested_json(datatype, shape[1:], part)
    yield b"]"
