"""Arrays and saved states as frames: what is encoded is decoded equal, and any other bytes are refused."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from wire.inputs import Part
from worker.engines.user.saved_state import SavedState, decode_state, encode_state
from worker.engines.user.tensors import DTYPES, decode_array, encode_array, plain_values

ARRAYS = st.sampled_from(sorted(DTYPES)).flatmap(lambda dtype: arrays(dtype, array_shapes(min_dims=0, min_side=0)))
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def is_equal(first: Any, second: Any) -> bool:
    if isinstance(first, numpy.ndarray):
        return (first.dtype, first.shape, first.tobytes()) == (second.dtype, second.shape, second.tobytes())
    return bool(first == second)


@given(ARRAYS)
def test_arrays_are_decoded_equal(array: numpy.ndarray) -> None:
    assert is_equal(array, decode_array(*encode_array(array)))
    assert is_equal(array, decode_array(*encode_array(numpy.array(array, order="F"))))
    assert is_equal(array, decode_array(*encode_array(array.astype(array.dtype.newbyteorder(">")))))


@given(arrays("O", array_shapes(), elements=st.binary(max_size=5)))
def test_strings_are_decoded_equal(array: numpy.ndarray) -> None:
    assert decode_array(*encode_array(array)).tolist() == array.tolist()


def test_texts_are_strings() -> None:
    part, frame = encode_array(numpy.array([["a", "ü"]]))
    assert (part.dtype, part.shape) == ("BYTES", (1, 2))
    assert plain_values(decode_array(part, frame)) == [["a", "ü"]]


@given(
    st.sampled_from([*sorted(DTYPES), "BYTES", "object", "V8", "", "float128", "datetime64[s]"]),
    st.lists(st.integers(0, 2**31 - 1) | st.integers(0, 3), max_size=34).map(tuple),
    st.binary(max_size=40),
)
def test_any_bytes_are_decoded_or_refused(dtype: str, shape: tuple[int, ...], frame: bytes) -> None:
    try:
        array = decode_array(Part("application/octet-stream", "", dtype, shape), frame)
    except ValueError:
        return
    assert array.shape == shape


@given(st.dictionaries(st.text(max_size=5), ARRAYS | st.binary(max_size=5) | PLAIN, max_size=4), st.integers(0, 9))
def test_states_are_restored_equal(saved: dict[str, Any], chunks: int) -> None:
    restored = decode_state(encode_state(SavedState(saved, chunks)))
    assert restored.chunks == chunks
    assert restored.saved.keys() == saved.keys()
    assert all(is_equal(value, restored.saved[name]) for name, value in saved.items())


@given(st.lists(st.binary(max_size=30), max_size=3))
def test_any_frames_are_a_state_or_refused(frames: list[bytes]) -> None:
    try:
        decode_state(frames)
    except ValueError:
        return


@pytest.mark.parametrize(
    ("saved", "text"),
    [
        ([1], "save must return a dict with names as keys, not a list"),
        ({1: 2}, "save must return a dict with names as keys"),
        ({"a": object()}, "save may return arrays, bytes and plain values"),
        ({"a": 2**70}, "save may return arrays, bytes and plain values"),
        ({"a": numpy.array([object()])}, "an array of objects may hold text and bytes only, not object"),
    ],
)
def test_what_cannot_be_saved_is_explained(saved: Any, text: str) -> None:
    with pytest.raises(ValueError, match=text):
        encode_state(SavedState(saved))


def test_arrays_of_a_restored_state_may_be_changed() -> None:
    saved = decode_state(encode_state(SavedState({"sum": numpy.zeros(2)}))).saved
    saved["sum"] += 1
    assert saved["sum"].tolist() == [1.0, 1.0]


def test_numbers_of_numpy_are_saved_as_plain_ones() -> None:
    state = {"loss": numpy.float32(0.5), "counts": [numpy.int64(2)], "done": numpy.bool_(1)}
    assert decode_state(encode_state(SavedState(state))).saved == {"loss": 0.5, "counts": [2], "done": True}
    with pytest.raises(ValueError, match="save may return arrays, bytes and plain values: not object"):
        encode_state(SavedState({"x": object()}))
