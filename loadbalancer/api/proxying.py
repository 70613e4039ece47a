"""Forwards requests to a model's `cold_start_proxy` and returns its response, complete or as a stream."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from typing import TYPE_CHECKING

import msgspec
from fastapi import Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from configs.proxy import ColdStartProxy
from loadbalancer.api.hot_routes import HotRequest
from loadbalancer.api.uploads import Form
from loadbalancer.context.request_context import CURRENT
from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.proxy.upstream import FORWARDED, Content, UpstreamDeclined
from loadbalancer.schema.errors import ApiError, BadGateway, InvalidRequest
from loadbalancer.schema.stream_events import encode_error
from loadbalancer.services import Services
from loadbalancer.tracing.attributes import OUTCOME, REQUEST_MODEL
from loadbalancer.tracing.tracer import new_span_id

if TYPE_CHECKING:
    import aiohttp

#: Header of every response that comes from an upstream server.
PROXIED = "x-muster-proxied"
_EVENTS = "text/event-stream"
_JSON = "application/json"

#: Builds the content to send, given the model's name on the upstream server.
BodyFactory = Callable[[str], Awaitable[Content]]


class ProxiedRequest:
    """A request that an upstream server processes."""

    def __init__(self, services: Services, spec: GenerationSpec) -> None:
        self._services = services
        self._spec = spec
        self._is_open = True
        self._started = time.monotonic()
        self._context = context = CURRENT.get()
        trace = None if context is None else context.trace
        if trace is not None and services.tracer is not None:
            trace = trace.child(new_span_id())
        self._trace = trace
        services.tracker.register(self)
        services.scheduler.request_proxied(spec.model, spec.inputs)

    @property
    def traceparent(self) -> str:
        """The header for the upstream server; empty without a trace."""
        return "" if self._trace is None else self._trace.traceparent

    def connection_error(self, error: Exception) -> ApiError:
        return self._services.upstream.connection_error(error)

    def close(self, outcome: str) -> None:
        """End the request. Idempotent; the first outcome counts."""
        if self._is_open:
            self._is_open = False
            self._services.tracker.unregister(self)
            self._services.scheduler.proxy_finished(self._spec.model, len(self._spec.inputs))
            self._services.metrics.proxied(self._spec.model, outcome)
            tracer, context, trace = self._services.tracer, self._context, self._trace
            if tracer is not None and context is not None and trace is not None:
                attributes = {OUTCOME: outcome, REQUEST_MODEL: self._spec.model}
                error = outcome if outcome == "failed" else ""
                times = self._started, time.monotonic()
                tracer.end_span(trace, "proxy", "client", *times, attributes, error, context.clock_offset)


async def try_upstream(
    services: Services,
    request: HotRequest,
    spec: GenerationSpec,
    proxy: ColdStartProxy,
    build: BodyFactory,
    *,
    stream: bool,
) -> Response | GenerationSpec:
    """The upstream's response, or the spec where this server processes the request itself. Raises `ApiError`."""
    if (
        request.header(FORWARDED.lower().encode())
        or not services.tracker.is_open
        or not _is_needed(services, proxy, spec)
    ):
        return spec
    content = await build(proxy.model or spec.model)
    path = request.path.removeprefix("/v1")
    proxied = ProxiedRequest(services, spec)
    outcome = "cancelled"
    try:
        timeout_s = min(proxy.timeout_s, spec.timeout_s)
        response = await _send(services, spec, path, content, timeout_s, proxied.traceparent, stream=stream)
        outcome = "answered" if isinstance(response, Response) else ""
    except UpstreamDeclined:
        outcome = "queued"
        return replace(spec, already_counted=True)
    except InvalidRequest:
        outcome = "refused"
        raise
    except Exception:
        outcome = "failed"
        raise
    finally:
        if outcome:
            proxied.close(outcome)
    return response if isinstance(response, Response) else UpstreamStream(response, proxied)


def _is_needed(services: Services, proxy: ColdStartProxy, spec: GenerationSpec) -> bool:
    """True when the model's own workers would take too long."""
    if not services.scheduler.is_ready(spec.model):
        return True
    if proxy.max_wait_s is None:
        return False
    wait_s = services.scheduler.estimate_wait(
        spec.model, spec.inputs[0], priority=spec.priority, owner=spec.owner, weight=spec.weight
    )
    return wait_s is not None and wait_s > proxy.max_wait_s


async def _send(
    services: Services,
    spec: GenerationSpec,
    path: str,
    content: Content,
    timeout_s: float,
    traceparent: str,
    *,
    stream: bool,
) -> Response | aiohttp.ClientResponse:
    """The complete response, or an open event stream. Raises `UpstreamDeclined` and `ApiError`."""
    response = await services.upstream.post(spec.model, path, content, timeout_s, traceparent)
    expected = _EVENTS if stream else _JSON
    if response.content_type != expected:
        response.close()
        raise BadGateway(f"The upstream server for the model did not answer with {expected}.")
    if stream:
        return response
    return Response(await services.upstream.read(response), headers={PROXIED: "true"}, media_type=_JSON)


class UpstreamStream(StreamingResponse):
    """Forwards the events, and closes the upstream connection when the client disconnects."""

    def __init__(self, upstream: aiohttp.ClientResponse, proxied: ProxiedRequest) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no", PROXIED: "true"}
        super().__init__(self._events(), headers=headers, media_type=_EVENTS)
        self._upstream = upstream
        self._proxied = proxied
        self._outcome = "cancelled"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._upstream.close()
            self._proxied.close(self._outcome)

    async def _events(self) -> AsyncIterator[bytes]:
        import aiohttp

        try:
            async for chunk in self._upstream.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._outcome = "failed"
            # The blank line ends an event that was cut off.
            yield b"\n\n" + encode_error(self._proxied.connection_error(error))
        else:
            self._outcome = "answered"


async def json_content(request: HotRequest, model: str) -> Content:
    """Return the JSON body with another model name, while the request holds its body."""
    members: dict[str, msgspec.Raw] = msgspec.json.decode(request.json(), type=dict[str, msgspec.Raw])
    members["model"] = msgspec.Raw(msgspec.json.encode(model))
    return Content(msgspec.json.encode(members), _JSON)


async def form_content(form: Form, model: str) -> Content:
    """Return the form with another model name, while the form's files can be read."""
    import aiohttp

    fields = aiohttp.FormData()
    for name, text in (form.texts | {"model": model}).items():
        fields.add_field(name, text)
    for name, file in form.parts:
        content = await asyncio.to_thread(file.read)
        fields.add_field(name, content, filename=f"{name}.{file.kind}", content_type=f"image/{file.kind}")
    return Content(fields)
