"""`POST /v1/chat/completions`, `/v1/completions` and `/v1/responses`: OpenAI's text API."""

from __future__ import annotations

from collections.abc import Awaitable

from fastapi import APIRouter, Response

from loadbalancer.api.hot_routes import HotRequest, HotRoutes
from loadbalancer.api.openapi import event_stream, request_body, responses
from loadbalancer.api.text.completions import TextApi
from loadbalancer.api.text.embeddings import EmbeddingsApi
from loadbalancer.api.text.responses import ResponsesApi
from loadbalancer.schema.text.response_events import RESPONSE_EVENTS
from loadbalancer.services import Services

_RESPONSE_EVENTS = event_stream(*[event.__name__ for event in RESPONSE_EVENTS])
_ERRORS = (400, 404, 413, 415, 422, 429, 500, 503, 504)


def router(services: Services, hot: HotRoutes) -> APIRouter:
    routes = APIRouter(tags=["text"])
    api, respond = TextApi(services), ResponsesApi(services)
    embeddings = EmbeddingsApi(services)
    max_bytes = services.settings.server.max_text_body_bytes

    @routes.post(
        "/v1/chat/completions",
        summary="Continue a chat",
        openapi_extra=request_body("ChatRequest"),
        responses=responses("ChatAnswer", *_ERRORS, **event_stream("ChatChunk", "ErrorEvent")),
    )
    @hot.endpoint(max_bytes=max_bytes)
    def chat(request: HotRequest) -> Awaitable[Response]:
        """OpenAI's chat completions, with the parameters of vLLM. With `stream`: server-sent events."""
        return api.chat(request)

    @routes.post(
        "/v1/completions",
        summary="Continue a text",
        openapi_extra=request_body("CompletionRequest"),
        responses=responses("CompletionAnswer", *_ERRORS, **event_stream("CompletionAnswer", "ErrorEvent")),
    )
    @hot.endpoint(max_bytes=max_bytes)
    def complete(request: HotRequest) -> Awaitable[Response]:
        """OpenAI's older API: texts or tokens are continued as they are, without a chat template."""
        return api.completion(request)

    @routes.post(
        "/v1/responses",
        summary="Respond",
        openapi_extra=request_body("ResponseRequest"),
        responses=responses("ResponseAnswer", *_ERRORS, **_RESPONSE_EVENTS),
    )
    @hot.endpoint(max_bytes=max_bytes)
    def create_response(request: HotRequest) -> Awaitable[Response]:
        """OpenAI's Responses API for texts and functions. Nothing is stored: each request has all items."""
        return respond.answer(request)

    @routes.post(
        "/v1/embeddings",
        summary="Embed texts",
        openapi_extra=request_body("EmbeddingsRequest"),
        responses=responses("EmbeddingsAnswer", *_ERRORS),
    )
    @hot.endpoint(max_bytes=max_bytes)
    def embed(request: HotRequest) -> Awaitable[Response]:
        """OpenAI's embeddings, by an engine of your own with `embeddings: true`."""
        return embeddings.answer(request)

    return routes
