"""Bodies of `:predict`: undecoded instances, and predictions joined without decoding them."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.predictions import Instances, parse_instances, predictions
from loadbalancer.schema.raw_json import is_json, is_utf8

MAX = 4
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(values=st.lists(VALUES, min_size=1, max_size=300), indent=st.sampled_from([None, 0, 2]))
def test_instances_are_slices_of_the_body(values: list[Any], indent: int | None) -> None:
    body = json.dumps({"instances": values}, indent=indent).encode()
    found = parse_instances(body, 300)
    assert [json.loads(bytes(item)) for item in found.items] == values
    assert all(bytes(item) in body for item in found.items)


@given(values=st.lists(VALUES, max_size=5))
def test_predictions_are_joined_as_they_are(values: list[Any]) -> None:
    encoded = [json.dumps(value).encode() for value in values]
    if values:
        assert json.loads(b"".join(predictions([each] for each in encoded))) == {"predictions": values}


@pytest.mark.parametrize(
    ("count", "size", "padding", "copied"),
    [
        (1, 100, 0, True),
        (1, 100, 1000, True),
        (1, 100_000, 0, False),
        (4, 100, 0, True),
        (4, 20_000, 0, True),
    ],
    ids=["one", "padded", "one large", "several", "several in a large body"],
)
def test_instances_hold_no_more_than_counts(count: int, size: int, padding: int, copied: bool) -> None:
    value = b'"' + b"a" * size + b'"'
    body = b'{"instances":[' + b",".join([value] * count) + b"]" + b" " * padding + b"}"
    items = parse_instances(body, MAX).items
    assert [bytes(item) for item in items] == [value] * count
    assert all(isinstance(item, bytes) is copied for item in items), "a slice refers to the whole body"


def test_options_beside_the_instances() -> None:
    body = b'{"stream":true,"instances":[1, {"a":2}],"priority":-3,"timeout_s":2.5}'
    assert parse_instances(body, MAX) == Instances([b"1", b'{"a":2}'], True, -3, 2.5)
    nulls = b'{"instances":[1],"stream":null,"priority":null,"timeout_s":null}'
    assert parse_instances(nulls, MAX)[1:] == (False, None, None)


@pytest.mark.parametrize(
    ("body", "param", "code", "fragment"),
    [
        (b"", None, "invalid_json", "is empty"),
        (b"[1]", None, "invalid_json", "must be a JSON object"),
        (b'{"instances":[1]', None, "invalid_json", "not valid JSON"),
        (b'{"instances":[1}', None, "invalid_json", "not valid JSON"),
        (b'{"instances":' + b"[" * 100_000 + b"]" * 100_000 + b"}", None, "invalid_json", "nested too deeply"),
        (b"{}", "instances", "missing_required_parameter", "'instances'"),
        (b'{"instances":[]}', "instances", "invalid_value", "at least one"),
        (b'{"instances":null}', "instances", "invalid_type", "Expected a list"),
        (b'{"instances":{"a":1}}', "instances", "invalid_type", "Expected a list"),
        (b'{"instances":"' + b"," * 99999 + b'"}', "instances", "invalid_type", "Expected a list"),
        (b'{"instances":[1,2,3,4,5]}', "instances", "invalid_value", "more than 4"),
        (b'{"instances":[' + b"1," * 99999 + b"1]}", "instances", "invalid_value", "more than 4"),
        (b'{"instances":[1],"parameters":{}}', "parameters", "unknown_parameter", "'parameters'"),
        (b'{"instance":[1]}', "instance", "unknown_parameter", "Did you mean 'instances'?"),
        (b'{"instances":[1],"stream":1}', "stream", "invalid_type", "Expected a boolean"),
        (b'{"instances":[1],"priority":101}', "priority", "invalid_value", "at most 100"),
        (b'{"instances":[1],"priority":1.5}', "priority", "invalid_type", "Expected an integer"),
        (b'{"instances":[1],"timeout_s":0}', "timeout_s", "invalid_value", "greater than 0"),
        (b'{"instances":[1],"timeout_s":1e999}', "timeout_s", "invalid_value", "out of range"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_invalid_bodies_are_explained(body: bytes, param: str | None, code: str, fragment: str) -> None:
    with pytest.raises(InvalidRequest) as rejected:
        parse_instances(body, MAX)
    assert (rejected.value.param, rejected.value.code) == (param, code)
    assert fragment in rejected.value.message


def test_too_many_instances_need_no_memory() -> None:
    body = b'{"instances":[' + b"1," * 2_000_000 + b"1]}"
    tracemalloc.start()
    try:
        with pytest.raises(InvalidRequest):
            parse_instances(body, MAX)
        assert tracemalloc.get_traced_memory()[1] < len(body) / 10
    finally:
        tracemalloc.stop()


@given(st.binary(max_size=20), st.integers(0, 3))
def test_utf8_is_found_across_parts(data: bytes, shift: int) -> None:
    padded = b"a" * ((1 << 16) - shift) + data
    try:
        data.decode()
    except UnicodeDecodeError:
        assert not is_utf8(padded)
    else:
        assert is_utf8(padded)


@pytest.mark.parametrize(
    ("value", "valid"),
    [
        (b'{"a":[1,2]}', True),
        (b" 1 ", True),
        ('"ü"'.encode(), True),
        (b"", False),
        (b'"\xff"', False),
        (b"1],[2", False),
        (b"1 2", False),
        (b"NaN", False),
        (b"[" * 100_000 + b"]" * 100_000, False),
    ],
    ids=lambda value: str(value)[:12],
)
def test_only_json_is_passed_on(value: bytes, valid: bool) -> None:
    assert is_json(value) is valid
    assert is_json(memoryview(value)) is valid
