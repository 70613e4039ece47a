"""Entity tags and codings in headers of requests."""

from __future__ import annotations

import pytest

from loadbalancer.api.conditional_requests import accepts_gzip, has_entity_tag


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('"a"', True),
        ('W/"a"', True),
        ('"x", "a"', True),
        ('"x",W/"a" , "y"', True),
        ("*", True),
        ("", False),
        ('"b"', False),
        ("a", False),
        ('"aa"', False),
        ('"b, "a', False),
        ('"x",' * 1000 + '"a"', False),
    ],
)
def test_entity_tag_is_found(header: str, expected: bool) -> None:
    assert has_entity_tag(header, '"a"') is expected


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("gzip", True),
        ("deflate, GZIP;q=0.5, br", True),
        ("*", True),
        ("gzip;q=1.0", True),
        ("gzip; q=0.001", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("*;q=0", False),
        ("br", False),
        ("identity", False),
        ("", False),
        ("gzip," * 1000, False),
    ],
)
def test_gzip_is_accepted_where_its_weight_is_above_zero(header: str, expected: bool) -> None:
    assert accepts_gzip(header) is expected
