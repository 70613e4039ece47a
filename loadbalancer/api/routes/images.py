"""`POST /v1/images/*` and `POST /predict`: validate, queue, await or stream, cancel on disconnect."""

from __future__ import annotations

import time
from functools import partial

from fastapi import APIRouter, Request, Response

from configs.model_settings import PREDICT_PATH
from loadbalancer.api.event_stream import EventStream
from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.hot_routes import HotRequest, HotRoutes, hot_request
from loadbalancer.api.http_helpers import JSON, encode_json, read_json, run_while_connected
from loadbalancer.api.image_requests import RequestBuilder, image_file, images_answer, requested_format
from loadbalancer.api.openapi import content, event_stream, request_body, responses
from loadbalancer.api.proxying import BodyFactory, form_content, json_content, try_upstream
from loadbalancer.api.result_links import ResultLinks, base_url
from loadbalancer.api.uploads import Form, read_form
from loadbalancer.generation.in_flight import InFlightRequest
from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.scheduling.task import TaskCompleted
from loadbalancer.schema.parsing import parse, parse_form
from loadbalancer.schema.requests import EditRequest, ImageRequest, JsonEditRequest, PredictRequest
from loadbalancer.schema.responses import PredictAnswer, base64_json
from loadbalancer.services import Services
from wire.inputs import ImageFormat

_ERRORS = (400, 404, 406, 413, 422, 429, 500, 502, 503, 504)
_FILES = {f"image/{kind}": {"schema": {"type": "string", "format": "binary"}} for kind in ("png", "jpeg", "webp")}
_PNG = {"image/png": _FILES["image/png"]}
_EVENTS = event_stream("Progress", "PartialImage", "CompletedImage", "ErrorEvent")
_EDIT_EVENTS = event_stream("EditProgress", "EditPartialImage", "EditCompletedImage", "ErrorEvent")


def router(services: Services, builder: RequestBuilder, hot: HotRoutes) -> APIRouter:
    routes = APIRouter(tags=["images"])
    server = services.settings.server
    max_bytes, max_upload_bytes = server.max_body_bytes, server.max_upload_bytes

    @routes.post(
        "/v1/images/generations",
        summary="Generate images",
        openapi_extra=request_body("ImageRequest"),
        responses=responses("ImagesAnswer", *_ERRORS, **_EVENTS, **_FILES),
    )
    @hot.endpoint(max_bytes=max_upload_bytes)
    async def generate_images(request: HotRequest) -> Response:
        """OpenAI's Images API with the parameters of diffusion models. With `stream`: server-sent events.

        With `Accept: image/png`, `image/jpeg` or `image/webp`: the file of the only image.
        """
        parsed = parse(ImageRequest, request.json(), max_bytes)
        file_format = requested_format(request.head.accepted, parsed)
        spec = await builder.build(parsed, request.caller, parsed.image, parsed.mask, file_format)
        return await _answer(services, request, parsed, spec, partial(json_content, request), file_format)

    @routes.post(
        "/v1/images/edits",
        summary="Edit an image",
        openapi_extra=request_body("JsonEditRequest", **content("EditRequest", "multipart/form-data")),
        responses=responses("ImagesAnswer", *_ERRORS, **_EDIT_EVENTS, **_FILES),
    )
    async def edit_images(request: Request) -> Response:
        """Redraw an image, or its masked area: OpenAI's form with the parameters of diffusion models.

        Also as JSON, with data URLs in `images[].image_url` and `mask.image_url`.
        """
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() == "application/json":
            body = await read_json(request, max_upload_bytes)
            return await run_while_connected(request, edit_as_json(hot_request(request, body)))
        async with read_form(request, max_upload_bytes, max_bytes, services.metrics.refusals) as form:
            return await run_while_connected(request, edit_as_form(hot_request(request, b""), form))

    async def edit_as_json(request: HotRequest) -> Response:
        parsed = parse(JsonEditRequest, request.json(), max_bytes)
        file_format = requested_format(request.head.accepted, parsed)
        mask = None if parsed.mask is None else parsed.mask.image_url or ""
        spec = await builder.build(parsed, request.caller, parsed.images[0].image_url or "", mask, file_format)
        return await _answer(services, request, parsed, spec, partial(json_content, request), file_format)

    async def edit_as_form(request: HotRequest, form: Form) -> Response:
        parsed = parse_form(EditRequest, form.texts)
        file_format = requested_format(request.head.accepted, parsed)
        spec = await builder.build(parsed, request.caller, form.file("image"), form.file("mask"), file_format)
        return await _answer(services, request, parsed, spec, partial(form_content, form), file_format)

    if any(model.task == "image" for model in services.settings.models.values()):  # else it is free for an `api_path`
        _add_minimal_api(routes, services, builder, hot)
    return routes


