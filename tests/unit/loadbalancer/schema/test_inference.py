"""Requests and responses of the Open Inference Protocol, in JSON and with bytes after the header."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from loadbalancer.schema.call_results import CallResult
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.inference import MAX_TENSORS, InferenceCall, inference_response, parse_inference
from loadbalancer.schema.tensors import NAMES, encode_strings
from wire.inputs import Part

ONE = {"name": "x", "shape": [2], "datatype": "INT8", "data": [1, 2]}
STRINGS = {"name": "x", "shape": [40_000], "datatype": "BYTES", "data": [""] * 40_000}
BINARY = {"name": "x", "shape": [2], "datatype": "INT8", "parameters": {"binary_data_size": 2}}


def parse(request: dict[str, Any], binary: bytes = b"") -> InferenceCall:
    return parse_inference(json.dumps(request).encode(), memoryview(binary))


def test_tensors_become_parts() -> None:
    other = {"name": "t", "shape": [1], "datatype": "BYTES", "data": ["hi"]}
    call = parse({"id": "7", "inputs": [ONE, other, BINARY | {"name": "b"}]}, b"\x03\x04")
    kind = "application/octet-stream"
    assert call.parts == (Part(kind, "x", "int8", (2,)), Part(kind, "t", "BYTES", (1,)), Part(kind, "b", "int8", (2,)))
    assert list(map(bytes, call.frames)) == [b"\x01\x02", b"\x02\0\0\0hi", b"\x03\x04"]
    assert (call.id, call.outputs, call.binary, call.timeout_s) == ("7", None, False, None)


def test_options_of_the_request() -> None:
    outputs = [{"name": "a"}, {"name": "b", "parameters": {"binary_data": False}}]
    options = {"binary_data_output": True, "timeout": 1_500_000}
    call = parse({"inputs": [ONE], "parameters": options, "outputs": outputs})
    assert call.outputs == {"a": True, "b": False}
    assert (call.binary, call.timeout_s) == (True, 1.5)


@given(
    st.lists(
        arrays.arrays(
            st.sampled_from(["uint8", "int64", "float16", "float32", "bool"]),
            arrays.array_shapes(min_side=0, max_dims=3),
        ),
        min_size=1,
        max_size=3,
    ),
    st.booleans(),
)
def test_results_return_what_was_sent(tensors: list[np.ndarray[Any, Any]], binary: bool) -> None:
    """A response with the parts of its request, read as a client reads it."""
    inputs = [
        {
            "name": f"x{i}",
            "shape": each.shape,
            "datatype": NAMES[each.dtype.name],
            "parameters": {"binary_data_size": each.nbytes},
        }
        for i, each in enumerate(tensors)
    ]
    request = {"inputs": inputs, "parameters": {"binary_data_output": binary}}
    call = parse(request, b"".join(each.tobytes() for each in tensors))
    response = inference_response("m", call, CallResult(call.parts, call.frames))
    header, rest = json.loads(response.header), b"".join(map(bytes, response.frames))
    assert header["model_name"] == "m"
    for given_input, tensor, output in zip(inputs, tensors, header["outputs"], strict=True):
        assert output["name"] == given_input["name"]
        assert output["datatype"] == given_input["datatype"]
        if binary:
            size = output["parameters"]["binary_data_size"]
            own, rest = rest[:size], rest[size:]
            values = np.frombuffer(own, tensor.dtype).reshape(output["shape"])
        else:
            values = np.array(output["data"], tensor.dtype).reshape(output["shape"])
            if tensor.dtype.kind == "f":  # JSON has no infinity: it is null
                tensor = np.where(np.isfinite(tensor), tensor, tensor.dtype.type(np.nan))
        assert np.array_equal(values, tensor, equal_nan=tensor.dtype.kind == "f")
    assert rest == b""


def test_values_that_are_no_tensors_are_bytes() -> None:
    result = CallResult([Part()], [b'{"label":7}'])
    call = InferenceCall((), [])
    output = json.loads(inference_response("m", call, result).header)["outputs"]
    expected = {"name": "output", "datatype": "BYTES", "shape": [1], "data": ['{"label":7}']}
    assert output == [expected | {"parameters": {"content_type": "application/json"}}]
    response = inference_response("m", call._replace(binary=True, id="9"), result)
    assert json.loads(response.header)["id"] == "9"
    assert b"".join(map(bytes, response.frames)) == encode_strings([b'{"label":7}'])
    names = [
        each["name"]
        for each in json.loads(inference_response("m", call, CallResult([Part()] * 2, [b"1"] * 2)).header)["outputs"]
    ]
    assert names == ["output0", "output1"]


def test_only_requested_outputs_return() -> None:
    result = CallResult([Part(name="a"), Part(name="b")], [b"1", b"2"])
    call = InferenceCall((), [], outputs={"b": False})
    assert [each["name"] for each in json.loads(inference_response("m", call, result).header)["outputs"]] == ["b"]
    with pytest.raises(InvalidRequest, match="There is no output 'c'"):
        inference_response("m", call._replace(outputs={"c": False}), result)
    with pytest.raises(InvalidRequest, match="request it with the parameter binary_data"):
        inference_response("m", InferenceCall((), []), CallResult([Part("image/png")], [b"\xff"]))


@pytest.mark.parametrize(
    ("request_", "binary", "param", "fragment"),
    [
        ({}, b"", "inputs", "Missing required parameter"),
        ({"inputs": []}, b"", "inputs", "at least one"),
        ({"inputs": {}}, b"", "inputs", "Expected a list"),
        ({"inputs": [ONE] * (MAX_TENSORS + 1)}, b"", "inputs", "more than 64"),
        ({"inputs": [ONE, ONE]}, b"", "inputs[1].name", "another input"),
        ({"inputs": [1]}, b"", "inputs[0]", "Expected an object"),
        ({"inputs": [ONE | {"name": "a\n"}]}, b"", "inputs[0].name", "Must be printable"),
        ({"inputs": [STRINGS | {"name": name} for name in "ab"]}, b"", "inputs", "more than 65536 strings"),
        ({"inputs": [ONE | {"datatype": "BF16"}]}, b"", "inputs[0].datatype", "Supported: BOOL, UINT8"),
        ({"inputs": [ONE | {"shape": [-1]}]}, b"", "inputs[0].shape", "list of up to 32 integers"),
        ({"inputs": [ONE | {"shape": [1] * 33}]}, b"", "inputs[0].shape", "list of up to 32 integers"),
        ({"inputs": [ONE | {"shape": [1] * 9999}]}, b"", "inputs[0].shape", "list of up to 32 integers"),
        ({"inputs": [ONE | {"shape": [3]}]}, b"", "inputs[0]", "needs 3 elements, not 2"),
        ({"inputs": [ONE | {"dtype": "INT8"}]}, b"", "inputs[0].dtype", "Unknown parameter"),
        ({"inputs": [ONE | {"parameters": {"a": 1}}]}, b"", "inputs[0].parameters.a", "Unknown parameter"),
        ({"inputs": [ONE | {"parameters": [1]}]}, b"", "inputs[0].parameters", "Must be an object"),
        ({"inputs": [ONE | BINARY]}, b"\1\2", "inputs[0]", "either data, or"),
        ({"inputs": [ONE | {"data": None}]}, b"", "inputs[0]", "either data, or"),
        ({"inputs": [BINARY]}, b"\1", "inputs[0]", "1 bytes follow the header"),
        ({"inputs": [BINARY]}, b"\1\2\3", "inputs", "1 bytes follow those of the inputs"),
        ({"inputs": [BINARY | {"shape": [3]}]}, b"\1\2", "inputs[0]", "needs 3 bytes, not 2"),
        ({"inputs": [BINARY | {"parameters": {"binary_data_size": -1}}]}, b"", "inputs[0]", "no number of bytes"),
        ({"inputs": [BINARY | {"parameters": {"binary_data_size": True}}]}, b"", "inputs[0]", "no number of bytes"),
        ({"inputs": [BINARY | {"datatype": "BYTES"}]}, b"\1\2", "inputs[0]", "end before its 2 strings"),
        ({"inputs": [ONE], "parameters": {"sequence_id": 1}}, b"", "parameters.sequence_id", "Unknown parameter"),
        ({"inputs": [ONE], "parameters": {"timeout": -1}}, b"", "parameters.timeout", "microseconds"),
        ({"inputs": [ONE], "outputs": [{"name": "y", "data": 1}]}, b"", "outputs[0].data", "Unknown parameter"),
        ({"inputs": [ONE], "id": 7}, b"", "id", "Expected a string"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_wrong_requests_are_explained(request_: dict[str, Any], binary: bytes, param: str, fragment: str) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        parse(request_, binary)
    assert rejected.value.param == param
    assert fragment in rejected.value.message
