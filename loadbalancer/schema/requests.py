"""What clients send: the shape, the types and the documentation of every field.

Requests are pydantic models, read strictly (`"2"`, `2.0` and `true` are no integers) and in the terms of their errors.
A form is read as the JSON that it stands for, so that one set of rules holds. The bounds that depend on the
configuration are checked in `admission`.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any, Literal, TypeVar, get_args, get_origin

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from loadbalancer.schema.errors import BodyTooLarge, InvalidRequest
from wire.messages import ImageFormat

#: Seeds are counted modulo this, so that image i of a request can be asked for again alone.
SEEDS = 2**32

# ---- requests


class StrictModel(BaseModel):
    """No unknown fields, no guessing at types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)


class LoraRequest(StrictModel):
    """A LoRA adapter for one request."""

    name: str
    """Its name, from the model's list (`GET /v1/models/{model}`)."""
    scale: float | None = Field(default=None, allow_inf_nan=False)
    """How strongly it counts; default 1, 0 being not at all."""


class BaseImageRequest(StrictModel):
    """What every request for an image may say. A null counts as left out."""

    prompt: str
    """What to draw."""
    model: str | None = None
    """Name of a served model (`GET /v1/models`); default: the first in the configuration."""
    size: str | None = None
    """`WIDTHxHEIGHT` in pixels, multiples of 8, or `auto` (the default): the source picture's, else the model's."""
    negative_prompt: str | None = None
    """What the image should not show."""
    num_inference_steps: int | None = Field(default=None, ge=1)
    """Denoising steps; default: the model's."""
    guidance_scale: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """How closely to follow the prompt; at 1 or below the prompt is not amplified at all. Default: the model's."""
    scheduler: str | None = None
    """Sampler by name, such as `ddim` or `euler`; default: the model's."""
    seed: int | None = Field(default=None, ge=0, lt=SEEDS)
    """Makes the result repeatable. Image i of the request uses seed + i. Default: a random one, told in the answer."""
    loras: tuple[LoraRequest, ...] | None = Field(default=None, fail_fast=True)
    """LoRA adapters to draw with, by name (in a form: as JSON text)."""
    reproducible: bool | None = None
    """Equal bytes for an equal seed, whatever else the server is doing; refused where the model cannot promise it."""
    priority: int | None = Field(default=None, ge=-100, le=100)
    """Higher goes first among the requests of one API key; default 0."""
    timeout_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds from arrival after which the answer is worthless: the request then ends with 504."""

    @property
    def has_source_image(self) -> bool:
        """Whether it brings a source picture."""
        return False


class OpenAIImageRequest(BaseImageRequest):
    """What the requests of OpenAI's Images API have in common: its parameters, and those of diffusion models."""

    n: int | None = Field(default=None, ge=1)
    """How many images; default 1."""
    response_format: Literal["b64_json"] | None = None
    """Images come as base64 inside the answer; URLs are not offered."""
    output_format: ImageFormat | None = None
    """File format of the images; default `png`."""
    output_compression: int | None = Field(default=None, ge=0, le=100)
    """Quality of `jpeg` and `webp`, 100 being the best (the default)."""
    stream: bool | None = None
    """Answer with server-sent events: progress, previews, and each image as soon as it is done."""
    partial_images: int | None = Field(default=None, ge=0, le=3)
    """With `stream`: previews of each image on its way."""
    strength: float | None = Field(default=None, gt=0, le=1)
    """With a source picture: how far from it, 1 ignoring it. Default: the model's, or 1 where a mask is drawn anew."""
    quality: Literal["auto", "standard"] | None = None
    """Accepted for compatibility, without effect; `num_inference_steps` is what trades time for quality."""
    background: Literal["auto", "opaque"] | None = None
    """Accepted for compatibility: backgrounds are opaque."""
    moderation: Literal["auto", "low"] | None = None
    """Accepted for compatibility, without effect."""
    user: str | None = None
    """Accepted for compatibility, without effect."""
    safety_identifier: str | None = None
    """Accepted for compatibility, without effect."""


