"""The Open Inference Protocol (KServe V2): `/v2/models/{model}/infer`, metadata and health."""

from __future__ import annotations

from http import HTTPStatus

from fastapi import APIRouter, Request, Response

from loadbalancer.api.allowed_methods import check_is_no_call
from loadbalancer.api.calls import Answer
from loadbalancer.api.hot_routes import HotRequest, HotRoutes
from loadbalancer.api.http_helpers import json_response
from loadbalancer.api.inference import InferenceApi
from loadbalancer.api.openapi import content, request_body, responses
from loadbalancer.api.readiness import check_ready
from loadbalancer.generation.validation import model_not_found
from loadbalancer.schema.errors import ApiError, NotFound
from loadbalancer.schema.inference_metadata import ModelMetadata, ModelReady, ServerLive, ServerMetadata, ServerReady
from loadbalancer.services import Services

_ERRORS = (400, 404, 413, 422, 429, 500, 503, 504)
_EXTENSIONS = ["binary_tensor_data"]
_BINARY = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}


def _answers(success: str, *errors: int, **more: object) -> dict[int | str, dict[str, object]]:
    """The responses of a route, whose errors have the form of the protocol or of the server."""
    either = {"anyOf": [{"$ref": f"#/components/schemas/{name}"} for name in ("ProtocolError", "ErrorBody")]}
    documented = responses(success, **more)
    for status in errors:
        text = f"{HTTPStatus(status).phrase}."
        documented[status] = {"description": text, "content": {"application/json": {"schema": either}}}
    return documented


def router(services: Services, hot: HotRoutes) -> APIRouter:
    routes = APIRouter(tags=["calls"])
    api = InferenceApi(services)
    max_bytes = services.settings.server.max_upload_bytes

    @routes.post(
        "/v2/models/{model:path}/infer",
        summary="Call a model with tensors",
        openapi_extra=request_body("InferRequest", **_BINARY),
        responses=_answers("InferAnswer", *_ERRORS, **_BINARY),
    )
    @hot.endpoint(max_bytes=max_bytes)
    def infer(request: HotRequest) -> Answer:
        """The Open Inference Protocol (KServe V2): tensors in JSON or as bytes, by its binary extension.

        One request is one call. The parameter `timeout` is in microseconds, as Triton's.
        """
        if error := _version_error(request.params["model"]):
            raise error
        return api.infer(request)

    _add_server_routes(routes, services)
    _add_model_routes(routes, services)
    return routes


def _add_server_routes(routes: APIRouter, services: Services) -> None:
    @routes.get("/v2", summary="Describe the server", responses=responses("ServerMetadata"))
    async def server_metadata(request: Request) -> Response:
        """Its name, version and extensions of the protocol."""
        return json_response(ServerMetadata("muster", str(request.app.version), _EXTENSIONS))

    @routes.get("/v2/health/live", summary="Is the server alive?", responses=responses("ServerLive"))
    async def server_live() -> Response:
        """200 while the process lives."""
        return json_response(ServerLive(live=True))

    @routes.get("/v2/health/ready", summary="Are all models ready?", responses=_answers("ServerReady", 503))
    async def server_ready() -> Response:
        """200 while every model is ready, as `/readyz`; else 503 with the reason."""
        await check_ready(services, services.settings.models)
        return json_response(ServerReady(live=True, ready=True))


def _add_model_routes(routes: APIRouter, services: Services) -> None:
    models = services.settings.models

    @routes.get(
        "/v2/models/{model:path}/ready",
        summary="Is the model ready?",
        responses=_answers("ModelReady", 404) | {503: {"description": "Not ready.", "content": content("ModelReady")}},
    )
    async def model_ready(model: str) -> Response:
        """200 while the model takes calls, else 503."""
        if model not in models:
            raise _version_error(model) or model_not_found(model, services.settings)
        try:
            await check_ready(services, [model])
        except ApiError:
            return json_response(ModelReady(model, ready=False), HTTPStatus.SERVICE_UNAVAILABLE)
        return json_response(ModelReady(model, ready=True))

    @routes.get("/v2/models/{model:path}", summary="Describe a model", responses=_answers("ModelMetadata", 404))
    async def model_metadata(request: Request, model: str) -> Response:
        """Its name and the kind of its engine. `/docs` describes its inputs and outputs."""
        if model not in models:
            check_is_no_call(request, model, "/infer", models)
            raise _version_error(model) or model_not_found(model, services.settings)
        engine = services.scheduler.pools[model].engine_info
        return json_response(ModelMetadata(model, engine.pipeline if engine else models[model].engine))


def _version_error(model: str) -> ApiError | None:
    """The error of a path with a version; None for any other."""
    name, found, _ = model.partition("/versions/")
    if not found:
        return None
    return NotFound(f"Models have no versions here: use /v2/models/{name}/infer.", code="model_not_found")
