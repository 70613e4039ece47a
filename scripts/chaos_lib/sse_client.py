"""A stream of server-sent events, read to its end as a client would: quickly, or a little now and then."""

from __future__ import annotations

import asyncio
import base64
import json
from dataclasses import dataclass, field
from typing import Any

import aiohttp

_COMPLETED = "image_generation.completed"
#: What a slow reader takes at once, and how long it rests.
_SIP_BYTES, _REST_S = 512, 0.04
#: What the server says when it asks its clients to come again.
_COME_AGAIN = ("shutting_down", "unavailable")


class Later(Exception):
    """The server cannot now, and says when to ask again."""

    def __init__(self, reason: str, after_s: float) -> None:
        super().__init__(reason)
        self.reason = reason
        self.after_s = after_s


class CutShort(Exception):
    """The stream has ended without its last event."""


@dataclass
class Heard:
    """What a stream has told."""

    #: By the image's place in its request.
    images: dict[int, bytes] = field(default_factory=dict)
    failure: str = ""
    twice: list[str] = field(default_factory=list)
    #: Every byte of it.
    whole: bytes = b""


async def listen(answer: aiohttp.ClientResponse, count: int, *, slow: bool = False) -> Heard:
    """The whole stream of `count` images. Raises `CutShort`, `Later`, and what aiohttp raises."""
    heard = Heard()
    pieces: list[bytes] = []
    rest = b""
    while piece := await (answer.content.read(_SIP_BYTES) if slow else answer.content.readany()):
        pieces.append(piece)
        *blocks, rest = (rest + piece).split(b"\n\n")
        for block in blocks:
            _take_in(heard, block)
        if slow:
            await asyncio.sleep(_REST_S)
    heard.whole = b"".join(pieces)
    if heard.failure in _COME_AGAIN:
        raise Later(heard.failure, 1.0)
    if not heard.failure and len(heard.images) < count:
        raise CutShort(f"{len(heard.images)} of {count} images, and no last word")
    return heard


def _take_in(heard: Heard, block: bytes) -> None:
    """One event, or a comment that keeps the connection alive."""
    data = b"".join(line.removeprefix(b"data: ") for line in block.split(b"\n") if line.startswith(b"data: "))
    if not data:
        return
    event: dict[str, Any] = json.loads(data)
    if event["type"] == "error":
        heard.failure = event["error"]["code"]
    elif event["type"] == _COMPLETED:
        index = event["index"]
        if index in heard.images:
            heard.twice.append(f"image {index} was completed twice in one stream")
        heard.images[index] = base64.b64decode(event["b64_json"])
