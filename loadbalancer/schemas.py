"""What clients send and what they get: the shapes, the types and the documentation of every field.

Requests are pydantic models, read strictly (`"2"`, `2.0` and `true` are no integers) and in the terms of their errors;
answers are msgspec structs, because those write image bytes as base64 in one pass. The bounds that depend on the
configuration are checked in `admission`.
"""

from __future__ import annotations

import difflib
from typing import Annotated, Any, Literal, TypeVar

import msgspec
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from loadbalancer.errors import InvalidRequest
from wire.messages import ImageFormat

#: Seeds are counted modulo this, so that image i of a request can be asked for again alone.
SEEDS = 2**32

# ---- requests


class Drawing(BaseModel):
    """What every request for an image may say. A null counts as left out."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True)

    prompt: str
    """What to draw."""
    model: str | None = None
    """Name of a served model (`GET /v1/models`); default: the first in the configuration."""
    size: str | None = None
    """`WIDTHxHEIGHT` in pixels, both multiples of 8, or `auto` for the model's own size (the default)."""
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
    priority: int | None = Field(default=None, ge=-100, le=100)
    """Higher goes first; default 0."""
    timeout_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds from arrival after which the answer is worthless: the request then ends with 504."""


class ImageRequest(Drawing):
    """`POST /v1/images/generations`: OpenAI's parameters, and those of diffusion models."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {"prompt": "a handwritten seven"},
                {"model": "digits", "prompt": "a handwritten three", "n": 2, "seed": 7, "num_inference_steps": 20},
            ]
        }
    )

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
    quality: Literal["auto", "standard"] | None = None
    """Accepted for compatibility, without effect; `num_inference_steps` is what trades time for quality."""
    background: Literal["auto", "opaque"] | None = None
    """Accepted for compatibility: backgrounds are opaque."""
    style: Literal["vivid", "natural"] | None = None
    """Accepted for compatibility, without effect."""
    moderation: Literal["auto", "low"] | None = None
    """Accepted for compatibility, without effect."""
    user: str | None = None
    """Accepted for compatibility, without effect."""
    safety_identifier: str | None = None
    """Accepted for compatibility, without effect."""


class PredictRequest(Drawing):
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
}
_BOUNDS = {
    "greater_than_equal": ("ge", "at least"),
    "greater_than": ("gt", "greater than"),
    "less_than_equal": ("le", "at most"),
    "less_than": ("lt", "less than"),
}


def parse(kind: type[Request], body: bytes) -> Request:
    """The body as a request of this kind. Raises `InvalidRequest` for the first thing that is wrong with it."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error.errors(include_url=False)[0], list(kind.model_fields)) from None


def shorten(value: object) -> str:
    """The value as a client would recognise it, in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _explain(problem: ErrorDetails, known: list[str]) -> InvalidRequest:
    kind, value, context = problem["type"], problem["input"], problem.get("ctx", {})
    if not problem["loc"]:
        said = "is not valid JSON" if kind == "json_invalid" else "must be a JSON object"
        detail = f": {context['error']}" if "error" in context else ""
        return InvalidRequest(f"The request body {said}{detail}.", code="invalid_json")
    name = str(problem["loc"][0])
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean '{near[0]}'?" if near else ""
        return InvalidRequest(f"Unknown parameter: {shorten(name)}.{hint}", param=name, code="unknown_parameter")
    if kind == "missing":
        return InvalidRequest(f"Missing required parameter: '{name}'.", param=name, code="missing_required_parameter")
    if kind in _TYPES:
        text = f"Invalid type for '{name}': {shorten(value)}. Expected {_TYPES[kind]}."
        return InvalidRequest(text, param=name, code="invalid_type")
    return InvalidRequest(f"Invalid value for '{name}': {shorten(value)}. {_allowed(problem)}", param=name)


def _allowed(problem: ErrorDetails) -> str:
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "literal_error":
        return f"Supported: {context['expected']}."
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"Must be {words} {context[bound]}."
    return f"{problem['msg']}."


# ---- answers


class Timings(msgspec.Struct, frozen=True):
    """Where an image's time went."""

    queued_s: Annotated[float, msgspec.Meta(description="Seconds from arrival to the first denoising step.")]
    running_s: Annotated[float, msgspec.Meta(description="Seconds from there to the finished file.")]


class ImageData(msgspec.Struct, frozen=True):
    """One image of the answer."""

    b64_json: Annotated[memoryview, msgspec.Meta(description="The image file in base64.")]
    seed: Annotated[int, msgspec.Meta(description="Asks for this image again, alone.")]
    timings: Timings


class ImagesAnswer(msgspec.Struct, frozen=True):
    """The answer to a request for images that does not stream."""

    created: Annotated[int, msgspec.Meta(description="Unix time in seconds.")]
    data: Annotated[list[ImageData], msgspec.Meta(description="The images in order.")]
    model: str
    size: Annotated[str, msgspec.Meta(description="WIDTHxHEIGHT in pixels.")]
    output_format: ImageFormat
    background: Literal["opaque"] = "opaque"


class PredictAnswer(msgspec.Struct, frozen=True):
    """The answer to `/predict`."""

    image: Annotated[memoryview, msgspec.Meta(description="The PNG in base64.")]


class ModelCard(msgspec.Struct, frozen=True):
    """A served model: OpenAI's fields, then what a request to it may say, then how it does."""

    id: str
    created: Annotated[int, msgspec.Meta(description="When this server started, Unix time in seconds.")]
    engine: str
    defaults: Annotated[dict[str, Any], msgspec.Meta(description="What a request gets that does not say otherwise.")]
    limits: Annotated[dict[str, Any], msgspec.Meta(description="What a request may ask for.")]
    ready: Annotated[bool, msgspec.Meta(description="Whether some worker takes requests.")]
    workers: Annotated[int, msgspec.Meta(description="Connected workers.")]
    object: Literal["model"] = "model"
    owned_by: str = "muster"


class ModelList(msgspec.Struct, frozen=True):
    """The served models."""

    data: list[ModelCard]
    object: Literal["list"] = "list"
