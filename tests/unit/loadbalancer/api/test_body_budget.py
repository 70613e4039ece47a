"""Bodies in memory are bounded over all requests."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import Headers
from starlette.types import Message

from loadbalancer.api.body_budget import CODE, BodyBudget, BodyReservation, is_small
from loadbalancer.api.http_helpers import read_json
from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.schema.errors import TooBusy

MAX = 1000


def budget(maximum: int = MAX) -> BodyBudget:
    return BodyBudget(maximum, RefusalCounter())


def request(reservation: BodyReservation, chunks: list[bytes], headers: dict[str, str] | None = None) -> Request:
    async def messages() -> AsyncIterator[Message]:
        for chunk in chunks:
            yield {"type": "http.request", "body": chunk, "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}

    source = messages()
    encoded = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    scope = {"type": "http", "method": "POST", "path": "/", "headers": encoded, "state": {"body": reservation}}
    return Request(scope, reservation.counting(lambda: anext(source)))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 600)), max_size=40))
def test_held_is_the_sum_of_reservations_and_bounded(steps: list[tuple[int, int]]) -> None:
    """Each step adds to one of four requests; a size of 0 ends the request."""
    shared = budget()
    sizes = [0] * 5
    reservations = [BodyReservation(shared) for _ in sizes]
    for index, size in steps:
        if size == 0:
            reservations[index].release()
            reservations[index].release()
            sizes[index], reservations[index] = 0, BodyReservation(shared)
            continue
        fits = sum(sizes) + size <= MAX
        if fits:
            reservations[index].add(size)
            sizes[index] += size
        else:
            with pytest.raises(TooBusy):
                reservations[index].add(size)
        assert shared.held == sum(sizes) <= MAX
    for each in reservations:
        each.release()
    assert shared.held == 0


async def test_bodies_of_several_requests_share_the_memory() -> None:
    refusals = RefusalCounter()
    shared = BodyBudget(MAX, refusals)
    first, second = BodyReservation(shared), BodyReservation(shared)
    assert await read_json(request(first, [b" " * 300, b" " * 400]), 10_000) == b" " * 700
    with pytest.raises(TooBusy) as refused:
        await read_json(request(second, [b" " * 200] * 3), 10_000)
    assert (refused.value.status, refused.value.code) == (429, CODE)
    assert refused.value.headers == {"connection": "close", "retry-after": "1"}
    assert refusals.counts[CODE] == 1
    second.release()
    assert shared.held == 700
    first.release()
    third = BodyReservation(shared)
    assert len(await read_json(request(third, [b" " * 200] * 3), 10_000)) == 600


@pytest.mark.parametrize(("size", "accepted"), [(900, True), (2000, False)])
async def test_decompressed_bytes_count(size: int, accepted: bool) -> None:
    """Room for what a body may become is taken before it is decompressed."""
    shared = budget()
    own = BodyReservation(shared)
    sent = gzip.compress(b" " * size)
    reading = read_json(request(own, [sent], {"content-encoding": "gzip"}), size)
    if accepted:
        assert len(await reading) == size
        assert shared.held == size + len(sent)
    else:
        with pytest.raises(TooBusy):
            await reading


async def test_what_follows_a_released_body_is_not_counted() -> None:
    shared = budget()
    own = BodyReservation(shared)
    own.release()
    await read_json(request(own, [b" " * 5000]), 10_000)
    assert shared.held == 0


@pytest.mark.parametrize(
    ("headers", "small"),
    [
        ({"content-length": "65536"}, True),
        ({"content-length": "65537"}, False),
        ({"content-length": "0"}, True),
        ({}, False),
        ({"transfer-encoding": "chunked"}, False),
        ({"content-length": "-1"}, False),
        ({"content-length": "10", "content-encoding": "gzip"}, False),
    ],
)
def test_only_bodies_of_unknown_or_large_size_are_counted(headers: dict[str, str], small: bool) -> None:
    assert is_small(Headers(headers)) is small
