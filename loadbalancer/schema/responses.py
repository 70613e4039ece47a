"""What clients get: the shape and the documentation of every answer that is a success.

These are msgspec structs, because those write image bytes as base64 in one pass.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec

from wire.messages import GenerationMode, ImageFormat

Flagged = Annotated[
    bool, msgspec.Meta(description="Present, and true, where the model's safety checker objects to the image.")
]


class Timings(msgspec.Struct, frozen=True):
    """Where an image's time went."""

    queued_s: Annotated[float, msgspec.Meta(description="Seconds from arrival to the first denoising step.")]
    running_s: Annotated[float, msgspec.Meta(description="Seconds from there to the finished file.")]


class Health(msgspec.Struct, frozen=True):
    """The answer of `/healthz` and `/readyz`."""

    status: str


class ImageData(msgspec.Struct, frozen=True, omit_defaults=True):
    """One image of the answer."""

    b64_json: Annotated[memoryview, msgspec.Meta(description="The image file in base64.")]
    seed: Annotated[int, msgspec.Meta(description="Asks for this image again, alone.")]
    timings: Timings
    flagged: Flagged = False


class ImagesAnswer(msgspec.Struct, frozen=True):
    """The answer to a request for images that does not stream."""

    created: Annotated[int, msgspec.Meta(description="Unix time in seconds.")]
    data: Annotated[list[ImageData], msgspec.Meta(description="The images in order.")]
    model: str
    size: Annotated[str, msgspec.Meta(description="WIDTHxHEIGHT in pixels.")]
    output_format: ImageFormat
    background: Literal["opaque"] = "opaque"


class PredictAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The answer to `/predict`."""

    image: Annotated[memoryview, msgspec.Meta(description="The PNG in base64.")]
    flagged: Flagged = False


class Curve(msgspec.Struct, frozen=True):
    """What a denoising step costs at one size, as measured."""

    size: Annotated[str, msgspec.Meta(description="WIDTHxHEIGHT in pixels.")]
    cap: Annotated[int, msgspec.Meta(description="Most images that share a step.")]
    points: Annotated[
        list[tuple[int, float]], msgspec.Meta(description="Images in the batch, and seconds of a step of so many.")
    ]


class ModelCard(msgspec.Struct, frozen=True):
    """A served model: OpenAI's fields, then what a request to it may say, then how it does."""

    id: str
    created: Annotated[int, msgspec.Meta(description="When this server started, Unix time in seconds.")]
    engine: str
    defaults: Annotated[dict[str, Any], msgspec.Meta(description="What a request gets that does not say otherwise.")]
    limits: Annotated[dict[str, Any], msgspec.Meta(description="What a request may ask for.")]
    ready: Annotated[bool, msgspec.Meta(description="Whether some worker takes requests.")]
    workers: Annotated[int, msgspec.Meta(description="Connected workers.")]
    loras: Annotated[list[str], msgspec.Meta(description="LoRA adapters that a request may name.")]
    pipeline: Annotated[str | None, msgspec.Meta(description="What runs it; null, as those below, without a worker.")]
    batching: Annotated[str | None, msgspec.Meta(description="How its requests share steps.")]
    modes: Annotated[list[GenerationMode], msgspec.Meta(description="Inputs: text, an image, an image with a mask.")]
    checkpoints: Annotated[bool | None, msgspec.Meta(description="Whether images move between workers half done.")]
    reproducible: Annotated[bool | None, msgspec.Meta(description="Whether a request may ask for `reproducible`.")]
    curves: Annotated[list[Curve], msgspec.Meta(description="What a step costs, by size; empty until measured.")]
    object: Literal["model"] = "model"
    owned_by: str = "muster"


class ModelList(msgspec.Struct, frozen=True):
    """The served models."""

    data: list[ModelCard]
    object: Literal["list"] = "list"
