"""Parses JSON bodies into msgspec structs, and explains the first error in them to the client."""

from __future__ import annotations

import re
from typing import TypeVar

import msgspec

from configs.text import clip, printable
from loadbalancer.schema.allowed_values import allowed_values
from loadbalancer.schema.errors import MAX_PARAM_CHARS, InvalidRequest
from loadbalancer.schema.parameter_hints import parameter_hint

Parsed = TypeVar("Parsed", bound=msgspec.Struct)

_AT = re.compile(r" - at `\$\.?(.*)`\Z", re.DOTALL)
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`\Z", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`\Z", re.DOTALL)
_TYPE = re.compile(r"Expected `(.*)`, got `(.*)`\Z", re.DOTALL)
#: A value of an object whose names are the client's own. The object is the parameter.
_ANY_NAME = "[...]"
_ENUM = re.compile(r"Invalid (?:enum )?value (.*)\Z", re.DOTALL)
#: The first half of a character without the second, as JavaScript writes a text that was cut within an emoji.
_HALF_CHARACTER = re.compile(rb"\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u)")
_HALF_A_CHARACTER = "a text in it has half a character, a surrogate without its pair"
#: What the parsers of msgspec and pydantic say, by a part of it.
_PLAIN_REASONS = {
    "surrogate": _HALF_A_CHARACTER,
    "recursion limit exceeded": "it is nested too deeply",
    "invalid unicode code point": "it is not UTF-8",
}
#: What they say where the second half of a character would begin, and of anything else that is cut there.
_CUT_ESCAPES = ("truncated", "end of hex escape")
_UTF_16_MARKS = (b"\xff\xfe", b"\xfe\xff")
#: A body that begins with so many blanks is empty, too, as far as an error is concerned.
_MAX_BLANKS = 1000
_BOUND = re.compile(r"Expected `\w+` (.*)\Z", re.DOTALL)
#: JSON's names of types that msgspec calls by Python's.
_TYPES = {"str": "a string", "int": "an integer", "float": "a number", "bool": "a boolean", "array": "a list"}
_BOUNDS = {
    ">=": "at least",
    ">": "greater than",
    "<=": "at most",
    "<": "less than",
    "matching regex": "a text that matches",
    "of length <=": "of length up to",
    "of length >=": "of length at least",
}


def parse_struct(decoder: msgspec.json.Decoder[Parsed], body: bytes | memoryview, path: str = "") -> Parsed:
    """Return the decoded body. Raises `InvalidRequest` for the first error in it.

    `path` is the place of the body in the request, such as `inputs[0]`, if it is a part of one.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        raise _to_error(str(error), decoder.type, path) from None
    except RecursionError:
        raise invalid_json("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise invalid_json("it is not UTF-8", body) from None
    except msgspec.DecodeError as error:
        raise invalid_json(str(error), body) from None


def invalid_json(reason: str, body: bytes | memoryview | None = None) -> InvalidRequest:
    """The error of a body that is no JSON. `reason` may be a parser's; frequent ones are told in plain words.

    Where the body is given, one that is empty or UTF-16 is named so.
    """
    reason = reason.removeprefix("JSON is malformed: ")
    reason = next((plain for part, plain in _PLAIN_REASONS.items() if part in reason), reason)
    if body is not None:
        if not bytes(body[:_MAX_BLANKS]).strip():
            return InvalidRequest("The request body is empty; JSON is expected.", code="invalid_json")
        if bytes(body[:2]) in _UTF_16_MARKS or b"\0" in bytes(body[:2]):
            reason = "it is UTF-16 or UTF-32; JSON must be UTF-8"
        elif any(part in reason for part in _CUT_ESCAPES) and _HALF_CHARACTER.search(body):
            reason = _HALF_A_CHARACTER
    return InvalidRequest(f"The request body is not valid JSON: {clip(reason, 200)}.", code="invalid_json")


def _to_error(text: str, kind: type[msgspec.Struct], path: str) -> InvalidRequest:
    place = _AT.search(text)
    text, place_in_body = (text[: place.start()], place[1].removesuffix(_ANY_NAME)) if place else (text, "")
    outer = ".".join(name for name in (path, place_in_body) if name)
    if found := _UNKNOWN.fullmatch(text):
        known = [field.encode_name for field in msgspec.structs.fields(kind)] if not place_in_body else []
        return unknown_parameter(_joined(outer, found[1]), known)
    if found := _MISSING.fullmatch(text):
        name = _joined(outer, found[1])
        return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if not outer:
        return InvalidRequest("The request body must be a JSON object.", code="invalid_json")
    name = _joined(outer)
    if found := _TYPE.fullmatch(text):
        kinds = [_TYPES.get(kind, "an object") for kind in found[1].split(" | ") if kind != "null"]
        expected = " or ".join(dict.fromkeys(kinds))
        got = _TYPES.get(found[2], "null" if found[2] == "null" else "an object")
        return InvalidRequest(
            f"Invalid type for '{name}': {got}. Expected {expected}.", param=name, code="invalid_type"
        )
    if (found := _ENUM.fullmatch(text)) and (allowed := allowed_values(kind, place_in_body)):
        supported = ", ".join(map(repr, allowed))
        text = f"Invalid value for '{name}': {clip(found[1], 80)}. Supported: {supported}."
        return InvalidRequest(text, param=name)
    return InvalidRequest(f"Invalid value for '{name}': {_constraint(text)}.", param=name)


def unknown_parameter(name: str, known: list[str] | tuple[str, ...] = ()) -> InvalidRequest:
    """The error of a member that the request does not have. It names the nearest of the known ones."""
    hint = parameter_hint(name, known) if len(name) < MAX_PARAM_CHARS else ""
    return InvalidRequest(f"Unknown parameter: {clip(repr(name), 80)}.{hint}", param=name, code="unknown_parameter")


def _constraint(text: str) -> str:
    found = _BOUND.fullmatch(text)
    if found is None:
        return clip(text, 200)
    relation, _, bound = found[1].rpartition(" ")
    return f"Must be {_BOUNDS.get(relation, relation)} {bound.removesuffix('.0')}"


def _joined(*names: str) -> str:
    return printable(".".join(name for name in names if name), MAX_PARAM_CHARS)
