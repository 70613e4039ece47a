"""`data:` URLs."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.generation.data_urls import decode_data_url
from loadbalancer.schema.errors import InvalidRequest
from tests.support.images import data_url


@pytest.mark.parametrize(
    "url",
    [
        data_url(b"\x00\xff"),
        data_url(b"\x00\xff", "image/jpeg"),
        data_url(b"\x00\xff", "text/plain;charset=utf-8"),
        data_url(b"\x00\xff", ""),
        data_url(b"\x00\xff").replace("data:", "DATA:"),
    ],
)
def test_data_urls(url: str) -> None:
    assert decode_data_url("image", url) == b"\x00\xff"


@pytest.mark.parametrize(
    ("url", "fragment"),
    [
        ("", "Must be a data URL"),
        ("data:image/png;base64", "Must be a data URL"),
        ("data:image/png,abc", "Must be a data URL"),
        ("http://127.0.0.1/picture.png", "other addresses are not fetched"),
        ("file:///etc/passwd", "other addresses are not fetched"),
        ("data:" + "x" * 300 + ";base64,AAAA", "Must be a data URL"),
        ("data:image/png;base64,A", "is not base64"),
        ("data:image/png;base64,AA=A", "is not base64"),
        ("data:image/png;base64,AA\x00A", "is not base64"),
        ("data:image/png;base64,\u00e9\u00e9\u00e9\u00e9", "is not base64"),
    ],
)
def test_invalid_data_url_is_rejected(url: str, fragment: str) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        decode_data_url("mask", url)
    assert fragment in rejected.value.message
    assert rejected.value.param == "mask"


@pytest.mark.parametrize("text", ["AP-_Zg==", "AP-_Zg", "AP+/Zg", "AP+/\r\nZg==\n", " AP+/ Zg==", "AP+/Zg===="])
def test_usual_spellings_of_base64_are_read(text: str) -> None:
    assert decode_data_url("image", f"data:image/png;base64,{text}") == b"\x00\xff\xbff"


@given(content=st.binary())
def test_data_url_round_trip(content: bytes) -> None:
    assert decode_data_url("image", data_url(content)) == content


@given(text=st.text())
def test_random_data_url_text_is_decoded_or_rejected(text: str) -> None:
    with contextlib.suppress(InvalidRequest):
        assert len(decode_data_url("image", f"data:;base64,{text}")) <= len(text)
