"""The result of a call in the forms that clients ask for: JSON, or the bytes of its only part."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import msgspec
import pybase64

from loadbalancer.schema.media_types import BYTES, JSON, MediaRange, choose
from loadbalancer.schema.raw_json import is_json
from loadbalancer.schema.tensors import BYTES as STRINGS
from loadbalancer.schema.tensors import DATATYPES, NAMES, DataType, InvalidTensor, check_size, nested_json
from wire.codec import Frame
from wire.inputs import Part

_TEXT = "text/plain"


#: A value as JSON.
_PLAIN = Part()
_packed = msgspec.msgpack.Decoder(tuple[tuple[Part, ...], list[memoryview]])


class InvalidResult(ValueError):
    """The engine's result cannot be sent. The text says why."""


class CallResult(NamedTuple):
    """The parts that an engine has returned for one call, and a frame of each."""

    parts: Sequence[Part]
    frames: Sequence[Frame]


def pack_result(result: CallResult) -> bytes:
    """Return the result in one piece, as it is stored."""
    return msgspec.msgpack.encode((result.parts, result.frames))


def unpack_result(packed: bytes) -> CallResult:
    """The opposite. The frames are slices. Raises `msgspec.MsgspecError`."""
    return CallResult(*_packed.decode(packed))


def as_json(result: CallResult) -> list[Frame]:
    """Return the result as JSON, in pieces: the frame itself where it is JSON.

    Named parts are the members of an object, several others the items of a list; a result without parts is null.
    Tensors are nested lists. Other bytes are `{"b64": ..., "media_type": ...}`. Raises `InvalidResult`.
    """
    parts, frames = result
    if len(parts) == 1 and not parts[0].name:
        if parts[0] == _PLAIN and is_json(frames[0]):  # the way of most results
            return [frames[0]]
        return list(_value(parts[0], frames[0]))
    if not parts:
        return [b"null"]
    pieces: list[Frame] = []
    named = all(part.name for part in parts)
    for part, frame in zip(parts, frames, strict=True):
        pieces.append(b"," if pieces else b"{" if named else b"[")
        if named:
            pieces.append(msgspec.json.encode(part.name) + b":")
        pieces += _value(part, frame)
    return [*pieces, b"}" if named else b"]"]


def is_quick_json(result: CallResult) -> bool:
    """Return whether `as_json` only encodes bytes, which takes no time worth a thread."""
    return not any(part.dtype or part.media_type in (JSON, _TEXT) for part in result.parts)


def _value(part: Part, frame: Frame) -> Iterator[Frame]:
    if part.dtype:
        datatype = tensor_type(part, frame)
        try:
            yield b"".join(nested_json(datatype, part.shape, frame))  # of many small pieces
        except InvalidTensor as error:
            raise InvalidResult(f"the engine's tensor is invalid: {error}") from None
    elif part.media_type == JSON:
        if not is_json(frame):
            raise InvalidResult("the engine's result is not JSON")
        yield frame
    elif part.media_type == _TEXT and (text := _decoded(frame)) is not None:
        yield msgspec.json.encode(text)
    else:
        kind = msgspec.json.encode(part.media_type)
        yield b'{"b64":"'
        yield pybase64.b64encode(frame)
        yield b'","media_type":%b}' % kind


def _decoded(frame: Frame) -> str | None:
    try:
        return str(frame, "utf-8")
    except UnicodeDecodeError:
        return None


def check_result(result: CallResult) -> None:
    """Raise `InvalidResult` for a result that cannot become JSON, mostly without making it."""
    for part, frame in zip(*result, strict=True):
        if part.dtype == STRINGS.dtype:
            list(_value(part, frame))
        elif part.dtype:
            tensor_type(part, frame)
        elif part.media_type == JSON and not is_json(frame):
            raise InvalidResult("the engine's result is not JSON")


def tensor_type(part: Part, frame: Frame) -> DataType:
    """Return the type of the elements. Raises `InvalidResult` where the protocol has none, or the size is wrong."""
    name = NAMES.get(part.dtype)
    if name is None:
        raise InvalidResult(f"elements of the type {part.dtype} cannot be sent; allowed: {', '.join(NAMES)}")
    try:
        check_size(DATATYPES[name], part.shape, memoryview(frame).nbytes)
    except InvalidTensor as error:
        raise InvalidResult(f"the engine's tensor is invalid: {error}") from None
    return DATATYPES[name]


def response_type(result: CallResult, accepted: tuple[MediaRange, ...]) -> str | None:
    """Return the media type of the response to these Accept ranges, JSON first; None if none is acceptable.

    Bytes are for a result of one part, under its own type or as `application/octet-stream`.
    """
    if len(result.parts) != 1:
        return choose(accepted, (JSON,))
    return choose(accepted, tuple(dict.fromkeys((JSON, result.parts[0].media_type.lower(), BYTES))))
