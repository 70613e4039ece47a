"""Answers requests for embeddings: a call of an engine of the user for each text."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

import msgspec
from fastapi import Response

from configs.settings import Settings
from loadbalancer.api.call_json import INLINE_BYTES
from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.hot_routes import HotRequest
from loadbalancer.api.http_helpers import JSON, encode_json
from loadbalancer.generation.call_spec import CallSpec
from loadbalancer.generation.call_validation import call_timeout_s
from loadbalancer.generation.in_flight_call import AwaitedCalls
from loadbalancer.generation.validation import endpoints, model_not_found
from loadbalancer.schema.errors import InvalidRequest
from loadbalancer.schema.struct_parsing import parse_struct
from loadbalancer.schema.text.embeddings import EmbeddingsRequest, embeddings_answer
from loadbalancer.services import Services
from wire.inputs import CallInputs, Part

_decoder = msgspec.json.Decoder(EmbeddingsRequest)
#: A text as JSON.
_TEXT = CallInputs((Part(),))


class EmbeddingsApi:
    """`POST /v1/embeddings`."""

    def __init__(self, services: Services) -> None:
        self._settings = services.settings
        self._tracker = services.tracker

    def answer(self, request: HotRequest) -> asyncio.Future[Response]:
        """Return the response. Raises `ApiError`."""
        given = parse_struct(_decoder, request.json())
        texts = given.texts(self._settings.max_instances)
        model = embeddings_model(given.model, self._settings)
        spec = CallSpec(
            model,
            [_TEXT] * len(texts),
            [[encode_json(text)] for text in texts],
            call_timeout_s(given.timeout_s, self._settings.server),
            given.priority or 0,
            request.caller.owner,
            request.caller.weight,
            "input",
        )
        in_flight = self._tracker.accept(AwaitedCalls, spec, partial(_respond, given))
        request.release_body()
        return in_flight.response


def embeddings_model(requested: str | None, settings: Settings) -> str:
    """Return the model. Raises `ModelNotFound`, and `InvalidRequest` for one without embeddings."""
    first = (name for name, model in settings.models.items() if model.embeddings)
    name = requested or next(first, next(iter(settings.models)))
    if name not in settings.models:
        raise model_not_found(name, settings)
    if not settings.models[name].embeddings:
        text = f"The model '{name}' gives no embeddings: use POST {' or '.join(endpoints(name, settings))}."
        raise InvalidRequest(text, param="model", code="unsupported_endpoint")
    return name


def _respond(given: EmbeddingsRequest, calls: AwaitedCalls) -> Any:
    """The response, or a future of it where it takes long to make. Raises `ApiError`."""
    if calls.failure is not None:
        raise calls.failure
    if calls.held_bytes > INLINE_BYTES:
        return asyncio.get_running_loop().run_in_executor(None, _response, given, calls)
    return _response(given, calls)


def _response(given: EmbeddingsRequest, calls: AwaitedCalls) -> Response:
    answer = embeddings_answer(given, calls.job.model, calls.results)
    return FrameResponse([encode_json(answer)], JSON, on_end=calls.close)
