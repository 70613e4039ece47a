"""Encodes messages as ZeroMQ frames: one MessagePack header for many messages, then their raw frames in order.

    [header: array of messages] [frame] [frame] ...

Decoding is strict: a header that is not an array of known messages, or a wrong number of frames, raises
`MalformedFrames`. Nothing is unpickled, and no frame is copied.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import msgspec

from wire.messages import Assign, Chunk, Finished, Preempted, Progress, ToBalancer, Tokens, ToWorker

Frame = bytes | bytearray | memoryview

#: Larger headers are rejected before they are parsed.
MAX_HEADER_BYTES = 4 * 2**20
MAX_FRAMES = 65_536


class MalformedFrames(ValueError):
    """The frames are not a message of this protocol. The text gives the reason and is safe to log."""


class WorkerEnvelope(NamedTuple):
    """One message of a worker and the raw frames that belong to it."""

    message: ToBalancer
    frames: Sequence[Frame] = ()


class BalancerEnvelope(NamedTuple):
    """One message to a worker and the raw frames that belong to it."""

    message: ToWorker
    frames: Sequence[Frame] = ()


Message = TypeVar("Message", ToBalancer, ToWorker)
Envelope = TypeVar("Envelope", WorkerEnvelope, BalancerEnvelope)

_encoder = msgspec.msgpack.Encoder()
_WITH_FRAMES = (Progress, Chunk, Preempted)


def encode(envelopes: Iterable[WorkerEnvelope] | Iterable[BalancerEnvelope]) -> list[Frame]:
    """Return the frames of one ZeroMQ message. Raises `ValueError` if a message's frame count is wrong."""
    messages: list[ToBalancer | ToWorker] = []
    frames: list[Frame] = []
    for message, own in envelopes:
        if (count := frame_count(message)) != len(own):
            raise ValueError(f"{type(message).__name__} announces {count} frames, brings {len(own)}")
        messages.append(message)
        frames += own
    return [_encoder.encode(messages), *frames]


def encode_bounded(envelopes: Sequence[WorkerEnvelope] | Sequence[BalancerEnvelope]) -> Iterator[list[Frame]]:
    """Yield the frames of as many ZeroMQ messages as keep the bounds of each: the receiver drops a larger one."""
    frames = encode(envelopes)
    parts = _halves(envelopes) if len(frames[0]) > MAX_HEADER_BYTES or len(frames) > MAX_FRAMES else ()
    if not parts:
        yield frames
    for part in parts:
        yield from encode_bounded(part)


def _halves(
    envelopes: Sequence[WorkerEnvelope] | Sequence[BalancerEnvelope],
) -> Sequence[Sequence[WorkerEnvelope] | Sequence[BalancerEnvelope]]:
    """Return both halves of the messages, or of the tasks of a single one; nothing where that has one task."""
    half = len(envelopes) // 2
    if half:
        return envelopes[:half], envelopes[half:]
    message, frames = envelopes[0]
    if not isinstance(message, Assign | Tokens) or len(message.tasks) < 2:
        return ()
    half = len(message.tasks) // 2
    if isinstance(message, Tokens):
        return [[WorkerEnvelope(Tokens(tasks))] for tasks in (message.tasks[:half], message.tasks[half:])]
    first = Assign(message.tasks[:half], message.queued)
    count = frame_count(first)
    second = Assign(message.tasks[half:], message.queued)
    return [BalancerEnvelope(first, frames[:count])], [BalancerEnvelope(second, frames[count:])]


def frame_count(message: ToBalancer | ToWorker) -> int:
    if isinstance(message, Finished):
        return len(message.parts)
    if isinstance(message, _WITH_FRAMES):
        return message.frames
    return sum([task.frames for task in message.tasks]) if isinstance(message, Assign) else 0


def _decode(
    decoder: msgspec.msgpack.Decoder[list[Message]],
    envelope: Callable[[Message, Sequence[Frame]], Envelope],
    frames: Sequence[Frame],
) -> list[Envelope]:
    if not frames:
        raise MalformedFrames("no header frame")
    if len(frames) > MAX_FRAMES or len(frames[0]) > MAX_HEADER_BYTES:
        raise MalformedFrames(f"{len(frames)} frames with a header of {len(frames[0])} bytes is past the limit")
    try:
        messages = decoder.decode(frames[0])
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise MalformedFrames(str(error)) from error
    except RecursionError as error:
        raise MalformedFrames("header is nested too deeply") from error
    envelopes: list[Envelope] = []
    place = 1
    for message in messages:
        count = frame_count(message)
        envelopes.append(envelope(message, frames[place : place + count] if count else ()))
        place += count
    if place != len(frames):
        raise MalformedFrames(f"messages announce {place - 1} frames, {len(frames) - 1} came")
    return envelopes


#: The messages in the frames of one ZeroMQ message. They raise `MalformedFrames`.
decode_from_worker: Callable[[Sequence[Frame]], list[WorkerEnvelope]] = functools.partial(
    _decode, msgspec.msgpack.Decoder(list[ToBalancer]), WorkerEnvelope
)
decode_for_worker: Callable[[Sequence[Frame]], list[BalancerEnvelope]] = functools.partial(
    _decode, msgspec.msgpack.Decoder(list[ToWorker]), BalancerEnvelope
)
