"""`POST /v1/images/*` and `POST /predict`: validate, queue, await or stream, cancel on disconnect."""

from __future__ import annotations

import time
from functools import partial
from http import HTTPStatus

import msgspec
from fastapi import APIRouter, Request, Response

from loadbalancer.api.event_stream import EventStream
from loadbalancer.api.flow_control import FlowControlledResponse
from loadbalancer.api.http_helpers import encode_json, read_json, wait_first
from loadbalancer.api.image_responses import images_answer
from loadbalancer.api.openapi import content, event_stream, request_body, responses
from loadbalancer.api.proxying import form_factory, json_factory, try_upstream
from loadbalancer.api.request_builder import RequestBuilder
from loadbalancer.api.result_links import ResultLinks, base_url
from loadbalancer.api.uploads import read_form
from loadbalancer.generation.in_flight import InFlightRequest
from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.scheduling.task import TaskCompleted
from loadbalancer.schema.parsing import parse, parse_form
from loadbalancer.schema.requests import EditRequest, ImageRequest, JsonEditRequest, PredictRequest
from loadbalancer.schema.responses import PredictAnswer
from loadbalancer.services import Services

_ERRORS = (400, 404, 413, 422, 429, 500, 502, 503, 504)
_EVENTS = event_stream("Progress", "PartialImage", "CompletedImage", "ErrorEvent")
_EDIT_EVENTS = event_stream("EditProgress", "EditPartialImage", "EditCompletedImage", "ErrorEvent")


def router(services: Services, builder: RequestBuilder) -> APIRouter:
    routes = APIRouter(tags=["images"])
    server, models = services.settings.server, services.settings.models
    max_bytes, max_upload_bytes = server.max_body_bytes, server.max_upload_bytes

    @routes.post(
        "/v1/images/generations",
        summary="Generate images",
        openapi_extra=request_body("ImageRequest"),
        responses=responses("ImagesAnswer", *_ERRORS, **_EVENTS),
    )
    async def generate_images(request: Request) -> Response:
        """OpenAI's Images API with the parameters of diffusion models. With `stream`: server-sent events."""
        body = await read_json(request, max_upload_bytes)
        parsed = parse(ImageRequest, body, max_bytes)
        spec = await builder.build(parsed, request, parsed.image, parsed.mask)
        result: GenerationSpec | Response = spec
        if (proxy := models[spec.model].cold_start_proxy) is not None:
            result = await try_upstream(services, request, spec, proxy, json_factory(body), stream=bool(parsed.stream))
        del body  # it may be large, and the request may wait in the queue
        return await _respond(services, request, parsed, result)

    @routes.post(
        "/v1/images/edits",
        summary="Edit an image",
        openapi_extra=request_body("JsonEditRequest", **content("EditRequest", "multipart/form-data")),
        responses=responses("ImagesAnswer", *_ERRORS, **_EDIT_EVENTS),
    )
    async def edit_images(request: Request) -> Response:
        """Redraw an image, or its masked area: OpenAI's form with the parameters of diffusion models.

        Also as JSON, with data URLs in `images[].image_url` and `mask.image_url`.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
            return await edit_as_json(request)
        async with read_form(request, max_upload_bytes, max_bytes) as form:
            parsed = parse_form(EditRequest, form.texts)
            spec = await builder.build(parsed, request, form.file("image"), form.file("mask"))
            result: GenerationSpec | Response = spec
            if (proxy := models[spec.model].cold_start_proxy) is not None:
                factory = form_factory(form)
                result = await try_upstream(services, request, spec, proxy, factory, stream=bool(parsed.stream))
        return await _respond(services, request, parsed, result)

    async def edit_as_json(request: Request) -> Response:
        body = await read_json(request, max_upload_bytes)
        parsed = parse(JsonEditRequest, body, max_bytes)
        mask = None if parsed.mask is None else parsed.mask.image_url or ""
        spec = await builder.build(parsed, request, parsed.images[0].image_url or "", mask)
        result: GenerationSpec | Response = spec
        if (proxy := models[spec.model].cold_start_proxy) is not None:
            result = await try_upstream(services, request, spec, proxy, json_factory(body), stream=bool(parsed.stream))
        del body
        return await _respond(services, request, parsed, result)

    @routes.post(
        "/predict",
        summary="Generate one PNG",
        openapi_extra=request_body("PredictRequest"),
        responses=responses("PredictAnswer", *_ERRORS),
    )
    async def predict(request: Request) -> Response:
        """The minimal API: a prompt in, a base64 PNG out."""
        parsed = parse(PredictRequest, await read_json(request, max_bytes))
        in_flight = services.tracker.accept(await builder.build(parsed, request))
        if request.state.body is not None:
            request.state.body.release()
        (image,) = await _wait(in_flight, request)
        return _held_response(PredictAnswer(memoryview(image.image), image.flagged), in_flight)

    return routes


async def _respond(
    services: Services, request: Request, parsed: ImageRequest | EditRequest, result: GenerationSpec | Response
) -> Response:
    """Return the upstream's response, or queue the request and await or stream it."""
    if isinstance(result, Response):
        return result
    in_flight = services.tracker.accept(result)
    if request.state.body is not None:  # source images are decoded, and counted by the queue
        request.state.body.release()
    links = None
    if parsed.response_format == "url":
        links = ResultLinks(
            services.results, base_url(request, services.settings.server), result.inputs[0].output_format
        )
    if parsed.stream:
        add = None if links is None else partial(_add_result, links, result.owner)
        return EventStream(in_flight, edit=isinstance(parsed, EditRequest), add_result=add)
    images = await _wait(in_flight, request)
    try:
        urls = None if links is None else await links.add(result.owner, [bytes(image.image) for image in images])
        return _held_response(images_answer(result, images, time.time(), urls), in_flight)
    except BaseException:
        in_flight.close()
        raise


def _held_response(content: msgspec.Struct, in_flight: InFlightRequest) -> Response:
    """The content as JSON. The request is closed when the client has read it."""
    return FlowControlledResponse(encode_json(content), HTTPStatus.OK, "application/json", in_flight.close)


async def _add_result(links: ResultLinks, owner: str, image: TaskCompleted) -> str:
    (url,) = await links.add(owner, [bytes(image.image)])
    return url


async def _wait(in_flight: InFlightRequest, request: Request) -> list[TaskCompleted]:
    """The images in order. Raises the request's `ApiError`; the request is closed then."""
    try:
        await wait_first(request, in_flight.ended)
        if in_flight.failure is not None:
            raise in_flight.failure
        return [in_flight.images[task] for task in in_flight.tasks]
    except BaseException:
        in_flight.close()
        raise
