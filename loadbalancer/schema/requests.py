"""The request bodies of the image API: fields, types and their documentation.

They are strict: `"2"`, `2.0` and `true` are not integers. `generation.validation` checks the bounds that depend on the
configuration.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from wire.inputs import ImageFormat

#: Seeds are modulo this, so that each image of a request can be requested again by its own seed.
SEEDS = 2**32
#: What most programs around Stable Diffusion send for a random seed.
_RANDOM_SEED = -1


def _seed(value: int | None) -> int | None:
    return None if value == _RANDOM_SEED else value


class StrictModel(BaseModel):
    """A model that rejects unknown fields and does not convert types."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, use_attribute_docstrings=True, defer_build=True)


class LoraRequest(StrictModel):
    """A LoRA adapter for one request."""

    name: str
    """Its name, from the model's list (`GET /v1/models/{model}`)."""
    scale: float | None = Field(default=None, allow_inf_nan=False)
    """Strength of the adapter; default 1. 0 disables it."""


class BaseImageRequest(StrictModel):
    """The fields of every image request. A null counts as absent."""

    prompt: str
    """Description of the image."""
    model: str | None = None
    """Name of a served model (`GET /v1/models`); default: the first in the configuration."""
    size: str | None = None
    """`WIDTHxHEIGHT` in pixels, multiples of 8, or `auto` (the default): the source image's, else the model's."""
    negative_prompt: str | None = None
    """Description of unwanted content."""
    num_inference_steps: int | None = Field(default=None, ge=1)
    """Denoising steps; default: the model's."""
    guidance_scale: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    """How closely to follow the prompt; at 1 or below the prompt is not amplified at all. Default: the model's."""
    scheduler: str | None = None
    """Sampler by name, such as `ddim` or `euler`; default: the model's."""
    seed: Annotated[int | None, AfterValidator(_seed)] = Field(default=None, ge=_RANDOM_SEED, lt=SEEDS)
    """Makes the result repeatable. Image i uses seed + i. Default and -1: random; the response contains it."""
    loras: tuple[LoraRequest, ...] | None = Field(default=None, fail_fast=True)
    """LoRA adapters to use, by name (in a form: as JSON text)."""
    reproducible: bool | None = None
    """Equal bytes for an equal seed, independent of the server's load; rejected if the model does not support it."""
    priority: int | None = Field(default=None, ge=-100, le=100)
    """Higher goes first among the requests of one API key; default 0."""
    timeout_s: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    """Seconds from arrival after which the request ends with 504."""


class OpenAIImageRequest(BaseImageRequest):
    """The fields of OpenAI's Images API, and those of diffusion models."""

    n: int | None = Field(default=None, ge=1)
    """Number of images; default 1."""
    response_format: Literal["b64_json", "url"] | None = None
    """`b64_json` (the default): images are base64 inside the response. `url`: URLs that work for `results.ttl_s`."""
    output_format: ImageFormat | None = None
    """File format of the images; default `png`."""
    output_compression: int | None = Field(default=None, ge=0, le=100)
    """Quality of `jpeg` and `webp`, 100 being the best (the default)."""
    stream: bool | None = None
    """Respond with server-sent events: progress, previews, and each image as soon as it is finished."""
    partial_images: int | None = Field(default=None, ge=0, le=3)
    """With `stream`: number of previews of each image."""
    strength: float | None = Field(default=None, gt=0, le=1)
    """With a source image: how much to change it; 1 ignores it. Default: the model's, or 1 with a mask."""
    quality: Literal["auto", "low", "medium", "high", "standard", "hd"] | None = None
    """The model's settings for this quality, see `quality` in `GET /v1/models`; without effect where there are none.
    Parameters of the request come first."""
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
    """Source image as a data URL (`data:image/png;base64,...`) of a PNG, JPEG or WebP file."""
    mask: str | None = None
    """With `image`: the area to redraw, as a data URL. White or, in a mask with an alpha channel, transparent."""
    style: Literal["vivid", "natural"] | None = None
    """Accepted for compatibility, without effect."""
    bot_task: str | None = None
    """Accepted for compatibility with vLLM-Omni's client, without effect."""


def _add_files(schema: dict[str, Any]) -> None:
    """Add the form's files to its schema."""
    image = "The image to edit: PNG, JPEG or WebP. Without `mask`, its transparent area is redrawn, if it has one."
    mask = "The area to redraw: an image of the size of `image`, transparent there or, without an alpha channel, white."
    files = {"image": image, "mask": mask}
    schema["properties"] |= {
        name: {"type": "string", "format": "binary", "description": text} for name, text in files.items()
    }
    schema["required"].append("image")


class EditRequest(OpenAIImageRequest):
    """`POST /v1/images/edits`: the fields of the form. Numbers, booleans and lists are written as in JSON."""

    model_config = ConfigDict(json_schema_extra=_add_files)

    input_fidelity: Literal["high", "low"] | None = None
    """Accepted for compatibility, without effect; `strength` sets how much of the image changes."""


class ImageReference(StrictModel):
    """An image of an edit that is sent as JSON."""

    image_url: str | None = None
    """A data URL (`data:image/png;base64,...`) of a PNG, JPEG or WebP file. Other addresses are not fetched."""
    file_id: None = None
    """Not supported: files are not stored."""


class JsonEditRequest(EditRequest):
    """`POST /v1/images/edits` as JSON."""

    model_config = ConfigDict(json_schema_extra={})

    images: Annotated[tuple[ImageReference, ...], Field(min_length=1, max_length=1)]
    """The image to edit. Without `mask`, its transparent area is redrawn, if it has one."""
    mask: ImageReference | None = None
    """The area to redraw: an image of the size of the first, transparent there or, without an alpha channel, white."""


class PredictRequest(BaseImageRequest):
    """`POST /predict`: the minimal API for one PNG."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"prompt": "a handwritten seven"}]})
