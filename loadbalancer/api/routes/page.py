"""Routes of the page: its files, the past, live data, the tasks, and who is looking."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Query, Request, Response

from configs.samplers import sampler_names
from loadbalancer.api.conditional_requests import accepts_gzip, has_entity_tag
from loadbalancer.api.event_stream import ServerSentEvents
from loadbalancer.api.http_helpers import json_response
from loadbalancer.api.page_access import check_page_access
from loadbalancer.api.query_parameters import check_query
from loadbalancer.generation.validation import model_not_found
from loadbalancer.page.feed import MAX_SUBSCRIBERS, Subscription, TooManySubscribers
from loadbalancer.page.files import PageFile, page_file
from loadbalancer.page.history import RESOLUTIONS
from loadbalancer.page.task_list import MAX_TASKS, list_tasks
from loadbalancer.schema.errors import InvalidRequest, NotFound, TooBusy
from loadbalancer.schema.page import ModelPast, PageModel, Session, TaskPage
from loadbalancer.services import Services

#: No script, style or picture of another origin, and no script in the page itself.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
#: The pages of the API's documentation style themselves.
_DOCS_POLICY = _POLICY.replace("style-src 'self'", "style-src 'self' 'unsafe-inline'")
_HEADERS = {"x-content-type-options": "nosniff", "referrer-policy": "no-referrer"}
#: A file is asked for again with its tag: a newer server has newer files.
_CACHE = "no-cache"
_MAX_SPAN_S = max(step_s * length for step_s, length in RESOLUTIONS)


def router(services: Services) -> APIRouter:
    routes = APIRouter(include_in_schema=False)

    def of_page(request: Request) -> None:
        check_page_access(services, request)

    guarded = [Depends(of_page)]

    @routes.get("/")
    async def home(request: Request) -> Response:
        return _file(request, "index.html", _POLICY)

    @routes.get("/docs")
    async def docs(request: Request) -> Response:
        return _file(request, "docs.html", _DOCS_POLICY)

    @routes.get("/ui/files/{name:path}")
    async def files(request: Request, name: str) -> Response:
        return _file(request, name, _POLICY)

    @routes.get("/ui/events", dependencies=guarded)
    async def events() -> Response:
        """The present state, then what changes, each second."""
        return _live(services)

    @routes.get("/ui/history", dependencies=[*guarded, Depends(check_query)])
    async def history(model: str, span: Annotated[str, Query(description="Seconds.")] = "600") -> Response:
        """A model's past, at falling resolution."""
        return json_response(_past(services, model, span))

    @routes.get("/ui/tasks", dependencies=[*guarded, Depends(check_query)])
    async def tasks(model: str | None = None, owner: str | None = None) -> Response:
        """What runs and waits, running tasks first."""
        if model is not None:
            _check_served(services, model)
        found, total = list_tasks(services.scheduler.scheduler_state, model, owner, time.monotonic())
        return json_response(TaskPage(found, total, MAX_TASKS))

    _add_caller_routes(routes, services, guarded)
    return routes


def _add_caller_routes(routes: APIRouter, services: Services, guarded: Sequence[Any]) -> None:
    """Add the routes about the caller."""

    @routes.get("/ui/session", dependencies=guarded)
    async def session(request: Request) -> Response:
        """Who is looking, and what they may do."""
        return json_response(_session(services, request))

    @routes.get("/ui/usage", dependencies=guarded)
    async def usage(request: Request) -> Response:
        """What each API key has used; only their own use for callers without the scope admin."""
        owner = None if "admin" in _scopes(services, request) else request.state.caller.owner
        return json_response(services.page.usage(owner))


def _check_served(services: Services, model: str) -> None:
    if model not in services.settings.models:
        raise model_not_found(model, services.settings)


def _past(services: Services, model: str, span: str) -> ModelPast:
    _check_served(services, model)
    if not (span.isascii() and span.isdecimal() and len(span) <= 6 and 1 <= int(span) <= _MAX_SPAN_S):
        text = f"Invalid value for 'span'. Must be between 1 and {_MAX_SPAN_S} seconds."
        raise InvalidRequest(text, param="span")
    points = services.page.points(model, int(span))
    return ModelPast(points.step_s, points.times, points.columns)


def _live(services: Services) -> Response:
    try:
        subscription = services.page.connect()
    except TooManySubscribers:
        text = f"{MAX_SUBSCRIBERS} pages are already connected."
        raise TooBusy(text, code="too_many_pages", retry_after_s=5) from None
    return ServerSentEvents(_messages(subscription), subscription.close)


async def _messages(subscription: Subscription) -> AsyncIterator[bytes]:
    async for message in subscription.messages():
        yield message


def _session(services: Services, request: Request) -> Session:
    caller, is_open = request.state.caller, services.keys.ring is None
    models = [
        PageModel(name, model.task, model.engine_name, slo.max_wait_s, slo.percentile)
        for name, model in services.settings.models.items()
        for slo in [services.settings.scaling(name).slo]
    ]
    return Session(
        owner=caller.owner,
        scopes=sorted(_scopes(services, request)),
        keys=not is_open,
        requests_per_minute=caller.requests_per_minute,
        max_concurrent=caller.max_concurrent,
        weight=caller.weight,
        records_arrivals=services.settings.server.record_arrivals is not None,
        samplers=sampler_names(),
        models=models,
    )


def _scopes(services: Services, request: Request) -> frozenset[str]:
    """Return the scopes of the caller. On loopback without keys, everyone is an administrator."""
    is_open = services.keys.ring is None
    own = frozenset[str](request.state.caller.scopes)
    return own | {"admin"} if is_open and services.authenticator.loopback else own


def _file(request: Request, name: str, policy: str) -> Response:
    found = page_file(name)
    if found is None:
        raise NotFound("The page has no such file.")
    headers = _HEADERS | {"etag": found.etag, "cache-control": _CACHE, "content-security-policy": policy}
    if has_entity_tag(request.headers.get("if-none-match", ""), found.etag):
        return Response(status_code=304, headers=headers)
    return Response(_body(request, found, headers), headers=headers, media_type=found.media_type)


def _body(request: Request, found: PageFile, headers: dict[str, str]) -> bytes:
    """Return the file, compressed for a client that takes it so."""
    headers["vary"] = "accept-encoding"
    if found.compressed is None or not accepts_gzip(request.headers.get("accept-encoding", "")):
        return found.data
    headers["content-encoding"] = "gzip"
    return found.compressed
