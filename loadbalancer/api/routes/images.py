"""`POST /v1/images/*` and `POST /predict`: validate, queue, await or stream, cancel on disconnect."""

from __future__ import annotations

import time
from collections.abc import Sequence

from fastapi import APIRouter, Request, Response

from loadbalancer.api.event_stream import EventStream
from loadbalancer.api.http_helpers import (
    Services,
    event_stream_schema,
    json_response,
    read_body,
    request_body,
    responses,
    wait_first,
    with_owner,
)
from loadbalancer.api.proxying import as_form, as_json, try_upstream
from loadbalancer.api.request_builder import RequestBuilder, data_url_reader
from loadbalancer.api.uploads import read_form
from loadbalancer.generation.in_flight import InFlightRequest
from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.scheduling.task import TaskCompleted
from loadbalancer.schema.requests import EditRequest, ImageRequest, PredictRequest, parse, parse_form, parse_with_images
from loadbalancer.schema.responses import ImageData, ImagesAnswer, PredictAnswer, Timings
from loadbalancer.storage.records import StoredImage

_ERRORS = (400, 404, 413, 422, 429, 500, 502, 503, 504)
_EVENTS = event_stream_schema("Progress", "PartialImage", "CompletedImage", "ErrorEvent")
_EDIT_EVENTS = event_stream_schema("EditProgress", "EditPartialImage", "EditCompletedImage", "ErrorEvent")


def router(services: Services, builder: RequestBuilder) -> APIRouter:
    """The routes that make images."""
    routes = APIRouter(tags=["images"])
    most, most_upload = services.settings.server.max_body_bytes, services.settings.server.max_upload_bytes

    @routes.post(
        "/v1/images/generations",
        summary="Generate images",
        openapi_extra=request_body("ImageRequest"),
        responses=responses("ImagesAnswer", *_ERRORS, **_EVENTS),
    )
    async def generate_images(request: Request) -> Response:
        """OpenAI's Images API, with the parameters of diffusion models added. With `stream`, server-sent events."""
        body = await read_body(request, most_upload)
        asked = parse_with_images(ImageRequest, body, most)
        image, mask = data_url_reader("image", asked.image), data_url_reader("mask", asked.mask)
        job = with_owner(await builder.job(asked, image, mask), request)
        answered = await try_upstream(services, request, job, as_json(body), stream=bool(asked.stream))
        del body  # it may be large, and the image may have to wait
        return await _answer(services, request, asked, answered)

    @routes.post(
        "/v1/images/edits",
        summary="Draw from a picture",
        openapi_extra=request_body("EditRequest", "multipart/form-data"),
        responses=responses("ImagesAnswer", *_ERRORS, **_EDIT_EVENTS),
    )
    async def edit_images(request: Request) -> Response:
        """Draw a picture anew, or what a mask marks of it: OpenAI's form, with the parameters of diffusion models."""
        async with read_form(request, most_upload, most) as form:
            asked = parse_form(EditRequest, form.texts)
            job = with_owner(await builder.job(asked, form.file("image"), form.file("mask")), request)
            answered = await try_upstream(services, request, job, as_form(form), stream=bool(asked.stream))
        return await _answer(services, request, asked, answered)

    @routes.post(
        "/predict",
        summary="Generate one PNG",
        openapi_extra=request_body("PredictRequest"),
        responses=responses("PredictAnswer", *_ERRORS),
    )
    async def predict(request: Request) -> Response:
        """The simple form: a prompt in, a base64 PNG out."""
        asked = parse(PredictRequest, await read_body(request, most))
        in_flight = services.tracker.accept(with_owner(await builder.build_predict(asked), request))
        (image,) = await _await(in_flight, request)
        return json_response(PredictAnswer(memoryview(image.image), image.flagged))

    return routes


async def _answer(
    services: Services, request: Request, asked: ImageRequest | EditRequest, answered: GenerationSpec | Response
) -> Response:
    """Queue it; await it or stream it. What another server has answered stands."""
    if isinstance(answered, Response):
        return answered
    in_flight = services.tracker.accept(answered)
    if asked.stream:
        return EventStream(in_flight, edit=isinstance(asked, EditRequest))
    return json_response(images_answer(in_flight.job, await _await(in_flight, request), time.time()))


async def _await(in_flight: InFlightRequest, request: Request) -> list[TaskCompleted]:
    """The images in order. Raises the `ApiError` that there is instead."""
    try:
        await wait_first(request, in_flight.over)
        return in_flight.results()
    finally:
        in_flight.close()


def images_answer(job: GenerationSpec, images: Sequence[TaskCompleted | StoredImage], created: float) -> ImagesAnswer:
    """The answer of the Images API; the images are in order."""
    data = [
        ImageData(memoryview(image.image), inputs.seed, Timings(image.waited_s, image.ran_s), image.flagged)
        for image, inputs in zip(images, job.inputs, strict=True)
    ]
    return ImagesAnswer(int(created), data, job.model, job.size, job.output_format)
