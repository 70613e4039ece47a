"""What is read of the headers before a request has a route."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.api.request_head import RequestHead
from loadbalancer.api.request_recorder import RequestRecorder


@pytest.mark.parametrize(
    ("headers", "small"),
    [
        ({"content-length": "65536"}, True),
        ({"content-length": "65537"}, False),
        ({"content-length": "0"}, True),
        ({}, False),
        ({"transfer-encoding": "chunked"}, False),
        ({"content-length": "-1"}, False),
        ({"content-length": "\u00b2"}, False),
        ({"content-length": "10", "content-encoding": "gzip"}, False),
    ],
)
def test_only_bodies_of_unknown_or_large_size_are_counted(headers: dict[str, str], small: bool) -> None:
    assert RequestHead([(key.encode(), value.encode("latin-1")) for key, value in headers.items()]).is_small is small


@pytest.mark.parametrize(
    ("given_id", "kept"),
    [(b"abc-1._", True), (b"", False), (b"a b", False), (b"a" * 128, True), (b"a" * 129, False), (b"\xff", False)],
)
def test_ids_of_clients_are_kept_where_they_are_safe(given_id: bytes, kept: bool) -> None:
    head = RequestHead([(b"x-request-id", given_id)])
    assert head.given_id == (given_id.decode("latin-1") if kept else "")
    found = RequestRecorder().begin(head, "POST", "/").request_id
    assert found == head.given_id if kept else re.fullmatch("[0-9a-f]{32}", found)


def test_the_first_of_repeated_headers_counts() -> None:
    names = (b"host", b"origin", b"authorization", b"content-length", b"x-request-id")
    head = RequestHead([(name, value) for value in (b"1", b"2") for name in names])
    assert (head.host, head.origin, head.authorization, head.length, head.given_id) == ("1", "1", "1", 1, "1")


@given(st.lists(st.tuples(st.sampled_from([b"content-length", b"host", b"origin", b"a"]), st.binary(max_size=20))))
def test_any_header_is_read(headers: list[tuple[bytes, bytes]]) -> None:
    head = RequestHead(headers)
    assert head.length >= -1
    assert len({RequestRecorder().begin(head, "GET", "/").request_id for _ in range(5)}) == 5
