"""`POST /v1/chat/completions`, `/v1/completions` and `/v1/responses`: OpenAI's text API."""

from __future__ import annotations

from collections.abc import Awaitable

from fastapi import APIRouter, Response

from loadbalancer.api.hot_routes import HotRequest, HotRoutes
from loadbalancer.api.openapi import event_stream, request_body, responses
from loadbalancer.api.text.completions import TextApi
from loadbalancer.services import Services

_ERRORS = (400, 404, 413, 415, 422, 429, 500, 503, 504)


def router(services: Services, hot: HotRoutes) -> APIRouter:
    routes = APIRouter(tags=["text"])
    api, max_bytes = TextApi(services), services.settings.server.max_text_body_bytes

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

    return routes
