"""A response ends with its last part, or with its client."""

from __future__ import annotations

import asyncio

import pytest
from starlette.types import Message

from loadbalancer.api.frame_response import FrameResponse
from scripts.harness.processes import PATIENCE_S

PART = 64 << 10


async def _receive() -> Message:
    raise AssertionError("nothing is read")


@pytest.mark.parametrize("size", [0, 1, PART, PART + 1, 3 * PART])
async def test_response_ends_when_its_last_part_is_taken(size: int) -> None:
    taken: asyncio.Queue[Message] = asyncio.Queue(1)
    ended: list[int] = []
    body = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    response = FrameResponse(
        [body[: size // 2], memoryview(body)[size // 2 :]], "image/png", 201, on_end=lambda: ended.append(1)
    )
    sending = asyncio.create_task(response({"type": "http"}, _receive, taken.put))
    start = await asyncio.wait_for(taken.get(), PATIENCE_S)
    assert (start["status"], dict(start["headers"])[b"content-length"]) == (201, str(size).encode())
    received = b""
    more = True
    while more:
        assert not ended or len(received) + 2 * PART >= size
        message = await asyncio.wait_for(taken.get(), PATIENCE_S)
        assert len(message["body"]) <= PART
        received, more = received + message["body"], message["more_body"]
        assert more is (len(received) < size), "a client that knows the length waits for nothing after it"
    await asyncio.wait_for(sending, PATIENCE_S)
    assert (received, ended) == (body, [1])


async def test_response_whose_client_leaves_ends_once() -> None:
    ended: list[int] = []
    response = FrameResponse([b"x" * 2 * PART], "image/png", on_end=lambda: ended.append(1))
    never: asyncio.Queue[Message] = asyncio.Queue(1)
    sending = asyncio.create_task(response({"type": "http"}, _receive, never.put))
    await asyncio.sleep(0)
    sending.cancel()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert ended == [1]
