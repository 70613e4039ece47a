"""From what a client asked to a job for the queue, whatever way it came: bounds checked, pictures decoded."""

from __future__ import annotations

import secrets
from functools import partial

from loadbalancer.api.http_helpers import Services, model_capabilities
from loadbalancer.api.uploads import ImageDecoder, Reader
from loadbalancer.generation.source_images import decode_data_url
from loadbalancer.generation.validation import (
    GenerationSpec,
    requested_size,
    resolve_images,
    resolve_model,
    resolve_predict,
    with_source_images,
)
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.requests import EditRequest, ImageRequest, PredictRequest


class RequestBuilder:
    """Makes jobs of requests, for the routes that answer them and for those that put them off."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._decoder = ImageDecoder()

    async def job(self, asked: ImageRequest | EditRequest, image: Reader | None, mask: Reader | None) -> GenerationSpec:
        """The request with nothing left open; its pictures are decoded last, when all else is right."""
        settings = self._services.settings
        model = resolve_model(asked.model, settings)
        facts = await model_capabilities(self._services, model, loras=bool(asked.loras))
        job = resolve_images(asked, settings, secrets.randbits(32), facts)
        if image is None:
            if asked.has_source_image:
                text = "Missing required parameter: 'image'."
                raise InvalidRequest(text, param="image", code="missing_required_parameter")
            return job
        sources = await self._decoder.decode(
            image,
            mask,
            settings.models[model].limits,
            size=requested_size(asked, job),
            alpha_marks=isinstance(asked, EditRequest),
        )
        return with_source_images(job, sources, asked, settings, facts)

    async def build_predict(self, asked: PredictRequest) -> GenerationSpec:
        """The job of the simple form."""
        settings = self._services.settings
        facts = await model_capabilities(self._services, resolve_model(asked.model, settings), loras=bool(asked.loras))
        return resolve_predict(asked, settings, secrets.randbits(32), facts)


def data_url_reader(param: str, url: str | None) -> Reader | None:
    """Gives the file in the data URL, if there is one."""
    return None if url is None else partial(decode_data_url, param, url)
