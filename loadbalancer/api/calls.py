"""Answers calls of users' engines: checks them, queues a task for each input, and makes the response of the results."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from itertools import chain

from fastapi import Response

from configs.settings import Settings
from loadbalancer.api.call_bodies import (
    CallBody,
    call_options,
    form_body,
    is_json_type,
    json_body,
    raw_body,
)
from loadbalancer.api.call_json import INLINE_BYTES
from loadbalancer.api.call_stream import CallStream
from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.hot_routes import HotRequest
from loadbalancer.generation.call_spec import CallSpec
from loadbalancer.generation.call_validation import call_model, call_priority, call_timeout_s, instances_spec
from loadbalancer.generation.in_flight_call import AwaitedCalls, StreamedCalls
from loadbalancer.schema.call_results import CallResult, InvalidResult, as_json, is_quick_json, response_type
from loadbalancer.schema.errors import NotAcceptable, TaskFailed
from loadbalancer.schema.media_types import BYTES, JSON, MediaRange, prefers_events, quality
from loadbalancer.schema.parsing import shorten
from loadbalancer.schema.predictions import parse_instances, predictions
from loadbalancer.services import Services
from wire.codec import Frame
from wire.inputs import CallInputs, Part

Answer = Response | Awaitable[Response]
#: Puts what is around the results into a JSON response. Each result is in pieces.
JsonFrame = Callable[[Iterable[Iterable[Frame]]], Iterable[Frame]]


#: Results up to this size are joined, which costs less than pieces do.
_JOINED_BYTES = 4096
#: Of the bytes that an engine returns.
_UNTRUSTED = {"x-content-type-options": "nosniff", "content-security-policy": "default-src 'none'; sandbox"}


class CallApi:
    """Shared by `:predict` and the models' own paths."""

    def __init__(self, services: Services) -> None:
        self._settings: Settings = services.settings
        self._tracker = services.tracker

    def predict(self, request: HotRequest) -> Answer:
        """Answer `POST /v1/models/{model}:predict`. Raises `ApiError`."""
        model, kind = call_model(request.params["model"], self._settings), request.head.media_type
        if not is_json_type(kind):
            return self._one_input(request, model, kind, predictions)
        given = parse_instances(request.json(), self._settings.max_instances)
        accepted = request.head.accepted
        stream = given.stream or prefers_events(accepted)
        if request.query:
            options = call_options(request.query)
            given = given._replace(
                timeout_s=options.timeout_s if given.timeout_s is None else given.timeout_s,
                priority=options.priority if given.priority is None else given.priority,
            )
        spec = instances_spec(model, given, self._settings, request.caller, stream=stream)
        return self._answer(request, spec, accepted, predictions, stream=stream)

    def call(self, request: HotRequest, model: str) -> Answer:
        """Answer a request to the model's own path: one input in, its output out. Raises `ApiError`."""
        return self._one_input(request, model, request.head.media_type, chain.from_iterable)

    def _one_input(self, request: HotRequest, model: str, kind: str, around: JsonFrame) -> Answer:
        if kind == "multipart/form-data":
            return self._form(request, model, around)
        body = json_body(request) if is_json_type(kind) else raw_body(request, kind)
        return self._one_call(request, model, body, around)

    async def _form(self, request: HotRequest, model: str, around: JsonFrame) -> Response:
        body = await form_body(request, self._settings.server.max_body_bytes)
        answer = self._one_call(request, model, body, around)
        return answer if isinstance(answer, Response) else await answer

    def _one_call(self, request: HotRequest, model: str, body: CallBody, around: JsonFrame) -> Answer:
        options, accepted = call_options(request.query), request.head.accepted
        stream = prefers_events(accepted)
        spec = CallSpec(
            model,
            [CallInputs(body.parts, stream)],
            [body.frames],
            call_timeout_s(options.timeout_s, self._settings.server),
            call_priority(options.priority),
            request.caller.owner,
            request.caller.weight,
        )
        return self._answer(request, spec, accepted, around, stream=stream)

    def _answer(
        self, request: HotRequest, spec: CallSpec, accepted: tuple[MediaRange, ...], around: JsonFrame, *, stream: bool
    ) -> Answer:
        if stream:
            source = self._tracker.accept(StreamedCalls, spec)
            request.release_body()
            return CallStream(source, spec.model)
        if len(spec.inputs) > 1 and not quality(accepted, JSON):
            text = f"{len(spec.inputs)} instances can only be answered as {JSON}; bytes are for one."
            raise NotAcceptable(text)
        in_flight = self._tracker.accept(AwaitedCalls, spec, partial(_response, accepted, around))
        request.release_body()
        return in_flight


def _response(accepted: tuple[MediaRange, ...], around: JsonFrame, call: AwaitedCalls) -> Answer:
    """The response in the best type that its client accepts. Raises `ApiError`."""
    if call.failure is not None:
        raise call.failure
    results = call.results
    kind = JSON if len(results) > 1 else response_type(results[0], accepted)
    if kind is None:
        raise not_acceptable(results[0], accepted)
    if kind != JSON:
        [part], frames = results[0]
        return FrameResponse(
            [memoryview(frame) for frame in frames], kind, headers=bytes_headers(part), on_end=call.close
        )
    if call.held_bytes > INLINE_BYTES and not all(map(is_quick_json, results)):
        made: asyncio.Future[Response] = asyncio.get_running_loop().run_in_executor(
            None, _json_response, results, around, call.close
        )
        return made
    return _json_response(results, around, call.close, joined=call.held_bytes <= _JOINED_BYTES)


def _json_response(
    results: Sequence[CallResult], around: JsonFrame, close: Callable[[], None], *, joined: bool = False
) -> Response:
    try:
        found = around(map(as_json, results))
        pieces = [b"".join(found)] if joined else [memoryview(piece) for piece in found]
    except InvalidResult as error:
        raise TaskFailed(f"The result cannot be sent: {error}.", code="invalid_result") from None
    return FrameResponse(pieces, JSON, on_end=close)


def bytes_headers(part: Part) -> dict[str, str]:
    """What the bytes do not tell about a tensor, and that a browser must not run them."""
    if not part.dtype:
        return _UNTRUSTED
    return _UNTRUSTED | {"x-tensor-dtype": part.dtype, "x-tensor-shape": ",".join(map(str, part.shape))}


def not_acceptable(result: CallResult, accepted: tuple[MediaRange, ...]) -> NotAcceptable:
    """The error of a result that has no type which its client accepts."""
    allowed = shorten(", ".join(each.kind for each in accepted if each.quality)) or "nothing"
    if len(result.parts) != 1:
        text = f"The result has {len(result.parts)} parts, which can only be sent as {JSON}; Accept allows {allowed}."
        return NotAcceptable(text)
    own = dict.fromkeys((JSON, result.parts[0].media_type, BYTES))
    return NotAcceptable(f"The result can be sent as {', '.join(own)}; Accept allows {allowed}.")
