"""Image requests: their specifications, with decoded source images, and their responses."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec

from configs.model_settings import Model
from configs.sections import Server
from loadbalancer.access.api_keys import Caller
from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.uploads import FileReader
from loadbalancer.generation.data_urls import decode_data_url
from loadbalancer.generation.decoding.messages import DecodeRequest, ImageLimits, Size
from loadbalancer.generation.validation import (
    GenerationSpec,
    ImageModel,
    image_model,
    requested_size,
    resolve_images,
    resolve_model,
    resolve_request,
    with_source_images,
)
from loadbalancer.scheduling.task import TaskCompleted
from loadbalancer.schema.errors import InvalidRequest, NotAcceptable
from loadbalancer.schema.media_types import JSON, MediaRange, choose
from loadbalancer.schema.requests import EditRequest, ImageRequest, OpenAIImageRequest, PredictRequest
from loadbalancer.schema.responses import ImageData, ImagesAnswer, Timings, base64_json
from loadbalancer.services import Services
from loadbalancer.storage.records import StoredImage
from wire.codec import Frame
from wire.inputs import LORA_NAME, ImageFormat, ImageInputs

#: The types of images, the default first.
_FORMATS: dict[str, ImageFormat] = {"image/png": "png", "image/jpeg": "jpeg", "image/webp": "webp"}
_OFFERED = (JSON, *_FORMATS)


class RequestBuilder:
    """Builds specifications: checks bounds and decodes source images. Shared by the routes of requests and of jobs."""

    def __init__(self, services: Services) -> None:
        self._settings = services.settings
        self._scheduler = services.scheduler
        self._decoders = services.decoders
        #: By name, with the engine of the latest request.
        self._models: dict[str, ImageModel] = {}
        services.metrics.in_flight.add(lambda: {"decodes": len(services.decoders)})

    async def build(
        self,
        request: ImageRequest | EditRequest | PredictRequest,
        caller: Caller,
        image: FileReader | str | None = None,
        mask: FileReader | str | None = None,
        file_format: ImageFormat | None = None,
    ) -> GenerationSpec:
        """The complete specification. Source images are decoded last, after every other check.

        `image` and `mask` are data URLs, or read files of a form. The time that this takes counts as time of the
        request. `file_format`, in place of the request's `output_format`: what the header Accept asks for. Raises
        `ApiError`.
        """
        settings, seed = self._settings, secrets.randbits(32)
        started = time.monotonic()
        name = request.model if request.model in self._models else resolve_model(request.model, settings)
        model, engine = self._models.get(name), self._scheduler.pools[name].engine_info
        if model is None or model.engine is not engine:
            model = self._models[name] = image_model(name, settings.models[name], engine)
        if request.loras and model.settings.loras:
            model = model._replace(loras=await asyncio.to_thread(list_loras, model.settings.loras))
        if isinstance(request, PredictRequest):
            return resolve_request(request, model, settings.server, seed, caller)
        spec = resolve_images(request, model, settings.server, seed, caller, file_format)
        if image is None:
            if isinstance(request, EditRequest):
                text = "Missing required parameter: 'image'."
                raise InvalidRequest(text, param="image", code="missing_required_parameter")
            return spec
        read = partial(
            _decode_request,
            _reader("image", image),
            None if mask is None else _reader("mask", mask),
            model.settings,
            settings.server,
            size=requested_size(request, spec),
            use_alpha_as_mask=isinstance(request, EditRequest),
        )
        images = await self._decoders.decode(read, spec.owner, spec.timeout_s)
        remaining_s = max(spec.timeout_s - (time.monotonic() - started), 0.001)
        return with_source_images(replace(spec, timeout_s=remaining_s), images, request, model)


def _decode_request(
    image: FileReader,
    mask: FileReader | None,
    model: Model,
    server: Server,
    *,
    size: Size | None,
    use_alpha_as_mask: bool,
) -> DecodeRequest:
    limits = model.limits
    image_limits = ImageLimits(
        max_source_pixels=limits.max_source_pixels,
        max_source_side=limits.max_source_side,
        max_metadata_bytes=server.max_metadata_bytes,
        max_pixels=limits.max_pixels,
        min_side=limits.min_side,
    )
    return DecodeRequest(
        image(), mask() if mask else None, image_limits, size, use_alpha_as_mask, server.decode_timeout_s
    )


def _reader(param: str, file: FileReader | str) -> FileReader:
    return partial(decode_data_url, param, file) if isinstance(file, str) else file


def list_loras(folder: Path) -> list[str]:
    """Sorted names of the LoRA adapters in the folder; an unreadable folder has none."""
    try:
        files = [path.stem for path in folder.iterdir() if path.suffix == ".safetensors" and path.is_file()]
    except OSError:
        return []
    return sorted(name for name in files if LORA_NAME.fullmatch(name))


# ---- responses


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
