"""Answers `/v2/models/{model}/infer` of the Open Inference Protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from fastapi import Response

from loadbalancer.api.call_json import INLINE_BYTES
from loadbalancer.api.calls import Answer
from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.hot_routes import HotRequest
from loadbalancer.generation.call_spec import CallSpec
from loadbalancer.generation.call_validation import call_model, call_timeout_s
from loadbalancer.generation.in_flight_call import AwaitedCalls
from loadbalancer.schema.call_results import CallResult, InvalidResult
from loadbalancer.schema.errors import BodyTooLarge, InvalidRequest, TaskFailed
from loadbalancer.schema.inference import InferenceCall, inference_response, parse_inference
from loadbalancer.schema.media_types import BYTES, JSON
from loadbalancer.schema.parsing import shorten
from loadbalancer.services import Services
from wire.inputs import CallInputs

#: Header of requests and responses: bytes of JSON before those of the binary tensors.
HEADER_LENGTH = b"inference-header-content-length"


class InferenceApi:
    """One infer request is one call; its tensors are the parts."""

    def __init__(self, services: Services) -> None:
        self._settings = services.settings
        self._tracker = services.tracker

    def infer(self, request: HotRequest) -> Answer:
        """Answer the request. Raises `ApiError`."""
        model, server = call_model(request.params["model"], self._settings), self._settings.server
        body = request.json()
        size = _header_size(request, body)
        if size > server.max_body_bytes:
            raise BodyTooLarge(server.max_body_bytes, "beside its binary tensors")
        call = parse_inference(body[:size], memoryview(body)[size:])
        spec = CallSpec(
            model,
            [CallInputs(call.parts)],
            [call.frames],
            call_timeout_s(call.timeout_s, server),
            owner=request.caller.owner,
            weight=request.caller.weight,
        )
        in_flight = self._tracker.accept(AwaitedCalls, spec, partial(_respond, call))
        request.release_body()
        return in_flight


def _header_size(request: HotRequest, body: bytes) -> int:
    """Bytes of the JSON. Raises `InvalidRequest`."""
    given = request.header(HEADER_LENGTH)
    if not given:
        return len(body)
    if not given.isdigit() or len(given) > 10 or int(given) > len(body):
        text = f"Invalid header 'Inference-Header-Content-Length': {shorten(given.decode('latin-1'))}. "
        raise InvalidRequest(f"{text}Must be at most {len(body)}, the size of the body.", code="invalid_header")
    return int(given)


def _respond(call: InferenceCall, in_flight: AwaitedCalls) -> Response | asyncio.Future[Response]:
    """The response, made in a thread where it is large. Raises `ApiError`."""
    if in_flight.failure is not None:
        raise in_flight.failure
    make = partial(_response, call, in_flight.job.model, in_flight.results[0], in_flight.close)
    if in_flight.held_bytes <= INLINE_BYTES:
        return make()
    made: asyncio.Future[Response] = asyncio.get_running_loop().run_in_executor(None, make)
    return made


def _response(call: InferenceCall, model: str, result: CallResult, close: Callable[[], None]) -> Response:
    try:
        header, frames = inference_response(model, call, result)
    except InvalidResult as error:
        raise TaskFailed(f"The result cannot be sent: {error}.", code="invalid_result") from None
    if not frames:
        return FrameResponse([header], JSON, on_end=close)
    headers = {HEADER_LENGTH.decode(): str(len(header))}
    return FrameResponse([header, *map(_view, frames)], BYTES, headers=headers, on_end=close)


def _view(frame: bytes | bytearray | memoryview) -> memoryview:
    return memoryview(frame)
