"""The response bodies of the API: fields and their documentation."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
import pybase64

from wire.codec import Frame
from wire.inputs import GenerationMode, ImageFormat
from wire.messages import PassSharing

#: A field whose value is made by `base64_json`.
Base64 = Annotated[msgspec.Raw, msgspec.Meta(extra_json_schema={"type": "string", "contentEncoding": "base64"})]
Flagged = Annotated[
    bool, msgspec.Meta(description="Present, and true, if the model's safety checker rejects the image.")
]
TruncatedTokens = Annotated[
    int, msgspec.Meta(description="Present if the model has not read the last tokens of the prompts: their number.")
]


class Timings(msgspec.Struct, frozen=True):
    """Waiting time and generation time of an image."""

    queued_s: Annotated[float, msgspec.Meta(description="Seconds from arrival to the first denoising step.")]
    running_s: Annotated[float, msgspec.Meta(description="Seconds from the first denoising step to the finished file.")]


class Health(msgspec.Struct, frozen=True):
    """The response of `/healthz` and `/readyz`."""

    status: str


class ImageData(msgspec.Struct, frozen=True, omit_defaults=True):
    """One image of the response: its file, or its URL with `response_format: url`."""

    b64_json: Annotated[Base64, msgspec.Meta(description="The image file in base64.")] | msgspec.UnsetType
    seed: Annotated[int, msgspec.Meta(description="Seed that generates this image again.")]
    timings: Timings
    flagged: Flagged = False
    url: Annotated[str, msgspec.Meta(description="URL of the image file.")] | msgspec.UnsetType = msgspec.UNSET
    truncated_tokens: TruncatedTokens = 0


class ImagesAnswer(msgspec.Struct, frozen=True):
    """The response to an image request without `stream`."""

    created: Annotated[int, msgspec.Meta(description="Unix time in seconds.")]
    data: Annotated[list[ImageData], msgspec.Meta(description="The images in order.")]
    model: str
    size: Annotated[str, msgspec.Meta(description="WIDTHxHEIGHT in pixels.")]
    output_format: ImageFormat
    background: Literal["opaque"] = "opaque"


class PredictAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """The response of `/predict`."""

    image: Annotated[Base64, msgspec.Meta(description="The PNG in base64.")]
    flagged: Flagged = False
    truncated_tokens: TruncatedTokens = 0


class Curve(msgspec.Struct, frozen=True):
    """The measured time of a step at one size."""

    size: Annotated[str, msgspec.Meta(description="WIDTHxHEIGHT in pixels, or another key of the engine.")]
    cap: Annotated[int, msgspec.Meta(description="Maximum number of tasks that share a step.")]
    points: Annotated[
        list[tuple[int, float]], msgspec.Meta(description="Number of tasks in the batch, and seconds per step.")
    ]


class ModelCard(msgspec.Struct, frozen=True):
    """A served model: OpenAI's fields, then its defaults and limits, then its state and capabilities."""

    id: str
    created: Annotated[int, msgspec.Meta(description="When this server started, Unix time in seconds.")]
    engine: str
    defaults: Annotated[dict[str, Any], msgspec.Meta(description="Defaults of a request.")]
    limits: Annotated[dict[str, Any], msgspec.Meta(description="Limits of a request.")]
    ready: Annotated[bool, msgspec.Meta(description="True if a worker accepts requests.")]
    workers: Annotated[int, msgspec.Meta(description="Connected workers.")]
    loras: Annotated[list[str], msgspec.Meta(description="LoRA adapters that a request may name.")]
    pipeline: Annotated[str | None, msgspec.Meta(description="Null, like the fields below, without a worker.")]
    batching: Annotated[str | None, msgspec.Meta(description="How its requests are batched.")]
    shares_passes: Annotated[
        PassSharing | None, msgspec.Meta(description="Which of its requests can share a forward pass.")
    ]
    modes: Annotated[list[GenerationMode], msgspec.Meta(description="Inputs: text, an image, an image with a mask.")]
    checkpoints: Annotated[bool | None, msgspec.Meta(description="True if unfinished images can move between workers.")]
    reproducible: Annotated[bool | None, msgspec.Meta(description="True if `reproducible` is supported.")]
    curves: Annotated[list[Curve], msgspec.Meta(description="Step times by size; empty until measured.")]
    cannot_start: Annotated[str | None, msgspec.Meta(description="Why no worker can start; null if one may.")] = None
    name: Annotated[str, msgspec.Meta(description="The id, as KServe's clients expect it.")] = ""
    task: Annotated[Literal["image", "call", "text"], msgspec.Meta(description="What a request is.")] = "image"
    endpoints: Annotated[list[str], msgspec.Meta(description="Paths that serve it.")] = []
    streams: Annotated[bool | None, msgspec.Meta(description="True if results come in chunks.")] = None
    quality: Annotated[dict[str, Any], msgspec.Meta(description="What the values of `quality` mean.")] = {}
    object: Literal["model"] = "model"
    owned_by: str = "muster"


class ModelList(msgspec.Struct, frozen=True):
    """The served models."""

    data: list[ModelCard]
    object: Literal["list"] = "list"


def base64_json(data: Frame) -> Base64:
    """Return the bytes as a JSON string. msgspec writes it as it is; its own base64 takes ten times as long."""
    return msgspec.Raw(b'"%b"' % pybase64.b64encode(data))
