"""What clients send: the shape, the types and the documentation of every field.

Requests are pydantic models, read strictly (`"2"`, `2.0` and `true` are no integers) and in the terms of their errors.
A form is read as the JSON that it stands for, so that one set of rules holds. The bounds that depend on the
configuration are checked in `admission`.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from wire.messages import ImageFormat

#: Seeds are counted modulo this, so that image i of a request can be asked for again alone.
SEEDS = 2**32


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