def _add_minimal_api(routes: APIRouter, services: Services, builder: RequestBuilder, hot: HotRoutes) -> None:
    max_bytes = services.settings.server.max_body_bytes

    @routes.post(
        PREDICT_PATH,
        summary="Generate one PNG",
        openapi_extra=request_body("PredictRequest"),
        responses=responses("PredictAnswer", *_ERRORS, **_PNG),
    )
    @hot.endpoint(max_bytes=max_bytes)
    async def predict(request: HotRequest) -> Response:
        """The minimal API: a prompt in, a base64 PNG out. With `Accept: image/png`: the file."""
        parsed = parse(PredictRequest, request.json(), max_bytes)
        wants_file = requested_format(request.head.accepted, parsed) is not None
        spec = await builder.build(parsed, request.caller)
        in_flight = services.tracker.accept(InFlightRequest, spec)
        request.release_body()
        (image,) = await in_flight.results()
        if wants_file:
            return image_file(image, spec.inputs[0], in_flight.close)
        answer = PredictAnswer(base64_json(image.image), image.flagged, image.truncated_tokens)
        return FrameResponse([encode_json(answer)], JSON, on_end=in_flight.close)


async def _answer(
    services: Services,
    request: HotRequest,
    parsed: ImageRequest | EditRequest,
    spec: GenerationSpec,
    build: BodyFactory,
    file_format: ImageFormat | None,
) -> Response:
    """Return the upstream's response, or queue the request and await or stream it.

    `build` makes the body for the upstream server. With a `file_format`, the client gets the file in place of JSON.
    """
    proxy = services.settings.models[spec.model].cold_start_proxy
    if proxy is not None and file_format is None:  # the other server answers JSON
        result = await try_upstream(services, request, spec, proxy, build, stream=bool(parsed.stream))
        if isinstance(result, Response):
            return result
        spec = result
    in_flight = services.tracker.accept(InFlightRequest, spec)
    request.release_body()  # source images are decoded, and counted by the queue
    try:
        links = None
        if parsed.response_format == "url":
            connection, host = request.connection, request.head.host or ""
            base = base_url(host, connection.scheme, connection.server, services.settings.server)
            links = ResultLinks(services.results, base, spec.inputs[0].output_format)
        if parsed.stream:
            add = None if links is None else partial(_add_result, links, spec.owner)
            return EventStream(in_flight, edit=isinstance(parsed, EditRequest), add_result=add)
        images = await in_flight.results()
        if file_format is not None:
            return image_file(images[0], spec.inputs[0], in_flight.close)
        urls = None if links is None else await links.add(spec.owner, [bytes(image.image) for image in images])
        content = encode_json(images_answer(spec, images, time.time(), urls))
        return FrameResponse([content], JSON, on_end=in_flight.close)  # until then its images count as held
    except BaseException:
        in_flight.close()
        raise


async def _add_result(links: ResultLinks, owner: str, image: TaskCompleted) -> str:
    (url,) = await links.add(owner, [bytes(image.image)])
    return url
