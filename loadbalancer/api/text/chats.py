"""Answers chats: checks them, queues a task for each choice, and makes the response or the stream."""

from __future__ import annotations

import asyncio
import secrets
import time
from functools import partial

import msgspec
from fastapi import Response

from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.hot_routes import HotRequest
from loadbalancer.api.http_helpers import JSON, encode_json
from loadbalancer.api.pushed_response import PushedResponse
from loadbalancer.generation.text.chat_spec import chat_spec, requested_model
from loadbalancer.generation.text.chat_writer import ChatWriter, chat_answer
from loadbalancer.generation.text.in_flight_text import AwaitedTexts
from loadbalancer.schema.struct_parsing import parse_struct
from loadbalancer.schema.text.chat_request import ChatRequest
from loadbalancer.schema.text.chat_stream import ChatEvents
from loadbalancer.services import Services

_decoder = msgspec.json.Decoder(ChatRequest)


class ChatApi:
    """`POST /v1/chat/completions`."""

    def __init__(self, services: Services) -> None:
        self._settings = services.settings
        self._tracker = services.tracker
        self._scheduler = services.scheduler

    def answer(self, request: HotRequest) -> asyncio.Future[Response]:
        """Return the response, or that of a stream when its first text has come. Raises `ApiError`."""
        given = parse_struct(_decoder, request.json())
        given.check()
        model = requested_model(given, self._settings)
        engine = self._scheduler.engine_info(model)
        spec = chat_spec(given, self._settings, engine, secrets.randbits(32), request.caller, model)
        id_, created = f"chatcmpl-{secrets.token_hex(16)}", int(time.time())
        if given.stream:
            options = given.stream_options
            events = ChatEvents(
                id_,
                created,
                model,
                include_usage=options is not None and bool(options.include_usage),
                continuous_usage=options is not None and bool(options.continuous_usage_stats),
            )
            writer = ChatWriter(events, id_, wants_logprobs=spec.inputs[0].logprobs is not None)
            response = self._tracker.stream_texts(spec, writer, PushedResponse).response
        else:
            response = self._tracker.accept_texts(spec, partial(_response, id_=id_, created=created)).response
        request.release_body()
        return response


def _response(texts: AwaitedTexts, id_: str, created: int) -> Response:
    return FrameResponse([encode_json(chat_answer(texts, id_, created))], JSON, on_end=texts.close)
