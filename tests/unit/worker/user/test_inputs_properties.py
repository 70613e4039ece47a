"""Whatever the parts of a call are, an input is a value or an error that a client can read."""

from __future__ import annotations

import json
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ConfigDict

from wire.inputs import Part
from worker.engine import TaskError
from worker.engines.user.images import ImageBounds
from worker.engines.user.inputs import InputDecoder
from worker.engines.user.tensors import DTYPES


class Mixed(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    a: NDArray[numpy.float32]
    b: bytes = b""
    c: Image.Image | None = None
    d: list[int] = []


ANNOTATIONS: list[Any] = [
    Any,
    str,
    int,
    bytes,
    dict,
    list[float],
    numpy.ndarray,
    NDArray[numpy.uint8],
    Image.Image,
    Mixed,
    tuple[numpy.ndarray, bytes],
    dict[str, NDArray[numpy.int64]],
]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "c", "d", "b64"]), inner),
    max_leaves=8,
)
PARTS = st.lists(
    st.tuples(
        st.builds(
            Part,
            st.sampled_from(["application/json", "text/plain", "image/png", "application/octet-stream", ""]),
            st.sampled_from(["", "a", "b", "c", "d", "x"]),
            st.sampled_from(["", "", "", "BYTES", "object", *sorted(DTYPES)]),
            st.lists(st.integers(0, 4), max_size=3).map(tuple),
        ),
        JSON.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=40),
    ),
    max_size=4,
)


@pytest.mark.parametrize("annotation", ANNOTATIONS, ids=str)
def test_any_parts_are_a_value_or_invalid(annotation: Any) -> None:
    decoder = InputDecoder(annotation, ImageBounds(1 << 16, 1 << 10))

    @settings(max_examples=30)
    @given(PARTS)
    def decode(parts: list[tuple[Part, bytes]]) -> None:
        failure: TaskError | None = None
        try:
            decoder.decode([part for part, _ in parts], [frame for _, frame in parts])
        except TaskError as error:
            failure = error
        assert failure is None or (failure.kind == "invalid" and failure.message)

    decode()
