"""The HTTP application: routes, the shape of errors, and what holds for every answer. HTTP only, no decisions."""

from __future__ import annotations

import logging
import re
import time
import uuid
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import msgspec
from fastapi import FastAPI, Request, Response
from pydantic.json_schema import models_json_schema
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loadbalancer.access.api_keys import Authenticator
from loadbalancer.access.origin_policy import OriginPolicy
from loadbalancer.api.http_helpers import Services, error_response, error_schema
from loadbalancer.api.idempotency import IdempotencyMiddleware
from loadbalancer.api.middleware import EXPOSED_HEADERS, AuthMiddleware, OriginMiddleware
from loadbalancer.api.request_builder import RequestBuilder
from loadbalancer.api.routes import health, images, jobs, models, scaling
from loadbalancer.jobs.requests import JobRequest
from loadbalancer.jobs.views import JobList, JobView
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.schema.errors import ApiError, InternalError, InvalidRequest, MethodNotAllowed, NotFound
from loadbalancer.schema.requests import EditRequest, ImageRequest, PredictRequest
from loadbalancer.schema.responses import ImagesAnswer, ModelCard, ModelList, PredictAnswer
from loadbalancer.schema.scaling import PauseRequest, ReloadRequest, ResumeRequest, ScaleRequest
from loadbalancer.schema.stream_events import (
    CompletedImage,
    EditCompletedImage,
    EditPartialImage,
    EditProgress,
    ErrorEvent,
    PartialImage,
    Progress,
)
from wire.errors import ErrorBody
from wire.scaling import ControllerReport, DecisionPage, OrderDone

log = logging.getLogger(__name__)

_DESCRIPTION = """\
Generative models on every GPU of a machine, batched between denoising steps.

Any OpenAI client works with `base_url` set to this server's `/v1`. Every answer carries `x-request-id`, every error
is `{"error": {"message", "type", "param", "code"}}`.
"""
_REFERENCE = "#/components/schemas/{name}"
_REQUESTS = (
    ImageRequest,
    EditRequest,
    PredictRequest,
    JobRequest,
    ScaleRequest,
    PauseRequest,
    ResumeRequest,
    ReloadRequest,
)
_ANSWERS = (
    ImagesAnswer,
    PredictAnswer,
    ModelCard,
    ModelList,
    JobView,
    JobList,
    health.Health,
    ErrorBody,
    Progress,
    PartialImage,
    CompletedImage,
    EditProgress,
    EditPartialImage,
    EditCompletedImage,
    ErrorEvent,
    ControllerReport,
    DecisionPage,
    OrderDone,
)
_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")


def create_app(services: Services) -> ASGIApp:
    """The whole application."""
    app = FastAPI(
        title="Muster",
        version=_version(),
        description=_DESCRIPTION,
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: str(route.name),
    )
    builder = RequestBuilder(services)
    for drawing in (images, jobs):
        app.include_router(drawing.router(services, builder))
    for telling in (models, health, scaling):
        app.include_router(telling.router(services))
    app.add_exception_handler(ApiError, _refuse)
    app.add_exception_handler(HTTPException, _refuse)
    _document(app, services.authenticator)
    access, loopback = services.settings.access, services.authenticator.loopback
    once = IdempotencyMiddleware(app, services.database, services.settings.server.max_upload_bytes)
    services.metrics.in_flight.add(lambda: {"recordings": len(once)})
    gated = _cross_origin(AuthMiddleware(once, services), access.cors_origins)
    return RequestIdMiddleware(
        OriginMiddleware(gated, OriginPolicy(access.hosts, access.cors_origins, loopback=loopback)), services.metrics
    )


def _cross_origin(app: ASGIApp, origins: Sequence[str]) -> ASGIApp:
    """The application for pages of these origins too. Before the gate: a browser asks first, and without a key."""
    if not origins:
        return app
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("authorization", "content-type", "idempotency-key", "x-request-id"),
        expose_headers=("x-request-id", *EXPOSED_HEADERS),
    )


def _version() -> str:
    try:
        return metadata.version("muster")
    except metadata.PackageNotFoundError:  # run from a checkout that was not installed
        return "unknown"


async def _refuse(request: Request, error: Exception) -> Response:
    return error_response(error if isinstance(error, ApiError) else _translate(request, error))


def _translate(request: Request, error: Exception) -> ApiError:
    """Starlette's own refusals in our shape."""
    assert isinstance(error, HTTPException)
    where = f"{request.method} {request.url.path}"
    if error.status_code == 404:
        return NotFound(f"Unknown path: {where}.")
    if error.status_code == 405:
        allow = dict(error.headers or {})
        return MethodNotAllowed(f"{where}: this path allows {allow.get('Allow', 'other methods')}.", headers=allow)
    if error.status_code < 500:
        return InvalidRequest(error.detail, code="bad_request")
    return InternalError(error.detail)


def _document(app: FastAPI, authenticator: Authenticator) -> None:
    """Add the schemas to the OpenAPI document: the routes read and write bodies themselves, and refer to them.

    FastAPI's 422 goes: mistakes are answered 400 here. What the gate answers in a route's place comes.
    """
    document: dict[str, Any] = app.openapi()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if "HTTPValidationError" in str(operation["responses"].get("422")):
                del operation["responses"]["422"]
            if authenticator.need(path) != "nothing":
                operation["security"] = [{"key": []}, {}]  # the second: as long as there are no keys
                operation["responses"] |= {str(status): error_schema(status) for status in (401, 403)}
    _, requests = models_json_schema(
        [(model, "validation") for model in _REQUESTS], ref_template=_REFERENCE.format(name="{model}")
    )
    _, answers = msgspec.json.schema_components(_ANSWERS, ref_template=_REFERENCE)
    schemes = {"key": {"type": "http", "scheme": "bearer"}}
    document["components"] = {"schemas": requests["$defs"] | answers, "securitySchemes": schemes}


class RequestIdMiddleware:
    """Around the whole application: gives every request an id, every bug one neutral answer, and counts.

    Plain ASGI: Starlette's `BaseHTTPMiddleware` would hide disconnects from the routes.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.monotonic()
        request_id = _request_id(scope)
        status: int | None = None

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            log.exception("request %s: %s %s failed", request_id, scope["method"], scope["path"])
            if status is not None:
                raise  # the server closes the connection, so that the client sees a broken answer
            text = f"The server had an error while processing your request. Its id is {request_id}."
            await error_response(InternalError(text))(scope, receive, send_with_id)
        finally:
            route = getattr(scope.get("route"), "path", "other")
            self._metrics.request(route, status or 500, time.monotonic() - began)


def _request_id(scope: Scope) -> str:
    """The client's own id where it is safe to repeat in headers and logs, else a new one."""
    own = Headers(scope=scope).get("x-request-id", "")
    return own if _SANE_ID.fullmatch(own) else uuid.uuid4().hex
