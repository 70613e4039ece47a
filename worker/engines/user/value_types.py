"""Annotations of an engine as types that pydantic can validate: bytes, images and arrays included.

In JSON, bytes and images are base64 text (or `{"b64": text}`), arrays are nested lists. In parts they are raw frames.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import functools
import sys
import types
import typing
from collections.abc import Callable
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AfterValidator, BaseModel, BeforeValidator, WithJsonSchema, create_model
from pydantic.fields import FieldInfo

from muster import Content
from worker.engines.user.images import ImageBounds, decode_image, is_image
from worker.engines.user.tensors import array_from_lists, as_array, is_array
from worker.engines.user.type_aliases import is_alias, resolve_alias
from worker.engines.user.typed_dict_fields import is_optional, without_qualifiers

_BASE64 = {"type": "string", "contentEncoding": "base64"}


class TextPart(str):
    """A text that was sent as it is, and not within JSON: for a field of bytes it is no base64."""

    __slots__ = ()


class UnsupportedType(Exception):
    """An annotation that no value of a request can have. The text says why."""


def portable_type(annotation: Any, bounds: ImageBounds, inside: dict[Any, bool] | None = None) -> Any:
    """Return a type for `pydantic.TypeAdapter` whose values are those of the annotation.

    An annotation without bytes, images and arrays is returned as it is. Raises `UnsupportedType`.
    `inside` has the structures and aliases that contain this annotation, and whether each contains itself.
    """
    inside = {} if inside is None else inside
    if isinstance(annotation, types.ModuleType):
        raise UnsupportedType(f"the annotation {annotation.__name__} is a module, not a type")
    leaf = _leaf(annotation, bounds)
    if leaf is not None:
        return leaf
    if is_alias(annotation):
        return _aliased(annotation, bounds, inside)
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        inner = portable_type(arguments[0], bounds, inside)
        return annotation if inner is arguments[0] else Annotated[(inner, *arguments[1:])]
    if origin is not None and origin is not typing.Literal and origin is not Callable:
        inners = tuple(portable_type(each, bounds, inside) for each in arguments)
        if all(inner is each for inner, each in zip(inners, arguments, strict=True)):
            return annotation
        return Union[inners] if origin in (Union, types.UnionType) else origin[inners]  # noqa: UP007
    return _structure(annotation, bounds, inside) if isinstance(annotation, type) else annotation


def has_binary_values(annotation: Any) -> bool:
    """Return whether values of this type hold bytes, images or arrays."""
    return portable_type(annotation, ImageBounds(1, 1)) is not annotation


def _leaf(annotation: Any, bounds: ImageBounds) -> Any:
    """Return the portable type of bytes, an image, an array or a tensor; None for other annotations."""
    if annotation in (bytes, bytearray):
        return Annotated[annotation, BeforeValidator(bytes_from), WithJsonSchema(_BASE64)]
    if annotation is Content:
        return Annotated[Any, WithJsonSchema(_BASE64)]
    kind = get_origin(annotation) or annotation
    name = f"{getattr(kind, '__module__', '')}.{getattr(kind, '__qualname__', '')}"
    if name == "PIL.Image.Image":
        schema: dict[str, Any] = _BASE64 | {"contentMediaType": "image/png"}
        return Annotated[Any, BeforeValidator(functools.partial(_image_from, bounds)), WithJsonSchema(schema)]
    if name == "numpy.ndarray":
        dtype = _dtype(annotation)
        schema = _lists(dtype or "numbers")
        return Annotated[Any, BeforeValidator(functools.partial(array_from, dtype)), WithJsonSchema(schema)]
    if name == "torch.Tensor":
        return Annotated[Any, BeforeValidator(_tensor_from), WithJsonSchema(_lists("numbers"))]
    return None


def _lists(elements: str) -> dict[str, Any]:
    return {"type": "array", "items": {}, "description": f"nested lists of {elements}"}


def _dtype(annotation: Any) -> str:
    """Return the element type of `numpy.typing.NDArray[numpy.float32]`, or an empty text."""
    arguments = get_args(annotation)
    element = next(iter(get_args(arguments[1])), None) if len(arguments) == 2 else None
    if not isinstance(element, type):
        return ""
    import numpy

    try:
        return numpy.dtype(element).name
    except TypeError:  # an abstract type, such as numpy.floating
        return ""


# ---- values


def bytes_from(value: Any) -> Any:
    """Return the bytes of base64 text or of `{"b64": text}`; other values pass. Raises `ValueError`."""
    if isinstance(value, TextPart):
        return value.encode()
    if isinstance(value, dict) and set(value) == {"b64"}:
        value = value["b64"]
    if not isinstance(value, str):
        return value
    text = value.partition(",")[2] if value.startswith("data:") else value
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise ValueError("must be base64") from None


def _image_from(bounds: ImageBounds, value: Any) -> Any:
    data = value if is_image(value) else bytes_from(value)
    if is_image(data):
        return data
    if not isinstance(data, bytes | bytearray | memoryview):
        raise ValueError("must be an image")
    return decode_image(bytes(data), bounds)


def array_from(dtype: str, value: Any) -> Any:
    """Return an array of the type (any, if the text is empty). Raises `ValueError`."""
    if not is_array(value):
        if not isinstance(value, list | int | float):
            raise ValueError("must be an array: nested lists of numbers, or a tensor")
        return array_from_lists(value, dtype)
    if dtype and value.dtype.name != dtype:
        import numpy

        if not numpy.can_cast(value.dtype, dtype, "same_kind"):
            raise ValueError(f"must be an array of {dtype}, not of {value.dtype.name}")
        return value.astype(dtype)
    return value


def _tensor_from(value: Any) -> Any:
    import torch

    return torch.from_numpy(as_array(array_from("", value)).copy())


# ---- structures


def _aliased(alias: Any, bounds: ImageBounds, inside: dict[Any, bool]) -> Any:
    """Return a portable type for what the alias stands for."""
    if alias in inside:
        inside[alias] = True
        return alias
    inside[alias] = False
    try:
        value = resolve_alias(alias)
    except Exception as error:  # a name that exists for type checkers only
        raise UnsupportedType(f"the type alias {alias} cannot be read: {error}") from None
    portable = portable_type(value, bounds, inside)
    if inside.pop(alias) and portable is not value:
        raise UnsupportedType(f"{alias} contains itself, so that it can hold no bytes, images or arrays")
    return alias if portable is value else portable


def _structure(annotation: type, bounds: ImageBounds, inside: dict[Any, bool]) -> Any:
    """Return a portable type for a pydantic model, dataclass or TypedDict with fields of bytes, images or arrays."""
    is_model = issubclass(annotation, BaseModel)
    if not is_model and not dataclasses.is_dataclass(annotation) and not typing.is_typeddict(annotation):
        return annotation
    if annotation in inside:
        inside[annotation] = True
        return annotation
    inside[annotation] = False
    portable = (_model if is_model else _record)(annotation, bounds, inside)
    if inside.pop(annotation) and portable is not annotation:
        raise UnsupportedType(f"{annotation.__name__} contains itself, so that it can hold no bytes, images or arrays")
    return portable


def _record(annotation: type, bounds: ImageBounds, inside: dict[Any, bool]) -> Any:
    """Return the portable type of a dataclass or TypedDict."""
    hints = typing.get_type_hints(annotation, include_extras=True)
    values = {name: without_qualifiers(hint) for name, hint in hints.items()}
    portable = {name: portable_type(value, bounds, inside) for name, value in values.items()}
    unchanged = all(portable[name] is value for name, value in values.items())
    if unchanged and not _is_refused_by_pydantic(annotation):
        return annotation
    optional = _optional_fields(annotation, hints)
    fields: dict[str, Any] = {
        name: (kind, None if name in optional else ...)
        for name, kind in portable.items()
        if _is_input(annotation, name)
    }
    made = create_model(annotation.__name__, __module__=annotation.__module__, **fields)

    def convert(values: BaseModel) -> Any:
        return annotation(**{name: getattr(values, name) for name in values.model_fields_set})

    return Annotated[made, AfterValidator(convert)]


def _is_refused_by_pydantic(annotation: type) -> bool:
    """Before Python 3.12, pydantic only takes the TypedDict of typing_extensions."""
    return sys.version_info < (3, 12) and typing.is_typeddict(annotation) and type(annotation).__module__ == "typing"


def _optional_fields(annotation: Any, hints: dict[str, Any]) -> frozenset[str]:
    if typing.is_typeddict(annotation):  # its own sets of keys are wrong for annotations that are texts
        return frozenset(
            name for name, hint in hints.items() if is_optional(hint, name in annotation.__optional_keys__)
        )
    missing = dataclasses.MISSING
    return frozenset(
        each.name
        for each in dataclasses.fields(annotation)
        if each.default is not missing or each.default_factory is not missing
    )


def _is_input(annotation: Any, name: str) -> bool:
    if not dataclasses.is_dataclass(annotation):
        return True
    return any(each.name == name and each.init for each in dataclasses.fields(annotation))


def _model(model: type[BaseModel], bounds: ImageBounds, inside: dict[Any, bool]) -> Any:
    """Return a subclass whose fields of bytes, images and arrays have portable types."""
    changed: dict[str, tuple[Any, FieldInfo]] = {}
    for name, field in model.model_fields.items():
        kind = portable_type(field.annotation, bounds, inside)
        if kind is not field.annotation and not field.metadata:
            changed[name] = (kind, field)
    if not changed:
        return model
    fields: dict[str, Any] = changed
    made = create_model(model.__name__, __base__=model, __module__=model.__module__, **fields)
    made.__qualname__ = model.__qualname__
    return made
