"""Elements of tensors as JSON and as bytes."""

from __future__ import annotations

import contextlib
import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from loadbalancer.schema.tensors import (
    BYTES,
    DATATYPES,
    InvalidTensor,
    decode_strings,
    encode_strings,
    from_json,
    nested_json,
    to_json,
)

NUMERIC = [name for name in DATATYPES if name != "BYTES"]
SHAPES = arrays.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=5)
FINITE = {"allow_nan": False, "allow_infinity": False}


def elements(dtype: np.dtype[Any]) -> st.SearchStrategy[Any]:
    width: Any = dtype.itemsize * 8
    return st.floats(width=width, **FINITE) if dtype.kind == "f" else arrays.from_dtype(dtype)


@st.composite
def tensors(draw: st.DrawFn) -> tuple[str, np.ndarray[Any, Any]]:
    name = draw(st.sampled_from(NUMERIC))
    dtype = np.dtype(DATATYPES[name].dtype)
    return name, draw(arrays.arrays(dtype, draw(SHAPES), elements=elements(dtype)))


@given(tensors(), st.booleans())
def test_json_becomes_the_bytes_of_numpy(tensor: tuple[str, np.ndarray[Any, Any]], nested: bool) -> None:
    name, array = tensor
    text = json.dumps(array.tolist() if nested and array.ndim else array.ravel().tolist())
    assert from_json(DATATYPES[name], array.shape, msgspec.Raw(text.encode())) == array.tobytes()


@given(tensors())
def test_bytes_of_numpy_become_json(tensor: tuple[str, np.ndarray[Any, Any]]) -> None:
    name, array = tensor
    datatype, data = DATATYPES[name], array.tobytes()
    assert json.loads(b"".join(to_json(datatype, array.shape, data))) == array.ravel().tolist()
    nested = json.loads(b"".join(nested_json(datatype, array.shape, memoryview(data))))
    assert nested == (array.tolist() if array.size else [])


@given(st.lists(st.text(), max_size=12))
def test_strings_return_as_they_were_sent(values: list[str]) -> None:
    data = from_json(BYTES, (len(values),), msgspec.Raw(json.dumps(values).encode()))
    assert decode_strings(data, len(values)) == [value.encode() for value in values]
    assert json.loads(b"".join(to_json(BYTES, (len(values),), data))) == values


@given(st.binary(max_size=40), st.integers(0, 5))
def test_broken_strings_are_rejected(data: bytes, count: int) -> None:
    with contextlib.suppress(InvalidTensor):
        assert encode_strings(decode_strings(data, count)) == data


def test_nested_strings() -> None:
    data = encode_strings([b"a", b"b", b"c", b"d"])
    assert b"".join(nested_json(BYTES, (2, 2), data)) == b'[["a","b"],["c","d"]]'
    assert b"".join(nested_json(BYTES, (), encode_strings([b"a"]))) == b'"a"'


@pytest.mark.parametrize(
    ("shape", "pieces"),
    [
        ((4096, 1), 3),
        ((65536, 1), 33),  # a column, as many models return it
        ((4097, 1, 1), 5),
        ((1500, 3), 5),
        ((3, 4096), 7),
        ((2, 4097), 9),
        ((2, 2, 4097), 21),
        ((1, 1, 1), 3),
    ],
)
def test_short_rows_become_json_together(shape: tuple[int, ...], pieces: int) -> None:
    array = np.arange(np.prod(shape), dtype="<i4").reshape(shape)
    found = list(nested_json(DATATYPES["INT32"], shape, array.tobytes()))
    assert json.loads(b"".join(found)) == array.tolist()
    assert len(found) == pieces


def test_values_that_json_lacks_are_null() -> None:
    data = np.array([1, math.inf, math.nan], np.float32).tobytes()
    assert b"".join(to_json(DATATYPES["FP32"], (3,), data)) == b"[1.0,null,null]"


@pytest.mark.parametrize(
    ("datatype", "shape", "data", "fragment"),
    [
        ("INT8", (1,), "[128]", "outside the range of INT8"),
        ("UINT8", (1,), "[-1]", "outside the range of UINT8"),
        ("UINT64", (1,), "[18446744073709551616]", "range"),
        ("FP16", (1,), "[1e6]", "outside the range of FP16"),
        ("FP32", (1,), "[1e300]", "outside the range of FP32"),
        ("INT32", (1,), "[1.5]", "Expected int"),
        ("BOOL", (1,), "[1]", "Expected bool"),
        ("FP32", (1,), '["a"]', "Expected float"),
        ("FP32", (1,), "[null]", "Expected float"),
        ("BYTES", (1,), "[1]", "Expected str"),
        ("INT8", (3,), "[1,2]", "needs 3 elements, not 2"),
        ("INT8", (2, 2), "[1,2,3]", "needs 4 elements, not 3"),
        ("INT8", (2, 2), "[[1,2,3],[4]]", "axis 1 is not 2 everywhere"),
        ("INT8", (2, 2), "[[1,2],[3,4],[5,6]]", "axis 0 is not 2 everywhere"),
        ("INT8", (2, 2), "[[[1],[2]],[[3],[4]]]", "Expected int"),
        ("INT8", (2,), "[[1,2]]", "Expected int"),
        ("INT8", (2,), "{}", "Expected array"),
        ("BYTES", (2**31 - 1,), "[]", "at most 65536 are allowed"),
    ],
    ids=str,
)
def test_wrong_elements_are_explained(datatype: str, shape: tuple[int, ...], data: str, fragment: str) -> None:
    with pytest.raises(InvalidTensor, match=fragment):
        from_json(DATATYPES[datatype], shape, msgspec.Raw(data.encode()))
