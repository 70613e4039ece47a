"""Results of an engine as parts: JSON, bytes, an image or arrays, one frame each."""

from __future__ import annotations

import base64
import functools
import re
import sys
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from pydantic import BaseModel
from pydantic_core import to_jsonable_python

from configs.text import exception_text
from muster import Content
from wire.inputs import MAX_PARTS, Part
from worker.engine import DeviceLost, TaskError
from worker.engines.user.failures import batch_error
from worker.engines.user.images import encode_png, is_image
from worker.engines.user.tensors import as_array, encode_array, is_array, is_tensor, plain_values
from worker.engines.user.value_types import UnsupportedType, has_binary_values

_JSON = Part()
_JSON_PARTS = (_JSON,)
_MEDIA_TYPE = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,126}/[A-Za-z0-9][A-Za-z0-9!#$&^_.+-]{0,70}")
_MAX_NAME_CHARS = 200
_MAX_DIMENSIONS = 32
#: Types that are JSON whatever their values, and those that are if their first value is.
_PLAIN = frozenset({str, int, float, bool, type(None)})
_CONTAINERS = frozenset({dict, list, tuple})
_BYTES = "application/octet-stream"


class EncodedParts(NamedTuple):
    """A result as it is sent: one frame for each part."""

    parts: tuple[Part, ...]
    frames: tuple[bytes, ...]


class OutputEncoder:
    """Encodes the results of one engine."""

    def __init__(self, media_type: str = "") -> None:
        """`media_type` is that of texts and bytes; by default texts are JSON."""
        self._text = _raw_part(media_type) if media_type else None
        self._bytes = _raw_part(media_type or _BYTES)
        self._encode_json = msgspec.json.Encoder(enc_hook=_plain).encode

    def is_slow(self, value: object) -> bool:
        """Return whether encoding takes so long that it should not hold up a step."""
        if type(value) in _PLAIN:
            return False
        return is_image(value) or (isinstance(value, dict) and any(map(is_image, value.values())))

    def encode(self, value: Any) -> EncodedParts:
        """Raises `TaskError` for a value that cannot be sent, and `DeviceLost`."""
        try:
            if self._is_json(value):
                return EncodedParts(_JSON_PARTS, (self._encode_json(value),))
            return _sendable(self._encode(value))
        except TaskError:
            raise
        except BaseException as error:  # user code makes the text of an object
            if isinstance(known := batch_error(error), DeviceLost):
                raise known from error  # it shows when a tensor is copied from the device
            raise TaskError("error", f"the result cannot be sent: {exception_text(error)}") from error

    def _is_json(self, value: Any) -> bool:
        """Return whether the value is surely JSON; most are."""
        kind = type(value)
        if kind in _PLAIN:
            return self._text is None or kind is not str
        return kind in _CONTAINERS and type(_first(value)) in _PLAIN

    def _encode(self, value: Any) -> EncodedParts:
        if hasattr(type(value), "__pydantic_serializer__") and isinstance(value, BaseModel):
            return EncodedParts(_JSON_PARTS, (self._encode_model(value),))
        if isinstance(value, dict) and value and all(map(_is_binary, value.values())):
            return self._encode_named([(str(name), each) for name, each in value.items()])
        if type(value) in (tuple, list) and value and all(is_array(each) or is_tensor(each) for each in value):
            return self._encode_named([(f"output_{index}", each) for index, each in enumerate(value)])
        part, frame = self._encode_part(value)
        return EncodedParts((part,), (frame,))

    def _encode_model(self, value: BaseModel) -> bytes:
        """Let pydantic write it, unless its fields hold bytes: pydantic's default reads them as UTF-8."""
        if _is_written_by_pydantic(type(value)):
            return value.__pydantic_serializer__.to_json(value, fallback=_plain)
        return self._encode_json(value.model_dump())

    def _encode_named(self, values: Sequence[tuple[str, Any]]) -> EncodedParts:
        encoded = [self._encode_part(value) for _, value in values]
        parts = tuple(
            msgspec.structs.replace(part, name=name) for (name, _), (part, _) in zip(values, encoded, strict=True)
        )
        return EncodedParts(parts, tuple(frame for _, frame in encoded))

    def _encode_part(self, value: Any) -> tuple[Part, bytes]:
        if isinstance(value, bytes | bytearray | memoryview):
            return self._bytes, bytes(value)
        if self._text is not None and isinstance(value, str):
            return self._text, value.encode()
        if isinstance(value, Content):
            return _raw_part(value.media_type), bytes(value.data)
        if is_image(value):
            return Part("image/png"), encode_png(value)
        if is_array(value) or is_tensor(value):
            return encode_array(as_array(value))
        body, media_type = getattr(value, "body", None), getattr(value, "media_type", None)
        if isinstance(body, bytes) and isinstance(media_type, str):  # a Response of Starlette or LitServe
            return _raw_part(media_type), body
        return _JSON, self._encode_json(value)


def _raw_part(media_type: str) -> Part:
    """Return the part of bytes of this type, without parameters such as `; charset=utf-8`."""
    return Part(media_type.partition(";")[0].strip())


def _sendable(encoded: EncodedParts) -> EncodedParts:
    """Raises `ValueError` for parts that the balancer does not accept."""
    if len(encoded.parts) > MAX_PARTS:
        raise ValueError(f"it has {len(encoded.parts)} parts; at most {MAX_PARTS} are allowed")
    for part in encoded.parts:
        if not _MEDIA_TYPE.fullmatch(part.media_type):
            raise ValueError(f"{part.media_type[:80]!r} is no media type, such as image/png")
        if len(part.name) > _MAX_NAME_CHARS or not part.name.isprintable():
            raise ValueError(f"{part.name[:80]!r} is no name of a value: up to {_MAX_NAME_CHARS} printable characters")
        if len(part.shape) > _MAX_DIMENSIONS:
            raise ValueError(f"an array has {len(part.shape)} dimensions; at most {_MAX_DIMENSIONS} are allowed")
    return encoded


@functools.lru_cache(maxsize=256)
def _is_written_by_pydantic(model: type[BaseModel]) -> bool:
    """Return whether the fields hold no bytes, images and arrays, or the model says itself how bytes are written."""
    if model.model_config.get("ser_json_bytes", "utf8") != "utf8":
        return True
    try:
        return not has_binary_values(model)
    except UnsupportedType:  # as an input it would be refused
        return False


def _first(values: Any) -> Any:
    """Return the first value of a dict or list, None for an empty one."""
    return next(iter(values.values() if type(values) is dict else values), None)


def _is_binary(value: object) -> bool:
    return isinstance(value, bytes | bytearray | Content) or is_array(value) or is_tensor(value) or is_image(value)


def _plain(value: Any) -> Any:
    """Return a value inside JSON that msgspec knows. Raises `TypeError`."""
    if value is None or type(value) in _CONTAINERS:  # values of these types never come here, only keys
        raise TypeError("a key in it is neither a text nor a number")
    if isinstance(value, BaseModel):
        if _is_written_by_pydantic(type(value)):
            return value.__pydantic_serializer__.to_python(value, mode="json", fallback=_plain)
        return value.model_dump()
    if is_array(value) or is_tensor(value):
        return plain_values(as_array(value))
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(value, numpy.generic):
        plain = value.item()
        return float(plain) if isinstance(plain, numpy.floating) else plain  # a longdouble has no type of Python
    if is_image(value):
        return base64.b64encode(encode_png(value)).decode()
    return to_jsonable_python(value)
