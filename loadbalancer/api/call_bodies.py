"""The bodies of calls: JSON, bytes of any media type, or a form. Each becomes the parts of one input."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import msgspec
from starlette.datastructures import Headers, UploadFile
from starlette.formparsers import MultiPartException

from loadbalancer.api.charsets import check_text_charset
from loadbalancer.api.hot_routes import HotRequest
from loadbalancer.api.uploads import FormParser, invalid_form
from loadbalancer.schema.errors import InvalidRequest, UnsupportedMediaType
from loadbalancer.schema.media_types import BYTES, JSON, MEDIA_TYPE
from loadbalancer.schema.parsing import shorten
from loadbalancer.schema.raw_json import invalid_reason
from loadbalancer.schema.struct_parsing import invalid_json, unknown_parameter
from wire.codec import Frame
from wire.inputs import Part

#: Many clients, such as `curl -d`, send JSON without naming it.
_JSON_TYPES = ("", JSON, "application/x-www-form-urlencoded")
_MAX_NAME_CHARS = 200
_JSON_PARTS = (Part(),)
_TEXT = "text/plain"
#: Of a form that is parsed at once.
_FORM_PART_BYTES = 64 << 10


class CallBody(NamedTuple):
    """The parts of one input, and a frame of each."""

    parts: tuple[Part, ...]
    frames: list[Frame]


class CallOptions(NamedTuple):
    """Options of a call in its query."""

    timeout_s: float | None = None
    priority: int = 0


def is_json_type(kind: str) -> bool:
    return kind in _JSON_TYPES or kind.endswith("+json")


def json_body(request: HotRequest) -> CallBody:
    """The body as one JSON value, which is not decoded. Raises `InvalidRequest`."""
    body = request.json()
    if reason := invalid_reason(body):
        raise invalid_json(reason, body)
    return CallBody(_JSON_PARTS, [body])


def raw_body(request: HotRequest, kind: str) -> CallBody:
    """The body as bytes. Raises `UnsupportedMediaType` where its type is none."""
    if not MEDIA_TYPE.fullmatch(kind):
        raise UnsupportedMediaType(f"The Content-Type {shorten(kind)} is no media type, such as {BYTES}.")
    if kind.startswith("text/"):
        check_text_charset(request.head.content_type)
    return CallBody((Part(kind),), [request.body])


async def form_body(request: HotRequest, max_text_bytes: int) -> CallBody:
    """The fields of a multipart form: texts as `text/plain`, files as they are declared. Raises `InvalidRequest`."""
    parser = FormParser(Headers(raw=list(request.headers)), _slices(request.body), max_text_bytes, "files")
    parser.spool_max_size = len(request.body) + 1  # it is in memory already, and counted
    request.body = b""
    try:
        form = await parser.parse()
    except MultiPartException as broken:
        raise invalid_form(broken.message.rstrip(".")) from None
    found: dict[str, tuple[Part, Frame]] = {}
    for name, value in form.multi_items():
        if not name or len(name) > _MAX_NAME_CHARS or not name.isprintable():
            raise InvalidRequest(f"Invalid name of a field: {shorten(name)}.", param=name, code="invalid_form")
        if name in found:
            raise InvalidRequest(f"Invalid value for {shorten(name)}: it is given more than once.", param=name)
        if isinstance(value, UploadFile):
            found[name] = Part(_declared(value), name), value.file.read()
        else:
            found[name] = Part(_TEXT, name), value.encode()
    if not found:
        raise invalid_form("it has no fields")
    return CallBody(tuple(part for part, _ in found.values()), [frame for _, frame in found.values()])


async def _slices(body: bytes) -> AsyncGenerator[bytes, None]:
    """The body in parts: the parser works on each without a pause."""
    for start in range(0, len(body), _FORM_PART_BYTES):
        yield body[start : start + _FORM_PART_BYTES]
        await asyncio.sleep(0)


def _declared(file: UploadFile) -> str:
    kind = (file.content_type or BYTES).partition(";")[0].strip().lower()
    if kind.startswith("text/"):
        check_text_charset(file.content_type or "")
    return kind if MEDIA_TYPE.fullmatch(kind) else BYTES


def call_options(query: bytes) -> CallOptions:
    """The options in a query such as `timeout_s=5&priority=1`. Raises `InvalidRequest`."""
    if not query:
        return CallOptions()
    options: dict[str, Any] = {}
    for name, text in parse_qsl(query.decode("latin-1"), keep_blank_values=True):
        if name not in CallOptions._fields:
            raise unknown_parameter(name, CallOptions._fields)
        if name in options:
            raise InvalidRequest(f"Invalid value for '{name}': it is given more than once.", param=name)
        options[name] = _number(name, text, expected=int if name == "priority" else float)
    return CallOptions(**options)


def _number(name: str, text: str, expected: type[int | float]) -> int | float:
    try:
        return msgspec.convert(text, expected, strict=False)
    except msgspec.ValidationError:
        what = "an integer" if expected is int else "a number"
        message = f"Invalid type for '{name}': {shorten(text)}. Expected {what}."
        raise InvalidRequest(message, param=name, code="invalid_type") from None
