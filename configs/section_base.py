"""The base of all sections of the configuration, and the types of their fields."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ByteSize,
    ConfigDict,
    Field,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    TypeAdapter,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, core_schema

from configs.fields import alternatives
from configs.text import is_utf8

if TYPE_CHECKING:
    from pydantic.json_schema import JsonSchemaValue

#: 31 years, as good as never. Timers and dates overflow far above it.
_MAX_SECONDS = 1e9
#: Above it, floats and JSON readers lose digits, and databases overflow.
_MAX_NUMBER = 1 << 53
#: Bytes of one input, result or checkpoint, between balancer and worker. The database takes no value above 1e9 bytes.
MAX_MESSAGE_BYTES = 512 << 20
Seconds = Annotated[float, Field(ge=0, le=_MAX_SECONDS)]
PositiveSeconds = Annotated[float, Field(gt=0, le=_MAX_SECONDS)]
#: A number of processes or devices of one machine: each has a slot in memory.
MachineCount = Annotated[int, Field(le=4096)]


#: pydantic's own pattern reads the start of a text: it took `9,5GiB` and `50%` for 9 and 50 bytes.
_SIZE = re.compile(r"\s*([0-9]+(\.[0-9]+)?|\.[0-9]+)\s*([A-Za-z]*)\s*")


_MAX_SIZE_DIGITS = 40


def _size(value: Any) -> Any:
    """Return the bytes that a text names, such as 9.5GiB."""
    if not isinstance(value, str):
        return value
    if not (found := _SIZE.fullmatch(value)):
        raise ValueError("must be a number of bytes, or one with a unit such as 9.5GiB")
    if len(found[1]) > _MAX_SIZE_DIGITS:
        raise ValueError(f"must be at most {_MAX_NUMBER}")
    try:
        return int(TypeAdapter(ByteSize).validate_python(value))
    except ValidationError:
        raise ValueError("has an unknown unit; allowed: B, KB, MB, GB, TB, PB, KiB, MiB, GiB, TiB, PiB") from None


class TextPattern:
    """Annotation of a text that matches a regular expression. An error says in words what is allowed."""

    def __init__(self, pattern: str, allowed: str) -> None:
        """`allowed` ends a sentence that begins with "must be", and has an example."""
        self._pattern = re.compile(pattern, re.ASCII)
        self._allowed = allowed

    def _check(self, value: str) -> str:
        if not self._pattern.fullmatch(value):
            raise ValueError(f"must be {self._allowed}")
        return value

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return handler(schema) | {"pattern": f"^({self._pattern.pattern})$"}


class ByteUnits:
    """Annotation of a number of bytes: a text with a unit, such as 9.5GiB, is accepted as well."""

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_before_validator_function(_size, handler(source))

    def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [handler(schema), {"type": "string", "pattern": f"^{_SIZE.pattern}$"}]}


def _above_zero(value: Any) -> Any:
    if isinstance(value, int | float) and value <= 0:
        raise ValueError("must be above 0, such as 9.5GiB")
    return value


#: A number of bytes above 0.
Bytes = Annotated[int, Field(gt=0), BeforeValidator(_above_zero), ByteUnits()]


def expand_home(value: str) -> str:
    """Return the path with the home folder in place of `~`. Raises `ValueError` if no such user is known."""
    if "\0" in value or not value.strip():
        raise ValueError("must be the path of a file or folder")
    try:
        return str(Path(value).expanduser())
    except RuntimeError:
        raise ValueError("the user after ~ is not known here; give the whole path") from None


def _local_path(value: Any) -> Any:
    return expand_home(str(value)) if isinstance(value, str | Path) else value


#: A path of this machine. `~` is the home folder; a relative path starts at the working directory.
LocalPath = Annotated[Path, BeforeValidator(_local_path)]


def _named_path(value: str) -> str:
    if "\0" in value or not value.strip():
        raise ValueError("must be the path of a file or folder")
    return value


#: A path of another machine.
RemotePath = Annotated[str, AfterValidator(_named_path)]


_HOST = r"[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\]"
_PORT = r"[1-9][0-9]{0,3}|[1-5][0-9]{4}|6[0-4][0-9]{3}|65[0-4][0-9]{2}|655[0-2][0-9]|6553[0-5]"
#: HOST:PORT. IPv6 addresses are in brackets.
HOST_AND_PORT = rf"({_HOST}):({_PORT})"
#: An address without query, fragment and user.
WEB_ADDRESS = r"https?://[^/\s?#@]+(/[^\s?#]*)?"

#: A duration with a unit, as other systems have it.
_DURATION = re.compile(r"\s*[0-9]+(\.[0-9]+)?\s*(ms|s|secs?|seconds?|m|mins?|minutes?|h|hours?|d|days?)\s*")


class Section(BaseModel):
    """A section of the configuration. It rejects unknown keys and is immutable."""

    # Every program reads the configuration when it starts. To be quick, each schema is built once, as a part of that of
    # `Settings`: defaults that are sections are made by `model_construct`, which needs no schema of their own.
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @model_validator(mode="before")
    @classmethod
    def _empty_is_default(cls, values: Any) -> Any:
        """A section or a list whose lines are all commented out is null in YAML."""
        if values is None:
            return {}
        if not isinstance(values, dict):
            return values
        lists = {name for name, field in cls.model_fields.items() if field.default == ()}
        return {key: () if value is None and key in lists else value for key, value in values.items()}

    @field_validator("*", mode="before")
    @classmethod
    def _is_of_its_kind(cls, value: Any, info: ValidationInfo) -> Any:
        """`true` is no number. Text that is not UTF-8 could be neither printed as YAML nor sent."""
        annotation = cls.model_fields[info.field_name or ""].annotation
        kinds = set(alternatives(annotation))
        if isinstance(value, bool) and kinds & {int, float} and bool not in kinds:
            raise ValueError("must be a number")
        is_time = (info.field_name or "").endswith("_s") and str not in kinds
        if is_time and isinstance(value, str) and _DURATION.fullmatch(value):
            raise ValueError("must be a number of seconds without a unit, such as 10")
        if isinstance(value, str | Path) and not is_utf8(str(value)):
            raise ValueError("must be UTF-8")
        if isinstance(value, list | tuple) and not all(is_utf8(each) for each in value if isinstance(each, str)):
            raise ValueError("must be UTF-8")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _is_bounded(cls, value: Any) -> Any:
        if isinstance(value, int | float) and abs(value) > _MAX_NUMBER:
            raise ValueError(f"must be at most {_MAX_NUMBER}")
        return value
