"""Answers chats and completions: checks them, queues their tasks, and makes the response or the stream."""

from __future__ import annotations

import asyncio
import secrets
import time
from functools import partial

from fastapi import Response

from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.hot_routes import HotRequest
from loadbalancer.api.http_helpers import JSON, encode_json
from loadbalancer.api.pushed_response import PushedResponse
from loadbalancer.generation.text.chat_spec import chat_spec
from loadbalancer.generation.text.chat_writer import ChatWriter, chat_answer
from loadbalancer.generation.text.completion_spec import completion_spec
from loadbalancer.generation.text.completion_writer import CompletionWriter, completion_answer
from loadbalancer.generation.text.in_flight_text import AwaitedTexts
from loadbalancer.generation.text.streamed_texts import StreamedTexts
from loadbalancer.generation.text.text_model import text_model
from loadbalancer.schema.text.chat_request import ChatRequest
from loadbalancer.schema.text.chat_stream import ChatEvents
from loadbalancer.schema.text.completion_request import CompletionRequest
from loadbalancer.schema.text.completion_stream import CompletionEvents
from loadbalancer.schema.text.fields import StreamOptions
from loadbalancer.schema.text.text_requests import CHAT_PATH, COMPLETION_PATH, parse_text
from loadbalancer.services import Services

_NO_OPTIONS = StreamOptions()
Answer = asyncio.Future[Response]


class TextApi:
    """`POST /v1/chat/completions` and `/v1/completions`.

    Each returns the response, or that of a stream when its first text has come. They raise `ApiError`.
    """

    def __init__(self, services: Services) -> None:
        self._settings = services.settings
        self._tracker = services.tracker
        self._scheduler = services.scheduler

    def chat(self, request: HotRequest) -> Answer:
        given: ChatRequest = parse_text(CHAT_PATH, request.json())
        model = text_model(given.model, self._settings)
        engine, seed = self._scheduler.pools[model].engine_info, secrets.randbits(32)
        spec = chat_spec(given, self._settings, engine, seed, request.caller, model)
        id_, created = f"chatcmpl-{secrets.token_hex(16)}", int(time.time())
        if given.stream:
            events = ChatEvents(id_, created, model, **_usage_options(given.stream_options))
            writer = ChatWriter(events, id_, wants_logprobs=spec.inputs[0].logprobs is not None)
            response = self._tracker.accept_texts(StreamedTexts, spec, writer, pushed).response
        else:
            response = self._tracker.accept_texts(
                AwaitedTexts, spec, partial(_chat_response, id_=id_, created=created)
            ).response
        request.release_body()
        return response

    def completion(self, request: HotRequest) -> Answer:
        given: CompletionRequest = parse_text(COMPLETION_PATH, request.json())
        model = text_model(given.model, self._settings)
        engine, seed = self._scheduler.pools[model].engine_info, secrets.randbits(32)
        spec = completion_spec(given, self._settings, engine, seed, request.caller, model)
        id_, created = f"cmpl-{secrets.token_hex(16)}", int(time.time())
        if given.stream:
            events = CompletionEvents(id_, created, model, **_usage_options(given.stream_options))
            writer = CompletionWriter(events, alternatives=spec.inputs[0].logprobs)
            response = self._tracker.accept_texts(StreamedTexts, spec, writer, pushed).response
        else:
            respond = partial(_completion_response, id_=id_, created=created)
            response = self._tracker.accept_texts(AwaitedTexts, spec, respond).response
        request.release_body()
        return response


def pushed(texts: StreamedTexts) -> Response:
    """Return the response of a stream."""
    return PushedResponse(texts, texts.limit_headers)


def _usage_options(options: StreamOptions | None) -> dict[str, bool]:
    given = options or _NO_OPTIONS
    return {"include_usage": bool(given.include_usage), "continuous_usage": bool(given.continuous_usage_stats)}


def _chat_response(texts: AwaitedTexts, id_: str, created: int) -> Response:
    return FrameResponse(
        [encode_json(chat_answer(texts, id_, created))], JSON, headers=texts.limit_headers, on_end=texts.close
    )


def _completion_response(texts: AwaitedTexts, id_: str, created: int) -> Response:
    return FrameResponse(
        [encode_json(completion_answer(texts, id_, created))], JSON, headers=texts.limit_headers, on_end=texts.close
    )
