"""A state as frames: msgpack for plain values, raw frames for bytes and arrays. Never pickle.

The first frame describes the fields of the dict that an engine's `save` returns; each array and each bytes value has a
frame of its own after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec

from wire.inputs import Part
from worker.engines.user.tensors import as_array, decode_array, encode_array, is_array, is_scalar, is_tensor


class _Header(msgspec.Struct, frozen=True):
    """Fields of the state: those with plain values, then those in frames, in their order."""

    values: dict[str, Any]
    parts: list[Part]
    #: Chunks that were sent before.
    chunks: int = 0


class SavedState(NamedTuple):
    """What an engine needs to continue a call."""

    saved: dict[str, Any]
    chunks: int = 0


def encode_state(state: SavedState) -> list[bytes]:
    """Return the frames. Raises `ValueError` for a value that they cannot have."""
    saved = state.saved
    if not isinstance(saved, dict) or not all(isinstance(name, str) for name in saved):
        raise ValueError(f"save must return a dict with names as keys, not a {type(saved).__name__}")
    values: dict[str, Any] = {}
    parts: list[Part] = []
    frames: list[bytes] = []
    for name, value in saved.items():
        if is_array(value) or is_tensor(value):
            part, frame = encode_array(as_array(value), name)
        elif isinstance(value, bytes | bytearray):
            part, frame = Part("application/octet-stream", name), bytes(value)
        else:
            values[name] = value
            continue
        parts.append(part)
        frames.append(frame)
    try:
        header = msgspec.msgpack.encode(_Header(values, parts, state.chunks), enc_hook=_plain)
    except (TypeError, OverflowError) as error:
        raise ValueError(f"save may return arrays, bytes and plain values: {error}") from None
    return [header, *frames]


def _plain(value: Any) -> Any:
    """Return the number of a numpy scalar. Raises `TypeError` for other types."""
    plain = value.item() if is_scalar(value) else value
    if not isinstance(plain, bool | int | float | str | bytes):
        raise TypeError(f"not {type(value).__name__}")
    return plain


def decode_state(frames: Sequence[bytes]) -> SavedState:
    """Return the state, with arrays that may be changed. Raises `ValueError` for frames of something else."""
    try:
        header = msgspec.msgpack.decode(frames[0], type=_Header)
    except (IndexError, msgspec.DecodeError) as error:
        raise ValueError(f"the checkpoint is not from this engine: {error}") from None
    if len(frames) != 1 + len(header.parts):
        raise ValueError("the checkpoint is not from this engine: it has another number of frames")
    saved = dict(header.values)
    for part, frame in zip(header.parts, frames[1:], strict=True):
        saved[part.name] = decode_array(part, frame).copy() if part.dtype else frame
    return SavedState(saved, header.chunks)
