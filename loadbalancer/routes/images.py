"""`POST /v1/images/*` and `POST /predict`: validate, queue, await or stream, cancel on disconnect."""

from __future__ import annotations

import secrets
import time
from functools import partial

from fastapi import APIRouter, Request, Response

from loadbalancer.admission import Job, admit_images, admit_predict, asked_size, served, with_sources
from loadbalancer.answers import ImageData, ImagesAnswer, PredictAnswer, Timings
from loadbalancer.errands import Errand
from loadbalancer.errors import InvalidRequest
from loadbalancer.routes.common import Services, answer, answers, body_of, first_of, known, read_body
from loadbalancer.routes.stream import EventStream
from loadbalancer.routes.uploads import Darkroom, Reader, read_form
from loadbalancer.schemas import EditRequest, ImageRequest, PredictRequest, parse, parse_form, parse_pictured
from loadbalancer.sources import from_data_url
from loadbalancer.task import Completed

_ERRORS = (400, 404, 413, 429, 500, 503, 504)
_EVENTS = {"schema": {"type": "string", "description": "Events: Progress, PartialImage, CompletedImage, ErrorEvent."}}
_EDIT_EVENTS = {
    "schema": {
        "type": "string",
        "description": "Events: EditProgress, EditPartialImage, EditCompletedImage, ErrorEvent.",
    }
}


def router(services: Services) -> APIRouter:
    """The routes that make images."""
    routes = APIRouter(tags=["images"])
    settings, desk, drawing = services.settings, services.desk, _Drawing(services)
    most, most_upload = settings.server.max_body_bytes, settings.server.max_upload_bytes

    @routes.post(
        "/v1/images/generations",
        summary="Generate images",
        openapi_extra=body_of("ImageRequest"),
        responses=answers("ImagesAnswer", *_ERRORS, **{"text/event-stream": _EVENTS}),
    )
    async def generate_images(request: Request) -> Response:
        """OpenAI's Images API, with the parameters of diffusion models added. With `stream`, server-sent events."""
        asked = parse_pictured(ImageRequest, await read_body(request, most_upload), most)
        image, mask = _from_url("image", asked.image), _from_url("mask", asked.mask)
        return await drawing.answer(request, asked, await drawing.job(asked, image, mask))

    @routes.post(
        "/v1/images/edits",
        summary="Draw from a picture",
        openapi_extra=body_of("EditRequest", "multipart/form-data"),
        responses=answers("ImagesAnswer", *_ERRORS, **{"text/event-stream": _EDIT_EVENTS}),
    )
    async def edit_images(request: Request) -> Response:
        """Draw a picture anew, or what a mask marks of it: OpenAI's form, with the parameters of diffusion models."""
        async with read_form(request, most_upload, most) as form:
            asked = parse_form(EditRequest, form.texts)
            job = await drawing.job(asked, form.file("image"), form.file("mask"))
        return await drawing.answer(request, asked, job)

    @routes.post(
        "/predict",
        summary="Generate one PNG",
        openapi_extra=body_of("PredictRequest"),
        responses=answers("PredictAnswer", *_ERRORS),
    )
    async def predict(request: Request) -> Response:
        """The simple form: a prompt in, a base64 PNG out."""
        asked = parse(PredictRequest, await read_body(request, most))
        facts = await known(services, served(asked.model, settings), loras=bool(asked.loras))
        errand = desk.accept(admit_predict(asked, settings, secrets.randbits(32), facts))
        (image,) = await _await(errand, request)
        return answer(PredictAnswer(memoryview(image.image), image.flagged))

    return routes


class _Drawing:
    """What generating and editing share."""

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

    async def answer(self, request: Request, asked: ImageRequest | EditRequest, job: Job) -> Response:
        """Queue it; await it or stream it."""
        errand = self._services.desk.accept(job)
        if asked.stream:
            return EventStream(errand, self._services.hub, edit=isinstance(asked, EditRequest))
        return answer(_images(errand.job, await _await(errand, request)))


def _from_url(param: str, url: str | None) -> Reader | None:
    return None if url is None else partial(from_data_url, param, url)


async def _await(errand: Errand, request: Request) -> list[Completed]:
    """The images in order. Raises the `ApiError` that there is instead."""
    try:
        await first_of(request, errand.over)
        return errand.results()
    finally:
        errand.close()


def _images(job: Job, images: list[Completed]) -> ImagesAnswer:
    data = [
        ImageData(memoryview(image.image), inputs.seed, Timings(image.waited_s, image.ran_s), image.flagged)
        for image, inputs in zip(images, job.inputs, strict=True)
    ]
    return ImagesAnswer(int(time.time()), data, job.model, job.size, job.output_format)
