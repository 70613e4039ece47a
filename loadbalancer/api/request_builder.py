"""Builds the specification of an image request: checks its bounds and decodes its source images."""

from __future__ import annotations

import asyncio
import secrets
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

from configs.model_settings import Model
from configs.sections import Server
from loadbalancer.access.api_keys import Caller
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
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.requests import EditRequest, ImageRequest, PredictRequest
from loadbalancer.services import Services
from wire.inputs import LORA_NAME, ImageFormat


class RequestBuilder:
    """Shared by the routes that answer at once and by those that create jobs."""

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
