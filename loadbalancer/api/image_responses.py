"""The response of the Images API from finished images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.scheduling.task import TaskCompleted
from loadbalancer.schema.errors import NotAcceptable
from loadbalancer.schema.media_types import JSON, MediaRange, choose
from loadbalancer.schema.requests import OpenAIImageRequest, PredictRequest
from loadbalancer.schema.responses import ImageData, ImagesAnswer, Timings, base64_json
from loadbalancer.storage.records import StoredImage
from wire.codec import Frame
from wire.inputs import ImageFormat, ImageInputs

#: The types of images, the default first.
_FORMATS: dict[str, ImageFormat] = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}
_OFFERED = (JSON, *_FORMATS)


def requested_format(
    accepted: tuple[MediaRange, ...], parsed: OpenAIImageRequest | PredictRequest
) -> ImageFormat | None:
    """Return the format of the file that the client accepts in place of JSON; None for JSON.

    Raises `NotAcceptable` where the request is for something else than one image in this format.
    """
    kind = choose(accepted, _OFFERED)
    if kind is None or kind == JSON:
        return None
    if isinstance(parsed, PredictRequest):
        if kind != "image/png":
            raise NotAcceptable(f"This path generates PNG files, and Accept asks for {kind}.")
        return "png"
    reasons = {
        f"the request is for {parsed.n} images": (parsed.n or 1) > 1,
        "the request is for a stream": bool(parsed.stream),
        "the request is for a URL": parsed.response_format == "url",
        f"output_format is {parsed.output_format}": parsed.output_format not in (None, _FORMATS[kind]),
    }
    if reason := next((text for text, applies in reasons.items() if applies), None):
        raise NotAcceptable(f"Accept asks for one image as {kind}, but {reason}.")
    return _FORMATS[kind]


def image_file(image: TaskCompleted, inputs: ImageInputs, on_end: Callable[[], None]) -> FrameResponse:
    """The response with the file itself. Headers have what JSON would have beside it."""
    headers = {"x-muster-seed": str(inputs.seed)} | ({"x-muster-flagged": "true"} if image.flagged else {})
    if image.truncated_tokens:
        headers["x-muster-truncated-tokens"] = str(image.truncated_tokens)
    return FrameResponse([memoryview(image.image)], f"image/{inputs.output_format}", headers=headers, on_end=on_end)


def images_answer(
    spec: GenerationSpec, images: Sequence[TaskCompleted], created: float, urls: Sequence[str] | None = None
) -> ImagesAnswer:
    """The response of the Images API; `images`, and `urls` if they are answered, are in the order of the inputs."""
    data = [
        image_data(image.frames[0], image, inputs.seed, None if urls is None else urls[index])
        for index, (image, inputs) in enumerate(zip(images, spec.inputs, strict=True))
    ]
    first = spec.inputs[0]
    return ImagesAnswer(int(created), data, spec.model, first.shape.key, first.output_format)


def image_data(file: Frame, image: TaskCompleted | StoredImage, seed: int, url: str | None = None) -> ImageData:
    """The image file as base64, or as its URL, with what is known of the image."""
    timings = Timings(image.waited_s, image.ran_s)
    data = base64_json(file) if url is None else msgspec.UNSET
    return ImageData(data, seed, timings, image.flagged, url or msgspec.UNSET, image.truncated_tokens)
