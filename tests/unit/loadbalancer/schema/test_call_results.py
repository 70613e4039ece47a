"""Results of calls as JSON and as bytes."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pytest

from loadbalancer.schema.call_results import (
    CallResult,
    InvalidResult,
    as_json,
    check_result,
    pack_result,
    response_type,
    unpack_result,
)
from loadbalancer.schema.media_types import BYTES, JSON, parse_accept
from wire.inputs import Part

MATRIX = np.arange(6, dtype=np.float32).reshape(2, 3)
TENSOR = Part(BYTES, "", "float32", (2, 3))
PNG = b"\x89PNG\r\n"


def b64(data: bytes, media_type: str) -> dict[str, str]:
    return {"b64": base64.b64encode(data).decode(), "media_type": media_type}


@pytest.mark.parametrize(
    ("parts", "frames", "value"),
    [
        ([], [], None),
        ([Part()], [b'{"label": 7}'], {"label": 7}),
        ([TENSOR], [MATRIX.tobytes()], MATRIX.tolist()),
        ([Part(BYTES, "", "int8", ())], [b"\x07"], 7),
        ([Part(BYTES, "", "bool", (0,))], [b""], []),
        ([Part("text/plain")], ["ü".encode()], "ü"),
        ([Part("text/plain")], [b"\xff"], b64(b"\xff", "text/plain")),
        ([Part("image/png")], [PNG], b64(PNG, "image/png")),
        ([Part(name="a"), Part("text/plain", "b")], [b"[1]", b"x"], {"a": [1], "b": "x"}),
        ([Part(name='"')], [b"1"], {'"': 1}),
        ([Part(), Part(name="b")], [b"1", b"2"], [1, 2]),
    ],
    ids=str,
)
def test_results_become_json(parts: list[Part], frames: list[bytes], value: Any) -> None:
    pieces = as_json(CallResult(parts, [memoryview(frame) for frame in frames]))
    assert json.loads(b"".join(pieces)) == value


def test_frame_of_json_is_not_copied() -> None:
    frame = memoryview(b'{"label":7}')
    assert as_json(CallResult([Part()], [frame]))[0] is frame


def test_stored_results_are_whole() -> None:
    parts = (Part("image/png", "a"), TENSOR)
    packed = pack_result(CallResult(parts, [b"", memoryview(MATRIX.tobytes())]))
    found = unpack_result(packed)
    assert (tuple(found.parts), [bytes(frame) for frame in found.frames]) == (parts, [b"", MATRIX.tobytes()])


@pytest.mark.parametrize(
    ("part", "frame", "fragment"),
    [
        (Part(), b"1], [2", "not JSON"),
        (Part(), b"", "not JSON"),
        (TENSOR, b"123", "needs 24 bytes, not 3"),
        (Part(BYTES, "", "complex64", (1,)), b"12345678", "complex64 cannot be sent"),
        (Part(BYTES, "", "BYTES", (1,)), b"\x01\0\0\0\xff", "not text in UTF-8"),
        (Part(BYTES, "", "BYTES", (2,)), b"\x01\0\0\0a", "end before its 2 strings"),
        (Part(BYTES, "", "BYTES", (2**31 - 1,)), b"", "at most 65536"),
    ],
    ids=str,
)
def test_invalid_results_are_not_sent(part: Part, frame: bytes, fragment: str) -> None:
    for use in (as_json, check_result):
        with pytest.raises(InvalidResult, match=fragment):
            use(CallResult([part], [frame]))


@pytest.mark.parametrize(
    ("parts", "accept", "chosen"),
    [
        ([Part("image/png")], "", JSON),
        ([Part("image/png")], "image/*", "image/png"),
        ([Part("image/png")], "image/jpeg", None),
        ([Part("image/png")], BYTES, BYTES),
        ([Part()], BYTES, BYTES),
        ([Part(), Part()], BYTES, None),
        ([Part(), Part()], "*/*", JSON),
        ([], BYTES, None),
    ],
    ids=str,
)
def test_bytes_are_for_one_part(parts: list[Part], accept: str, chosen: str | None) -> None:
    assert response_type(CallResult(parts, [b""] * len(parts)), parse_accept(accept)) == chosen
