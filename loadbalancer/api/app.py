"""Builds the HTTP application: routes, error responses and middlewares."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from configs.addresses import machine_names
from configs.text import printable
from loadbalancer.access.access_control import AccessControl
from loadbalancer.api.allowed_methods import allowed_methods, keep_routes
from loadbalancer.api.body_budget import BodyBudget
from loadbalancer.api.hot_calls import HotCalls
from loadbalancer.api.hot_routes import HotRoutes
from loadbalancer.api.http_helpers import error_response
from loadbalancer.api.idempotency import IdempotencyMiddleware
from loadbalancer.api.idempotency_keys import ReplayedPaths
from loadbalancer.api.image_requests import RequestBuilder
from loadbalancer.api.middleware import ApiMiddleware
from loadbalancer.api.model_documents import serve_document
from loadbalancer.api.openapi import DESCRIPTION, DocumentedApp
from loadbalancer.api.path_hints import method_hint, unknown_path
from loadbalancer.api.request_recorder import RequestRecorder
from loadbalancer.api.routes import (
    calls,
    health,
    images,
    inference,
    jobs,
    models,
    page,
    results,
    scaling,
    simulation,
    texts,
)
from loadbalancer.metrics.build import muster_version
from loadbalancer.schema.errors import ApiError, InternalError, InvalidRequest, MethodNotAllowed, NotFound
from loadbalancer.services import Services

#: Of a path in an error.
_MAX_PATH_CHARS = 100


def create_app(services: Services) -> ASGIApp:
    """The application inside its middlewares."""
    app = DocumentedApp(
        services.authenticator,
        title="Muster",
        version=muster_version(),
        description=DESCRIPTION,
        docs_url=None,  # its page loads files from elsewhere
        redoc_url=None,
        redirect_slashes=False,
        generate_unique_id_function=lambda route: str(route.name),
    )
    builder = RequestBuilder(services)
    hot = HotRoutes()
    routers = (
        images.router(services, builder, hot),
        jobs.router(services, builder),
        *(module.router(services, hot) for module in (texts, calls, health, inference)),
        *(module.router(services) for module in (models, page, results, scaling, simulation)),
    )
    for router in routers:
        app.include_router(router)
    keep_routes(app, routers)
    hot.collect(*routers)
    add_error_handlers(app)
    serve_document(app, services)
    idempotency = IdempotencyMiddleware(
        app, services.database, services.tracker.memory, services.settings.server.max_upload_bytes
    )
    services.metrics.in_flight.add(lambda: {"recordings": len(idempotency)})
    metrics, server = services.metrics, services.settings.server
    bodies = BodyBudget(server.max_body_bytes_in_memory, server.body_bytes_per_key, metrics.refusals)
    access = services.settings.access
    control = AccessControl(
        access, services.authenticator, services.keys, machine_names(server.host), server.max_reads_per_key
    )
    replayed = ReplayedPaths(services.settings.api_paths)
    recorder = RequestRecorder(services.tracer, services.access_log)
    hot_calls = HotCalls(hot, control, metrics, recorder)
    return ApiMiddleware(app, idempotency, access, control, metrics, bodies, hot_calls, replayed, recorder)


def add_error_handlers(app: FastAPI) -> None:
    """Answer all errors in OpenAI's shape; unexpected exceptions are left to `ApiMiddleware`."""
    app.add_exception_handler(ApiError, _on_error)
    app.add_exception_handler(HTTPException, _on_error)
    app.add_exception_handler(RequestValidationError, _on_missing)
    app.add_exception_handler(Exception, _on_bug)


async def _on_error(request: Request, error: Exception) -> Response:
    api_error = error if isinstance(error, ApiError) else _from_starlette(request, error)
    return error_response(api_error, request.url.path)


async def _on_missing(request: Request, error: Exception) -> Response:
    """Name the missing parameter of the query. All parameters are texts, so nothing else is wrong with one."""
    assert isinstance(error, RequestValidationError)
    name = str(error.errors()[0]["loc"][-1])
    text = f"Missing required parameter: '{name}'."
    return error_response(InvalidRequest(text, param=name, code="missing_required_parameter"), request.url.path)


async def _on_bug(_: Request, error: Exception) -> Response:
    """Leave unexpected exceptions to `ApiMiddleware`: otherwise Starlette answers them with a plain text."""
    raise error


def _from_starlette(request: Request, error: Exception) -> ApiError:
    """Starlette's own error as an `ApiError`."""
    assert isinstance(error, HTTPException)
    operation = printable(f"{request.method} {request.url.path}", _MAX_PATH_CHARS)
    if error.status_code == 404:
        return NotFound(unknown_path(request.method, request.url.path, request.app.openapi()["paths"]))
    if error.status_code == 405:
        allow = ", ".join(allowed_methods(request, (error.headers or {}).get("Allow", "")))
        text = f"{operation}: this path allows {allow}.{method_hint(request.method, request.url.path)}"
        return MethodNotAllowed(text, headers={"allow": allow})
    if error.status_code < 500:
        return InvalidRequest(error.detail, code="bad_request")
    return InternalError(error.detail)
