"""Bytes become the same base64 as everywhere."""

from __future__ import annotations

import base64

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.schema.responses import PredictAnswer, base64_json


@given(st.binary(max_size=200))
def test_any_bytes_are_base64(data: bytes) -> None:
    for frame in (data, bytearray(data), memoryview(data)):
        found = msgspec.json.decode(msgspec.json.encode(PredictAnswer(base64_json(frame))))
        assert found == {"image": base64.b64encode(data).decode()}


def test_the_document_says_base64() -> None:
    _, schemas = msgspec.json.schema_components([PredictAnswer])
    image = schemas["PredictAnswer"]["properties"]["image"]
    assert (image["type"], image["contentEncoding"]) == ("string", "base64")
