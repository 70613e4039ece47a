"""`POST /v1/images/*` and `POST /predict`: validate, queue, await or stream, cancel on disconnect."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from loadbalancer.api.event_stream import EventStream
from loadbalancer.api.http_helpers import Services, answer, answers, body_of, events_of, first_of, owned, read_body
from loadbalancer.api.proxying import as_form, as_json, instead
from loadbalancer.api.request_builder import Studio, from_url
from loadbalancer.api.uploads import read_form
from loadbalancer.generation.in_flight import InFlightRequest
from loadbalancer.generation.validation import Job
from loadbalancer.scheduling.task import TaskCompleted
from loadbalancer.schema.requests import EditRequest, ImageRequest, PredictRequest, parse, parse_form, parse_pictured
from loadbalancer.schema.responses import ImageData, ImagesAnswer, PredictAnswer, Timings
from loadbalancer.storage.records import StoredImage

_ERRORS = (400, 404, 413, 422, 429, 500, 502, 503, 504)
_EVENTS = events_of("Progress", "PartialImage", "CompletedImage", "ErrorEvent")
_EDIT_EVENTS = events_of("EditProgress", "EditPartialImage", "EditCompletedImage", "ErrorEvent")


def router(services: Services, studio: Studio) -> APIRouter:
    """The routes that make images."""
    routes = APIRouter(tags=["images"])
    most, most_upload = services.settings.server.max_body_bytes, services.settings.server.max_upload_bytes

    @routes.post(
        "/v1/images/generations",
        summary="Generate images",
        openapi_extra=body_of("ImageRequest"),
        responses=answers("ImagesAnswer", *_ERRORS, **_EVENTS),
    )
    async def generate_images(request: Request) -> Response:
        """OpenAI's Images API, with the parameters of diffusion models added. With `stream`, server-sent events."""
        body = await read_body(request, most_upload)
        asked = parse_pictured(ImageRequest, body, most)
        image, mask = from_url("image", asked.image), from_url("mask", asked.mask)
        job = owned(await studio.job(asked, image, mask), request)
        answered = await instead(services, request, job, as_json(body), stream=bool(asked.stream))
        del body  # it may be large, and the image may have to wait
        return await _answer(services, request, asked, answered)

    @routes.post(
        "/v1/images/edits",
        summary="Draw from a picture",
        openapi_extra=body_of("EditRequest", "multipart/form-data"),
        responses=answers("ImagesAnswer", *_ERRORS, **_EDIT_EVENTS),
    )
    async def edit_images(request: Request) -> Response:
        """Draw a picture anew, or what a mask marks of it: OpenAI's form, with the parameters of diffusion models."""
        async with read_form(request, most_upload, most) as form:
            asked = parse_form(EditRequest, form.texts)
            job = owned(await studio.job(asked, form.file("image"), form.file("mask")), request)
            answered = await instead(services, request, job, as_form(form), stream=bool(asked.stream))
        return await _answer(services, request, asked, answered)

    @routes.post(
        "/predict",
        summary="Generate one PNG",
        openapi_extra=body_of("PredictRequest"),
        responses=answers("PredictAnswer", *_ERRORS),
    )
    async def predict(request: Request) -> Response:
        """The simple form: a prompt in, a base64 PNG out."""
        asked = parse(PredictRequest, await read_body(request, most))
        errand = services.tracker.accept(owned(await studio.simple(asked), request))
        (image,) = await _await(errand, request)
        return answer(PredictAnswer(memoryview(image.image), image.flagged))

    return routes


async def _answer(
    services: Services, request: Request, asked: ImageRequest | EditRequest, answered: Job | Response
) -> Response:
    """Queue it; await it or stream it. What another server has answered stands."""
    if isinstance(answered, Response):
        return answered
    errand = services.tracker.accept(answered)
    if asked.stream:
        return EventStream(errand, edit=isinstance(asked, EditRequest))
    return answer(images_answer(errand.job, await _await(errand, request), time.time()))


async def _await(errand: InFlightRequest, request: Request) -> list[TaskCompleted]:
    """The images in order. Raises the `ApiError` that there is instead."""
    try:
        await first_of(request, errand.over)
        return errand.results()
    finally:
        errand.close()


def images_answer(job: Job, images: Sequence[TaskCompleted | StoredImage], created: float) -> ImagesAnswer:
    """The answer of the Images API; the images are in order."""
    data = [
        ImageData(memoryview(image.image), inputs.seed, Timings(image.waited_s, image.ran_s), image.flagged)
        for image, inputs in zip(images, job.inputs, strict=True)
    ]
    return ImagesAnswer(int(created), data, job.model, job.size, job.output_format)
