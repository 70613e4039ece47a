"""Answers requests of the Responses API, which stores nothing here."""

from __future__ import annotations

import secrets
import time
from functools import partial

from fastapi import Response

from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.hot_routes import HotRequest
from loadbalancer.api.http_helpers import JSON, encode_json
from loadbalancer.api.text.completions import Answer, pushed
from loadbalancer.generation.text.in_flight_text import AwaitedTexts
from loadbalancer.generation.text.response_spec import response_echo, response_spec
from loadbalancer.generation.text.response_writer import ResponseWriter
from loadbalancer.generation.text.streamed_texts import StreamedTexts
from loadbalancer.generation.text.text_model import text_model
from loadbalancer.schema.text.response_request import ResponseRequest
from loadbalancer.schema.text.text_requests import RESPONSE_PATH, parse_text
from loadbalancer.services import Services


class ResponsesApi:
    """`POST /v1/responses`."""

    def __init__(self, services: Services) -> None:
        self._settings = services.settings
        self._tracker = services.tracker
        self._scheduler = services.scheduler

    def answer(self, request: HotRequest) -> Answer:
        """Return the response, or that of a stream when its first text has come. Raises `ApiError`."""
        given: ResponseRequest = parse_text(RESPONSE_PATH, request.json())
        model = text_model(given.model, self._settings)
        engine, seed = self._scheduler.pools[model].engine_info, secrets.randbits(32)
        spec = response_spec(given, self._settings, engine, seed, request.caller, model)
        writer = ResponseWriter(secrets.token_hex(16), int(time.time()), model, response_echo(given, spec.inputs[0]))
        if given.stream:
            response = self._tracker.accept_texts(StreamedTexts, spec, writer, pushed).response
        else:
            response = self._tracker.accept_texts(AwaitedTexts, spec, partial(_response, writer=writer)).response
        request.release_body()
        return response


def _response(texts: AwaitedTexts, writer: ResponseWriter) -> Response:
    return FrameResponse([encode_json(writer.answer(texts))], JSON, headers=texts.limit_headers, on_end=texts.close)
