"""From what a client asked to a job for the queue, whatever way it came: bounds checked, pictures decoded."""

from __future__ import annotations

import secrets
from functools import partial

from loadbalancer.api.http_helpers import Services, known
from loadbalancer.api.uploads import Darkroom, Reader
from loadbalancer.generation.source_images import from_data_url
from loadbalancer.generation.validation import Job, admit_images, admit_predict, asked_size, served, with_sources
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.requests import EditRequest, ImageRequest, PredictRequest


class Studio:
    """Makes jobs of requests, for the routes that answer them and for those that put them off."""

    def __init__(self, services: Services) -> None:
        self._services = services
        self._darkroom = Darkroom()

    async def job(self, asked: ImageRequest | EditRequest, image: Reader | None, mask: Reader | None) -> Job:
        """The request with nothing left open; its pictures are decoded last, when all else is right."""
        settings = self._services.settings
        model = served(asked.model, settings)
        facts = await known(self._services, model, loras=bool(asked.loras))
        job = admit_images(asked, settings, secrets.randbits(32), facts)
        if image is None:
            if asked.pictured:
                text = "Missing required parameter: 'image'."
                raise InvalidRequest(text, param="image", code="missing_required_parameter")
            return job
        sources = await self._darkroom.develop(
            image,
            mask,
            settings.models[model].limits,
            size=asked_size(asked, job),
            alpha_marks=isinstance(asked, EditRequest),
        )
        return with_sources(job, sources, asked, settings, facts)

    async def simple(self, asked: PredictRequest) -> Job:
        """The job of the simple form."""
        settings = self._services.settings
        facts = await known(self._services, served(asked.model, settings), loras=bool(asked.loras))
        return admit_predict(asked, settings, secrets.randbits(32), facts)


def from_url(param: str, url: str | None) -> Reader | None:
    """Gives the file in the data URL, if there is one."""
    return None if url is None else partial(from_data_url, param, url)
