"""Bodies in memory are bounded over all requests, and for each API key."""

from __future__ import annotations

import gzip
from collections.abc import AsyncIterator

import pytest
from fastapi import Request
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Message

from loadbalancer.access.api_keys import ANONYMOUS
from loadbalancer.api.body_budget import CODE, KEY_CODE, BodyBudget, BodyReservation
from loadbalancer.api.http_helpers import read_json
from loadbalancer.api.uploads import read_form
from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.schema.errors import TooBusy

MAX = 1000
OWNER = "alice"
PER_KEY = 700


def budget(maximum: int = MAX, per_key: int = MAX) -> BodyBudget:
    return BodyBudget(maximum, per_key, RefusalCounter())


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
    """Each step adds to one of five requests; a size of 0 ends the request. Requests 0 and 1 have no key."""
    shared = budget(per_key=PER_KEY)
    owners = [ANONYMOUS, ANONYMOUS, "alice", "alice", "bob"]
    sizes = [0] * 5
    reservations = [BodyReservation(shared, owner) for owner in owners]
    for index, size in steps:
        if size == 0:
            reservations[index].release()
            reservations[index].release()
            sizes[index], reservations[index] = 0, BodyReservation(shared, owners[index])
            continue
        own = sum(held for held, owner in zip(sizes, owners, strict=True) if owner == owners[index])
        fits = sum(sizes) + size <= MAX and (owners[index] == ANONYMOUS or own + size <= PER_KEY)
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
    shared = BodyBudget(MAX, MAX, refusals)
    first, second = BodyReservation(shared, OWNER), BodyReservation(shared, "bob")
    assert await read_json(request(first, [b" " * 300, b" " * 400]), 10_000) == b" " * 700
    with pytest.raises(TooBusy) as refused:
        await read_json(request(second, [b" " * 200] * 3), 10_000)
    assert (refused.value.status, refused.value.code) == (429, CODE)
    assert refused.value.headers == {"connection": "close", "retry-after": "1"}
    assert refusals.counts[CODE] == 1
    second.release()
    assert shared.held == 700
    first.release()
    third = BodyReservation(shared, OWNER)
    assert len(await read_json(request(third, [b" " * 200] * 3), 10_000)) == 600


async def test_bodies_of_one_key_leave_room_for_others() -> None:
    shared = budget(per_key=PER_KEY)
    first, second, other = (BodyReservation(shared, owner) for owner in ("alice", "alice", "bob"))
    first.add(PER_KEY)
    with pytest.raises(TooBusy) as refused:
        second.add(1)
    assert (refused.value.status, refused.value.code) == (429, KEY_CODE)
    other.add(MAX - PER_KEY)
    with pytest.raises(TooBusy) as full:
        other.add(1)
    assert full.value.code == CODE
    first.release()
    second.add(PER_KEY)


@pytest.mark.parametrize(
    ("content", "room", "held"),
    [
        (b" " * 900, MAX, 900),
        (b" " * 2000, MAX, None),
        (b" " * (5 << 20), 6 << 20, 5 << 20),
        (b" " * (5 << 20), 4 << 20, None),
    ],
)
async def test_decompressed_bytes_count(content: bytes, room: int, held: int | None) -> None:
    """They are reserved while they are decompressed, and not what a body of this size could become."""
    shared = budget(room, room)
    own = BodyReservation(shared, OWNER)
    sent = gzip.compress(content)
    reading = read_json(request(own, [sent], {"content-encoding": "gzip"}), 32 << 20)
    if held is not None:
        assert len(await reading) == held
        assert shared.held == held + len(sent)
    else:
        with pytest.raises(TooBusy):
            await reading


@pytest.mark.parametrize("size", [1 << 20, 20 << 20])
async def test_files_of_forms_on_disk_do_not_count(size: int) -> None:
    shared = budget(8 << 20, 8 << 20)
    part = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a.png"\r\n\r\n'
    chunks = [part, *[bytes(1 << 18)] * (size >> 18), b"\r\n--b--\r\n"]
    headers = {"content-type": "multipart/form-data; boundary=b"}
    form = request(BodyReservation(shared, OWNER), chunks, headers)
    async with read_form(form, 32 << 20, 1 << 20, RefusalCounter()) as parsed:
        file = parsed.file("image")
        assert file is not None
        assert len(file()) == size
        assert 0 < shared.held <= 6 << 20


async def test_what_follows_a_released_body_is_not_counted() -> None:
    shared = budget()
    own = BodyReservation(shared, OWNER)
    own.release()
    await read_json(request(own, [b" " * 5000]), 10_000)
    assert shared.held == 0
