"""Compressed bodies of every size, whole and damaged."""

from __future__ import annotations

import gzip
import os
import tracemalloc
import zlib
from collections.abc import Callable

import pytest
from starlette.datastructures import Headers

from loadbalancer.api.content_coding import decode_body
from loadbalancer.schema.errors import BodyTooLarge, InvalidRequest

GZIP = Headers({"content-encoding": "gzip"})
MAX = 8 << 20


async def decoded(body: bytes, max_bytes: int = MAX) -> bytes:
    return await decode_body(GZIP, body, max_bytes, lambda _: None)


@pytest.mark.parametrize("size", [0, 1, 1 << 14, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3_000_000])
@pytest.mark.parametrize("compress", [gzip.compress, zlib.compress])
async def test_body_of_any_size_is_decoded(size: int, compress: Callable[[bytes], bytes]) -> None:
    for content in (b" " * size, os.urandom(size)):
        assert await decoded(compress(content)) == content


@pytest.mark.parametrize("size", [10, 1 << 14, 100_000])
async def test_damaged_body_is_refused(size: int) -> None:
    whole = gzip.compress(os.urandom(size))
    for cut in (1, 9, len(whole) // 2, len(whole) - 1):
        with pytest.raises(InvalidRequest, match="cut short"):
            await decoded(whole[:cut])
    for behind in (b"x", whole):
        with pytest.raises(InvalidRequest, match="more bytes follow"):
            await decoded(whole + behind)
    with pytest.raises(BodyTooLarge):
        await decoded(whole, size - 1)


async def test_body_is_not_copied_while_it_is_decoded() -> None:
    sent = gzip.compress(os.urandom(MAX), 1)

    def reserve(size: int) -> None:
        raise MemoryError(size)

    tracemalloc.start()
    try:
        with pytest.raises(MemoryError):
            await decode_body(GZIP, sent, MAX, reserve)
        assert tracemalloc.get_traced_memory()[1] < MAX // 2
    finally:
        tracemalloc.stop()
