"""Parses request bodies and forms, and explains the first error in them to the client."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from configs.text import clip, printable
from loadbalancer.schema.body_limits import MAX_ENTRIES, check_entries, check_size_without_images
from loadbalancer.schema.errors import MAX_PARAM_CHARS, InvalidRequest
from loadbalancer.schema.parameter_hints import parameter_hint
from loadbalancer.schema.requests import LoraRequest
from loadbalancer.schema.struct_parsing import invalid_json

Request = TypeVar("Request", bound=BaseModel)

_TYPES = {
    "string_type": "a string",
    "int_type": "an integer",
    "int_from_float": "an integer",
    "int_parsing_size": "an integer of a sensible size",
    "float_type": "a number",
    "bool_type": "a boolean",
    "tuple_type": "a list",
    "model_type": "an object",
}
#: Python's spelling, which clients write into forms.
_PYTHON_VALUES = {"True": True, "False": False, "None": None}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "greater than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


_LENGTHS = {"too_short": ("min_length", "at least"), "too_long": ("max_length", "at most")}
#: Numbers that JSON does not have, as JavaScript writes them.
_NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def parse(kind: type[Request], body: bytes, max_bytes: int | None = None) -> Request:
    """The JSON body as a request of this kind. Raises `InvalidRequest` for the first error.

    `max_bytes` is for a body whose `image` and `mask` may be large: raises `BodyTooLarge` before parsing when all other
    members exceed it.
    """
    if max_bytes is not None and len(body) > max_bytes:
        check_size_without_images(body, max_bytes)
    if body.count(b",") >= MAX_ENTRIES:  # else none can have more
        members = check_entries(body)
        if len(members) > MAX_ENTRIES:
            raise _too_many_members(members, kind)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _to_error(_first(error.errors(include_url=False)), kind, body) from None


def parse_form(kind: type[Request], fields: Mapping[str, str]) -> Request:
    """The fields of a form as a request of this kind. They are parsed as the equivalent JSON."""
    known = kind.model_fields
    values = {
        name: _field_value(text, known[name].annotation) if name in known else text for name, text in fields.items()
    }
    try:
        return parse(kind, msgspec.json.encode(values))
    except UnicodeEncodeError:  # lone surrogates, which some character sets of a form can encode
        raise InvalidRequest("The form holds text that is not Unicode.", code="invalid_form") from None


def _field_value(text: str, annotation: Any) -> Any:
    """The text itself for string fields, else the decoded JSON, or the text where it is not JSON."""
    expected = get_args(annotation) or (annotation,)
    if any(each is str or get_origin(each) is Literal for each in expected):
        return text
    if not text:  # an unused field of a web page's form
        return None
    if text in _PYTHON_VALUES and (bool in expected or text == "None"):
        return _PYTHON_VALUES[text]
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return text


def shorten(value: object) -> str:
    """The value in at most 80 characters: a text in single quotes, anything else as JSON writes it."""
    if isinstance(value, float) and not math.isfinite(value):
        return _NOT_FINITE[str(value)]
    if value is None or isinstance(value, bool | list | tuple | dict):
        return clip(json.dumps(value, ensure_ascii=False, default=str), 80)
    return clip(repr(value), 80)


def _first(problems: list[ErrorDetails]) -> ErrorDetails:
    """The problem to explain. Behind a missing parameter there may be one whose name is misspelled."""
    unknown = next((each for each in problems if each["type"] == "extra_forbidden"), problems[0])
    return unknown if problems[0]["type"] == "missing" else problems[0]


def _to_error(problem: ErrorDetails, request: type[BaseModel], body: bytes) -> InvalidRequest:
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if not problem["loc"]:
        if kind == "json_invalid":
            return invalid_json(str(context["error"]), body)
        return InvalidRequest("The request body must be a JSON object.", code="invalid_json")
    name = _path(problem["loc"])
    if kind == "extra_forbidden":
        known = request if len(problem["loc"]) == 1 else LoraRequest
        return _unknown_parameter(name, str(problem["loc"][-1]), known)
    if kind == "missing":
        return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if kind in _TYPES:
        text = f"Invalid type for '{name}': {shorten(value)}. Expected {_TYPES[kind]}."
        return InvalidRequest(text, param=name, code="invalid_type")
    return InvalidRequest(f"Invalid value for '{name}': {shorten(value)}. {_constraint(problem)}", param=name)


def _too_many_members(members: Iterable[str], request: type[BaseModel]) -> InvalidRequest:
    name = next(name for name in members if name not in request.model_fields)
    return _unknown_parameter(name, name, request)


def _unknown_parameter(path: str, name: str, known: type[BaseModel]) -> InvalidRequest:
    hint = parameter_hint(name, known.model_fields) if len(name) <= MAX_PARAM_CHARS else ""
    return InvalidRequest(f"Unknown parameter: {shorten(path)}.{hint}", param=path, code="unknown_parameter")


def _path(location: tuple[int | str, ...]) -> str:
    """The location in the request, such as `loras[0].scale`."""
    name = clip(str(location[0]), MAX_PARAM_CHARS)
    for part in location[1:]:
        name += f"[{part}]" if isinstance(part, int) else f".{clip(part, MAX_PARAM_CHARS)}"
    return printable(name, MAX_PARAM_CHARS)


def _constraint(problem: ErrorDetails) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        return f"Supported: {context['expected']}."
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"Must be {words} {context[bound]}."
    if kind in _LENGTHS:
        bound, words = _LENGTHS[kind]
        count = int(context[bound])
        return f"Must have {words} {count} {'entry' if count == 1 else 'entries'}."
    return f"{problem['msg'].replace('Input should be', 'Must be').replace('String should have', 'Must have')}."
