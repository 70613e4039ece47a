"""Errors of bodies that are parsed into structs name the place, the value and what is allowed."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pytest

from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.struct_parsing import parse_struct


class Cat(msgspec.Struct, tag_field="type", tag="cat"):
    """One kind of animal."""

    mood: Literal["calm", "wild"]


class Dog(msgspec.Struct, tag_field="type", tag="dog"):
    """Another kind."""


class Zoo(msgspec.Struct):
    """A request."""

    color: Annotated[Literal["red", "blue"], msgspec.Meta(description="A color.")] | None = None
    star: Cat | Dog | str | None = None
    others: list[dict[str, Cat | Dog]] = []
    code: Annotated[str, msgspec.Meta(pattern="^[a-z]+$")] = "a"
    weights: dict[str, Annotated[float, msgspec.Meta(le=9)]] = {}


DECODER = msgspec.json.Decoder(Zoo)


@pytest.mark.parametrize(
    ("body", "param", "message"),
    [
        ({"color": "pink"}, "color", "Invalid value for 'color': 'pink'. Supported: 'blue', 'red'."),
        ({"star": {"type": "cow"}}, "star.type", "Invalid value for 'star.type': 'cow'. Supported: 'cat', 'dog'."),
        (
            {"star": {"type": "cat", "mood": "x" * 99}},
            "star.mood",
            f"Invalid value for 'star.mood': '{'x' * 76}.... Supported: 'calm', 'wild'.",
        ),
        (
            {"others": [{"a": {"type": "cat", "mood": "sad"}}]},
            "others[0][...].mood",
            "Invalid value for 'others[0][...].mood': 'sad'. Supported: 'calm', 'wild'.",
        ),
        ({"weights": {"a": 10}}, "weights", "Invalid value for 'weights': Must be at most 9."),
        ({"weights": {"a": None}}, "weights", "Invalid type for 'weights': null. Expected a number."),
        ({"code": "A"}, "code", "Invalid value for 'code': Must be a text that matches '^[a-z]+$'."),
    ],
)
def test_errors_say_what_is_allowed(body: dict[str, Any], param: str, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_struct(DECODER, msgspec.json.encode(body))
    assert (caught.value.param, caught.value.message) == (param, message)


@pytest.mark.parametrize(
    ("body", "is_half"),
    [
        (rb'{"code": "\ud83d"}', True),
        (rb'{"code": "\ud83d is cut"}', True),
        (rb'{"code": "\ude00 is cut"}', True),
        (rb'{"code": "\ud83d\ud83d"}', True),
        (rb'{"code": "\ud83d\ude00', False),
        (rb'{"code": "a', False),
    ],
)
def test_half_a_character_is_named(body: bytes, is_half: bool) -> None:
    with pytest.raises(InvalidRequest, match="is not valid JSON") as caught:
        parse_struct(DECODER, body)
    assert ("half a character" in caught.value.message) is is_half
