"""`POST /v1/images/generations` and `POST /predict`: validate, queue, await or stream, cancel on disconnect."""

from __future__ import annotations

import secrets
import time

from fastapi import APIRouter, Request, Response

from loadbalancer.admission import Job, admit_images, admit_predict
from loadbalancer.errands import Errand
from loadbalancer.routes.common import Services, answer, answers, first_of, json_content, read_body
from loadbalancer.routes.stream import EventStream
from loadbalancer.schemas import (
    ImageData,
    ImageRequest,
    ImagesAnswer,
    PredictAnswer,
    PredictRequest,
    Timings,
    parse,
)
from loadbalancer.task import Completed

_ERRORS = (400, 404, 413, 429, 500, 503, 504)
_EVENTS = {"schema": {"type": "string", "description": "Events: Progress, PartialImage, CompletedImage, ErrorEvent."}}


def router(services: Services) -> APIRouter:
    """The routes that make images."""
    routes = APIRouter(tags=["images"])
    settings, desk = services.settings, services.desk
    most = settings.server.max_body_bytes

    @routes.post(
        "/v1/images/generations",
        summary="Generate images",
        openapi_extra={"requestBody": {"required": True, "content": json_content("ImageRequest")}},
        responses=answers("ImagesAnswer", *_ERRORS, **{"text/event-stream": _EVENTS}),
    )
    async def generate_images(request: Request) -> Response:
        """OpenAI's Images API, with the parameters of diffusion models added. With `stream`, server-sent events."""
        asked = parse(ImageRequest, await read_body(request, most))
        errand = desk.accept(admit_images(asked, settings, secrets.randbits(32)))
        if asked.stream:
            return EventStream(errand, services.hub)
        return answer(_images(errand.job, await _await(errand, request)))

    @routes.post(
        "/predict",
        summary="Generate one PNG",
        openapi_extra={"requestBody": {"required": True, "content": json_content("PredictRequest")}},
        responses=answers("PredictAnswer", *_ERRORS),
    )
    async def predict(request: Request) -> Response:
        """The simple form: a prompt in, a base64 PNG out."""
        asked = parse(PredictRequest, await read_body(request, most))
        errand = desk.accept(admit_predict(asked, settings, secrets.randbits(32)))
        (image,) = await _await(errand, request)
        return answer(PredictAnswer(memoryview(image.image)))

    return routes


async def _await(errand: Errand, request: Request) -> list[Completed]:
    """The images in order. Raises the `ApiError` that there is instead."""
    try:
        await first_of(request, errand.over)
        return errand.results()
    finally:
        errand.close()


def _images(job: Job, images: list[Completed]) -> ImagesAnswer:
    data = [
        ImageData(memoryview(image.image), inputs.seed, Timings(image.waited_s, image.ran_s))
        for image, inputs in zip(images, job.inputs, strict=True)
    ]
    return ImagesAnswer(int(time.time()), data, job.model, job.size, job.output_format)
