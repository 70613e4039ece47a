"""The events of a stream of calls: one per chunk, then one for the end of each call."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import msgspec

from loadbalancer.schema.responses import Timings
from wire.codec import Frame


class PredictionChunk(msgspec.Struct, frozen=True, tag_field="type", tag="prediction.chunk"):
    """A piece of the result of one call, in order. An engine that does not stream sends one."""

    index: Annotated[int, msgspec.Meta(description="Index of the instance in the request, from 0.")]
    chunk: Annotated[int, msgspec.Meta(description="Index of the piece, from 0.")]
    prediction: Annotated[Any, msgspec.Meta(description="The piece, as an engine without streams returns a result.")]


class PredictionCompleted(msgspec.Struct, frozen=True, tag_field="type", tag="prediction.completed"):
    """The end of one call. The stream ends after the last."""

    index: int
    chunks: Annotated[int, msgspec.Meta(description="Number of its pieces.")]
    model: str
    timings: Timings


_encoder = msgspec.json.Encoder()


def chunk_event(index: int, chunk: int, prediction: Sequence[Frame]) -> bytes:
    """The event of a piece, which is JSON in the frames."""
    head = b'{"type":"prediction.chunk","index":%d,"chunk":%d,"prediction":' % (index, chunk)
    return b"".join([b"event: prediction.chunk\ndata: ", head, *map(_one_line, prediction), b"}\n\n"])


def completed_event(event: PredictionCompleted) -> bytes:
    return b"event: prediction.completed\ndata: %b\n\n" % _encoder.encode(event)


def _one_line(json: Frame) -> bytes:
    """JSON has line breaks only between its tokens, where a space does as well."""
    return bytes(json).translate(_SPACES)


_SPACES = bytes.maketrans(b"\r\n", b"  ")
