"""Reader of a stream of server-sent events, at full speed or slowly."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, field
from typing import Any

import aiohttp

_COMPLETED = "image_generation.completed"
#: Bytes that a slow reader reads at once, and its pause.
_SLOW_READ_BYTES, _SLOW_PAUSE_S = 512, 0.04
#: Error codes after which a client retries.
_RETRYABLE = ("shutting_down", "unavailable")


class RetryLater(Exception):
    """The server asks the client to retry after `after_s`."""

    def __init__(self, reason: str, after_s: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after_s = after_s


class StreamTruncated(Exception):
    """The stream ended without its last event."""


@dataclass
class StreamResult:
    """Content of a stream."""

    #: By the index of the image or text in its request.
    images: dict[int, bytes] = field(default_factory=dict)
    #: Texts that are not complete yet.
    texts: dict[int, str] = field(default_factory=dict)
    failure: str = ""
    duplicates: list[str] = field(default_factory=list)
    #: All bytes of the stream.
    body: bytes = b""


async def read_stream(answer: aiohttp.ClientResponse, count: int, *, slow: bool = False) -> StreamResult:
    """Read a stream of `count` images. Raises `StreamTruncated`, `RetryLater` and the errors of aiohttp."""
    stream = StreamResult()
    pieces: list[bytes] = []
    rest = b""
    while piece := await (answer.content.read(_SLOW_READ_BYTES) if slow else answer.content.readany()):
        pieces.append(piece)
        *blocks, rest = (rest + piece).split(b"\n\n")
        for block in blocks:
            _add_event(stream, block)
        if slow:
            await asyncio.sleep(_SLOW_PAUSE_S)
    stream.body = b"".join(pieces)
    if stream.failure in _RETRYABLE:
        raise RetryLater(stream.failure, 1.0)
    if not stream.failure and len(stream.images) < count:
        raise StreamTruncated(f"{len(stream.images)} of {count} images, and no last event")
    return stream


def _add_event(stream: StreamResult, block: bytes) -> None:
    """Add an event; ignore a keep-alive comment."""
    data = b"".join(line.removeprefix(b"data: ") for line in block.split(b"\n") if line.startswith(b"data: "))
    if not data:
        return
    if data == b"[DONE]":
        return
    event: dict[str, Any] = json.loads(data)
    if "error" in event:
        stream.failure = event["error"]["code"]
    elif "choices" in event:
        _add_tokens(stream, event["choices"])
    elif event["type"] == _COMPLETED:
        index = event["index"]
        if index in stream.images:
            stream.duplicates.append(f"image {index} was completed twice in one stream")
        stream.images[index] = base64.b64decode(event["b64_json"])


def _add_tokens(stream: StreamResult, choices: list[dict[str, Any]]) -> None:
    for choice in choices:
        index, delta = int(choice["index"]), choice["delta"]
        if index in stream.images:
            stream.duplicates.append(f"text {index} went on after its end")
        stream.texts[index] = stream.texts.get(index, "") + (delta.get("content") or "")
        if choice["finish_reason"] is not None:
            stream.images[index] = stream.texts[index].encode()
