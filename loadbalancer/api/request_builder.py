"""Builds the specification of an image request: checks its bounds and decodes its source images."""

from __future__ import annotations

import asyncio
import secrets
from functools import partial
from pathlib import Path

from loadbalancer.access.api_keys import Caller
from loadbalancer.api.uploads import FileReader, ImageDecoder
from loadbalancer.generation.source_images import decode_data_url
from loadbalancer.generation.validation import (
    GenerationSpec,
    ModelCapabilities,
    requested_size,
    resolve_images,
    resolve_model,
    resolve_request,
    with_source_images,
)
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.requests import EditRequest, ImageRequest, PredictRequest
from loadbalancer.services import Services
from wire.messages import LORA_NAME


class RequestBuilder:
    """Shared by the routes that answer at once and by those that create jobs."""

    def __init__(self, services: Services) -> None:
        self._settings = services.settings
        self._scheduler = services.scheduler
        self._decoder = ImageDecoder()

    async def build(
        self,
        request: ImageRequest | EditRequest | PredictRequest,
        caller: Caller,
        image: FileReader | str | None = None,
        mask: FileReader | str | None = None,
    ) -> GenerationSpec:
        """The complete specification. Source images are decoded last, after every other check.

        `image` and `mask` are data URLs, or read files of a form.
        """
        settings, seed = self._settings, secrets.randbits(32)
        name = resolve_model(request.model, settings)
        folder = settings.models[name].loras if request.loras else None
        loras = await asyncio.to_thread(list_loras, folder) if folder else ()
        capabilities = ModelCapabilities(self._scheduler.engine_info(name), loras)
        if isinstance(request, PredictRequest):
            return resolve_request(request, settings, seed, capabilities, caller)
        spec = resolve_images(request, settings, seed, capabilities, caller)
        if image is None:
            if isinstance(request, EditRequest):
                text = "Missing required parameter: 'image'."
                raise InvalidRequest(text, param="image", code="missing_required_parameter")
            return spec
        images = await self._decoder.decode(
            _reader("image", image),
            None if mask is None else _reader("mask", mask),
            settings.models[name].limits,
            size=requested_size(request, spec),
            use_alpha_as_mask=isinstance(request, EditRequest),
        )
        return with_source_images(spec, images, request, settings, capabilities)


def _reader(param: str, file: FileReader | str) -> FileReader:
    return partial(decode_data_url, param, file) if isinstance(file, str) else file


def list_loras(folder: Path) -> list[str]:
    """Sorted names of the LoRA adapters in the folder; an unreadable folder has none."""
    try:
        files = [path.stem for path in folder.iterdir() if path.suffix == ".safetensors" and path.is_file()]
    except OSError:
        return []
    return sorted(name for name in files if LORA_NAME.fullmatch(name))
