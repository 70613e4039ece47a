"""The choice of a response's media type by the header Accept."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.schema.media_types import BYTES, JSON, choose, parse_accept, prefers_events, quality

PNG = "image/png"


@pytest.mark.parametrize(
    ("header", "chosen"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("image/png", PNG),
        ("IMAGE/PNG", PNG),
        ("image/*", PNG),
        ("image/png, */*;q=0.8", PNG),
        ("image/avif,image/webp,image/*,*/*;q=0.8", PNG),
        ("image/png;q=0.5, application/json", JSON),
        ("application/json, image/png", JSON),
        ("application/*", JSON),
        ("application/octet-stream", BYTES),
        ("application/json;q=0, */*", PNG),
        ("*/*, application/json;q=0.1", PNG),
        ("text/html", None),
        ("image/png;q=0", None),
        ("image/png; q=0.123 ; level=1", PNG),
        ("broken", JSON),
        ("a/b/c, image/png", PNG),
        ("image/png," * 1000, JSON),
    ],
)
def test_best_offer_is_chosen(header: str, chosen: str | None) -> None:
    assert choose(parse_accept(header), (JSON, PNG, BYTES)) == chosen


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("text/event-stream", True),
        ("text/event-stream, application/json;q=0.5", True),
        ("application/json, text/event-stream", False),
        ("text/event-stream, */*", False),
        ("text/*", False),
        ("*/*", False),
        ("text/event-stream;q=0", False),
    ],
)
def test_streams_are_for_clients_that_name_them(header: str, expected: bool) -> None:
    assert prefers_events(parse_accept(header)) is expected


@given(st.text(max_size=60))
def test_any_header_gives_a_weight(header: str) -> None:
    ranges = parse_accept(header)
    assert all(0 <= quality(ranges, kind) <= 1 for kind in (JSON, PNG, BYTES))
