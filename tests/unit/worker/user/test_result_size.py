"""The size of collected values: rather too small than too large, so that nothing is refused that could be sent."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from muster import Content
from tests.support.images import make_image
from worker.engines.user.outputs import OutputEncoder
from worker.engines.user.result_size import result_bytes


class Point(BaseModel):
    x: int
    y: list[float]


@pytest.mark.parametrize(
    "value",
    [
        *("", "a seven", "sieben häuser", b"", b"bytes", 0, 123456789, 0.5, True, None),
        *([], {}, [1, 2, 3], {"label": "seven", "score": 0.25}, [[], [{}]]),
        *(np.zeros((3, 4)), np.arange(5, dtype=np.uint8), np.float32(0.5), {"a": np.zeros(10), "b": [np.ones(2)]}),
        *(Point(x=1, y=[0.5, 2.0]), [Point(x=1, y=[])], make_image(), {"image": make_image(), "n": 1}),
    ],
    ids=lambda each: type(each).__name__,
)
def test_a_value_has_at_least_this_size(value: Any) -> None:
    """In a list of values that differ, which is one JSON text."""
    encoder = OutputEncoder()
    alone = len(encoder.encode([{}]).frames[0])
    whole = len(encoder.encode([{}, value]).frames[0])
    assert 0 < result_bytes(value) <= whole - alone


def test_large_values_are_counted_by_their_size() -> None:
    assert result_bytes("x" * 1000) == result_bytes(b"x" * 1000) == 1000
    assert result_bytes(np.zeros(1000)) > 1000
    assert result_bytes({"a": np.zeros(1000), "b": Content(b"x" * 1000, "image/png")}) > 2000
    assert result_bytes(list(range(1000))) > 3000
    assert result_bytes(make_image().resize((500, 500))) > 5000


def test_values_that_contain_themselves_have_a_size() -> None:
    """They cannot be sent. The call that yields one must end with that, not with a failure of the step."""
    endless: list[Any] = [b"x"]
    endless += [endless, endless]
    assert 0 < result_bytes(endless) < 100
    assert 0 < result_bytes({"a": [endless, np.zeros(3)]}) < 100
