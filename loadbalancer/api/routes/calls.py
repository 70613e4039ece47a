"""`POST /v1/models/{model}:predict`, and the paths of models that have their own (`api_path`)."""

from __future__ import annotations

import re

from fastapi import APIRouter, Response

from loadbalancer.api.calls import Answer, CallApi
from loadbalancer.api.hot_routes import HotRequest, HotRoutes
from loadbalancer.api.openapi import event_stream, request_body, responses
from loadbalancer.services import Services

ERRORS = (400, 404, 406, 413, 415, 422, 429, 500, 503, 504)
_EVENTS = event_stream("PredictionChunk", "PredictionCompleted", "ErrorEvent")
_ANY = {"schema": {"type": "string", "format": "binary"}}
#: Any type, as bytes.
_BYTES = {"*/*": _ANY}
#: One input in other forms.
_OTHER_BODIES = {"application/octet-stream": _ANY, "image/*": _ANY, "text/plain": {"schema": {"type": "string"}}} | {
    "multipart/form-data": {"schema": {"type": "object", "additionalProperties": True}}
}


def router(services: Services, hot: HotRoutes) -> APIRouter:
    routes = APIRouter(tags=["calls"])
    api, models = CallApi(services), services.settings.models
    max_bytes = services.settings.server.max_upload_bytes

    @routes.post(
        "/v1/models/{model:path}:predict",
        summary="Call a model",
        openapi_extra=request_body("PredictionsRequest", **_OTHER_BODIES),
        responses=responses("PredictionsAnswer", *ERRORS, **_EVENTS, **_BYTES),
    )
    @hot.endpoint(max_bytes=max_bytes)
    def call_model(request: HotRequest) -> Answer:
        """KServe's V1 protocol: a prediction for each of the instances, which share batches with those of others.

        Any other body is one input: bytes, a text, an image, or the fields of a form. `Accept` chooses JSON, the bytes
        of the result, or a stream of events.
        """
        return api.predict(request)

    for name, model in models.items():
        if model.api_path is not None:
            _add_own_path(routes, api, hot, name, model.api_path, max_bytes)
    return routes


def _add_own_path(routes: APIRouter, api: CallApi, hot: HotRoutes, model: str, path: str, max_bytes: int) -> None:
    @hot.endpoint(max_bytes=max_bytes)
    def call(request: HotRequest) -> Answer:
        """The body is one input, the response its output: as JSON, or as `Accept` says."""
        return api.call(request, model)

    routes.post(
        path,
        name=f"call_{re.sub(r'[^A-Za-z0-9]', '_', model)}",
        summary=f"Call {model}",
        response_class=Response,
        openapi_extra=request_body("Value", **_OTHER_BODIES),
        responses=responses("Value", *ERRORS, **_EVENTS, **_BYTES),
    )(call)