class ImageRequest(OpenAIImageRequest):
    """`POST /v1/images/generations`."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a handwritten seven"},
                {"model": "digits", "prompt": "a handwritten three", "n": 2, "seed": 7, "num_inference_steps": 20},
            ]
        }
    )

    image: str | None = None
    """A picture to start from, as a data URL (`data:image/png;base64,...`) of a PNG, JPEG or WebP file."""
    mask: str | None = None
    """With `image`: what to draw anew of it, as a data URL. White or, in a mask with an alpha channel, transparent."""
    style: Literal["vivid", "natural"] | None = None
    """Accepted for compatibility, without effect."""

    @property
    def has_source_image(self) -> bool:
        """Whether it brings a source picture."""
        return self.image is not None


def _add_files(schema: dict[str, Any]) -> None:
    """The files of the form, which are read beside its fields."""
    image = "The picture to edit: PNG, JPEG or WebP. Without `mask`, its transparent area is drawn anew, if it has one."
    mask = (
        "What to draw anew: a picture of the size of `image`, transparent there or, if it has no alpha channel, white."
    )
    files = {"image": image, "mask": mask}
    schema["properties"] |= {
        name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()
    }
    schema["required"].append("image")


class EditRequest(OpenAIImageRequest):
    """`POST /v1/images/edits`: the fields of the form. Numbers, booleans and lists stand in it as in JSON."""

    model_config = ConfigDict(json_schema_extra=_add_files)

    input_fidelity: Literal["high", "low"] | None = None
    """Accepted for compatibility, without effect; `strength` says how close to keep to the picture."""

    @property
    def has_source_image(self) -> bool:
        """Whether it brings a source picture."""
        return True


class PredictRequest(BaseImageRequest):
    """`POST /predict`: the simple form, one PNG."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "a handwritten seven"}]})


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
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "greater than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


class _ImageMembers(msgspec.Struct):
    """The members of a body that hold files."""

    image: msgspec.Raw = msgspec.Raw()
    mask: msgspec.Raw = msgspec.Raw()


def parse(kind: type[Request], body: bytes) -> Request:
    """The body as a request of this kind. Raises `InvalidRequest` for the first thing that is wrong with it."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _to_error(error.errors(include_url=False)[0], kind) from None


def parse_with_images(kind: type[Request], body: bytes, most: int) -> Request:
    """`parse` for a body that may be large for its pictures, but for nothing else.

    Raises also `BodyTooLarge` where it holds more than `most` bytes beside them, before they are made objects.
    """
    if len(body) > most and _bytes_without_images(body) > most:
        raise BodyTooLarge(most, "beside its pictures")
    return parse(kind, body)


def _bytes_without_images(body: bytes) -> int:
    """Bytes of the body outside of the texts that `image` and `mask` are."""
    try:
        found = msgspec.json.decode(body, type=_ImageMembers)
    except msgspec.ValidationError:  # no object
        return len(body)
    except (msgspec.DecodeError, RecursionError):  # no JSON, which `parse` explains
        return 0
    members = memoryview(found.image), memoryview(found.mask)
    return len(body) - sum(len(member) for member in members if bytes(member[:1]) == b'"')


def parse_form(kind: type[Request], fields: Mapping[str, str]) -> Request:
    """The fields of a form as a request of this kind: `parse` of what they stand for, with its errors."""
    known = kind.model_fields
    values = {
        name: _field_value(text, known[name].annotation) if name in known else text for name, text in fields.items()
    }
    try:
        return parse(kind, msgspec.json.encode(values))
    except UnicodeEncodeError:  # lone surrogates, which some character sets of a form can name
        raise InvalidRequest("The form holds text that is not Unicode.", code="invalid_form") from None


def _field_value(text: str, annotation: Any) -> Any:
    """What the text of a form field stands for: itself where text is expected, else the JSON that it is, if any."""
    expected = get_args(annotation) or (annotation,)
    if any(each is str or get_origin(each) is Literal for each in expected):
        return text
    try:
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        return text


def shorten(value: object) -> str:
    """The value as a client would recognise it, in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _to_error(problem: ErrorDetails, request: type[BaseModel]) -> InvalidRequest:
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if not problem["loc"]:
        said = "is not valid JSON" if kind == "json_invalid" else "must be a JSON object"
        detail = f": {context['error']}" if "error" in context else ""
        return InvalidRequest(f"The request body {said}{detail}.", code="invalid_json")
    name = _path(problem["loc"])
    if kind == "extra_forbidden":
        known = request if len(problem["loc"]) == 1 else LoraRequest
        near = difflib.get_close_matches(str(problem["loc"][-1]), known.model_fields, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return InvalidRequest(f"Unknown parameter: {shorten(name)}.{hint}", param=name, code="unknown_parameter")
    if kind == "missing":
        return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if kind in _TYPES:
        text = f"Invalid type for '{name}': {shorten(value)}. Expected {_TYPES[kind]}."
        return InvalidRequest(text, param=name, code="invalid_type")
    return InvalidRequest(f"Invalid value for '{name}': {shorten(value)}. {_constraint(problem)}", param=name)


def _path(place: tuple[int | str, ...]) -> str:
    """Where in the request: `loras[0].scale`."""
    name = str(place[0])
    for part in place[1:]:
        name += f"[{part}]" if isinstance(part, int) else f".{part}"
    return name


def _constraint(problem: ErrorDetails) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        return f"Supported: {context['expected']}."
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"Must be {words} {context[bound]}."
    return f"{problem['msg']}."
