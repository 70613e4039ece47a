"""The parts of a call as the value that an engine's method takes."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Sequence
from typing import Any, NamedTuple

import msgspec
from pydantic import TypeAdapter, ValidationError
from pydantic_core import PydanticCustomError

from wire.inputs import Part
from worker.engine import TaskError
from worker.engines.user.images import ImageBounds
from worker.engines.user.tensors import decode_array, is_array, plain_values
from worker.engines.user.typed_dict_fields import without_qualifiers
from worker.engines.user.value_types import TextPart, has_binary_values, portable_type

_JSON = "application/json"
#: Mistakes that a message names.
_MAX_MISTAKES = 3


class _Mistake(NamedTuple):
    param: str
    text: str


class InputDecoder:
    """Decodes and validates the input of one engine."""

    def __init__(self, annotation: Any, bounds: ImageBounds) -> None:
        """`inspect.Parameter.empty` and `Any` accept every value. Raises `UnsupportedType`."""
        self._annotation = Any if annotation in (inspect.Parameter.empty, object) else annotation
        self._struct = isinstance(annotation, type) and issubclass(annotation, msgspec.Struct)
        self._adapter: TypeAdapter[Any] | None = None
        if self._struct:
            self._decoder: msgspec.json.Decoder[Any] = msgspec.json.Decoder(annotation)
        elif self._annotation is Any:
            self._decoder = msgspec.json.Decoder()
        else:
            self._adapter = TypeAdapter(portable_type(annotation, bounds))
            self._validate_json = self._adapter.validator.validate_json
        self._takes_fields = self._annotation is Any or _has_fields(self._annotation)
        #: Decoded values are not much larger than what the client sent, as images are.
        self.is_small = not (self._struct or self._adapter is None) and not has_binary_values(self._annotation)
        #: Arrays for these fields, or for the value itself, become lists.
        self._list_fields = _list_fields(self._annotation)
        self._takes_array = self._annotation is Any or has_binary_values(self._annotation)

    def schema(self) -> dict[str, Any]:
        """Return the JSON Schema. Raises pydantic's errors if the type has none."""
        if self._struct:
            return msgspec.json.schema(self._annotation)
        return self._adapter.json_schema() if self._adapter is not None else {}

    def decode(self, parts: Sequence[Part], frames: Sequence[bytes]) -> Any:
        """Return the value. Raises `TaskError` of kind `invalid` that names the field."""
        if len(parts) != len(frames):
            raise TaskError("invalid", f"the call has {len(parts)} parts and {len(frames)} frames")
        try:
            if len(parts) == 1 and parts[0].media_type == _JSON and not parts[0].dtype:
                if self._adapter is not None:
                    return self._validate_json(frames[0])
                return self._decoder.decode(frames[0])
            return self._validate(self._assemble(parts, frames))
        except ValidationError as error:
            raise _explain(error) from None
        except (ValueError, RecursionError, PydanticCustomError, msgspec.DecodeError) as error:
            raise TaskError("invalid", _reason(error)) from None

    def _validate(self, value: Any) -> Any:
        if self._struct:
            return msgspec.convert(value, self._annotation, builtin_types=(bytes,))
        if self._adapter is None:
            return value
        if is_array(value) and not self._takes_array:
            return self._validate_list(value)
        return self._adapter.validate_python(value)

    def _validate_list(self, array: Any) -> Any:
        """Validate the elements of an array; a single element may also be the value itself."""
        assert self._adapter is not None
        try:
            return self._adapter.validate_python(plain_values(array))
        except ValidationError:
            if array.size != 1:
                raise
            return self._adapter.validate_python(plain_values(array.reshape(())))

    def _assemble(self, parts: Sequence[Part], frames: Sequence[bytes]) -> Any:
        """Return the only value, or an object of the named ones. Raises `ValueError`."""
        values = [(part.name, _value(part, frame)) for part, frame in zip(parts, frames, strict=True)]
        if not values:
            raise ValueError("the call has no input")
        if len(values) == 1 and not (values[0][0] and self._takes_fields):
            return values[0][1]
        if not self._takes_fields:
            return [value for _, value in values]  # a tuple of arrays
        fields: dict[str, Any] = {}
        for name, value in values:
            if name:
                fields[name] = value
            elif isinstance(value, dict):
                fields |= value
            else:
                raise ValueError("a part has no name, and the input has several")
        for name in self._list_fields & fields.keys():
            if is_array(fields[name]):
                fields[name] = plain_values(fields[name])
        return fields


def _value(part: Part, frame: bytes) -> Any:
    if part.dtype:
        try:
            return decode_array(part, frame)
        except ValueError as error:
            raise ValueError(f"{part.name}: {error}" if part.name else str(error)) from None
    if part.media_type == _JSON:
        return msgspec.json.decode(frame)
    if part.media_type.startswith("text/"):
        return TextPart(frame.decode())
    return frame


def _has_fields(annotation: Any) -> bool:
    """Return whether values of the type are made of named fields."""
    kind = getattr(annotation, "__origin__", annotation)
    if isinstance(kind, type) and issubclass(kind, dict):
        return True
    return any(
        hasattr(annotation, name)
        for name in ("__pydantic_fields__", "__dataclass_fields__", "__total__", "__struct_fields__")
    )


def _list_fields(annotation: Any) -> frozenset[str]:
    """Return the fields of a structure that hold no array."""
    if not isinstance(annotation, type) or annotation is dict or not _has_fields(annotation):
        return frozenset()
    hints = typing.get_type_hints(annotation)
    return frozenset(name for name, hint in hints.items() if not has_binary_values(without_qualifiers(hint)))


def _reason(error: Exception) -> str:
    """Return the text of an error, with the place in front: msgspec's have it at their end, as `- at `$.input``."""
    text, found, place = str(error).rpartition(" - at `$")
    if not found:
        return place
    name = place.removesuffix("`").removeprefix(".")
    return f"{name}: {text}" if name else text


def _explain(error: ValidationError) -> TaskError:
    """Return an error that names the first wrong fields."""
    mistakes = [
        _Mistake(".".join(map(str, each["loc"])), each["msg"].removeprefix("Value error, "))
        for each in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    shown = [f"{param}: {text}" if param else text for param, text in mistakes[:_MAX_MISTAKES]]
    more = f" (and {len(mistakes) - _MAX_MISTAKES} more)" if len(mistakes) > _MAX_MISTAKES else ""
    return TaskError("invalid", "; ".join(shown) + more)
