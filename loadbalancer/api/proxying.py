"""What another server answers in our place, handed on as it comes: an answer as a whole, events one by one."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace

import aiohttp
import msgspec
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from configs.proxy import ColdStartProxy
from loadbalancer.api.http_helpers import Services, wait_first
from loadbalancer.api.uploads import Form
from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.proxy.upstream import FORWARDED, Content, UpstreamDeclined
from loadbalancer.schema.errors import ApiError, BadGateway, InvalidRequest
from loadbalancer.schema.stream_events import encode_error

#: On every answer that another server made.
PROXIED = "x-muster-proxied"
_EVENTS = "text/event-stream"
_JSON = "application/json"

#: Makes what is sent, given the name that the model has there.
BodyFactory = Callable[[str], Awaitable[Content]]


class ProxiedRequest:
    """One request that another server was asked to do."""

    def __init__(self, services: Services, job: GenerationSpec) -> None:
        self._services = services
        self._job = job
        self._open = True
        services.tracker.register(self)
        services.scheduler.request_proxied(job.model, job.inputs)

    def connection_error(self, error: Exception) -> ApiError:
        """See `UpstreamClient.connection_error`."""
        return self._services.upstream.connection_error(error)

    def close(self, outcome: str) -> None:
        """It is over. Idempotent; the first outcome counts."""
        if self._open:
            self._open = False
            self._services.tracker.unregister(self)
            self._services.scheduler.proxy_finished(self._job.model, len(self._job.inputs))
            self._services.metrics.proxied(self._job.model, outcome)


async def try_upstream(
    services: Services, request: Request, job: GenerationSpec, build: BodyFactory, *, stream: bool
) -> Response | GenerationSpec:
    """The answer of the server that helps out for the job's model, or the job, to be done here.

    Raises the `ApiError` that there is instead of an answer.
    """
    proxy = services.upstream.proxy_for(job.model)
    if (
        proxy is None
        or FORWARDED in request.headers
        or not services.tracker.is_open
        or not _is_needed(services, proxy, job)
    ):
        return job
    content = await build(proxy.model or job.model)
    path = request.url.path.removeprefix("/v1")
    proxied = ProxiedRequest(services, job)
    asking = asyncio.create_task(_ask(services, job, path, content, min(proxy.timeout_s, job.timeout_s), stream))
    outcome = "cancelled"
    try:
        await wait_first(request, asking)
        outcome = "failed"
        answer = asking.result()
        outcome = "answered" if isinstance(answer, Response) else ""
    except UpstreamDeclined:
        outcome = "queued"
        return replace(job, known=True)
    except InvalidRequest:
        outcome = "refused"
        raise
    finally:
        if outcome:
            asking.cancel()
            asking.add_done_callback(_discard)
            proxied.close(outcome)
    return answer if isinstance(answer, Response) else UpstreamStream(answer, proxied)


def _is_needed(services: Services, proxy: ColdStartProxy, job: GenerationSpec) -> bool:
    """Whether the model's own workers would take too long."""
    if not services.scheduler.is_ready(job.model):
        return True
    if proxy.max_wait_s is None:
        return False
    wait_s = services.scheduler.estimate_wait(
        job.model, job.inputs[0], priority=job.priority, owner=job.owner, weight=job.weight
    )
    return wait_s is not None and wait_s > proxy.max_wait_s


async def _ask(
    services: Services, job: GenerationSpec, path: str, content: Content, timeout_s: float, stream: bool
) -> Response | aiohttp.ClientResponse:
    """The whole answer, or one whose events are still to come. Raises `UpstreamDeclined` and `ApiError`."""
    answer = await services.upstream.post(job.model, path, content, timeout_s)
    expected = _EVENTS if stream else _JSON
    if answer.content_type != expected:
        answer.close()
        raise BadGateway(f"The server that stands in for the model answered with other than {expected}.")
    if stream:
        return answer
    return Response(await services.upstream.read(answer), headers={PROXIED: "true"}, media_type=_JSON)


class UpstreamStream(StreamingResponse):
    """Hands the events on, and hangs up on the other server when its reader hangs up."""

    def __init__(self, answer: aiohttp.ClientResponse, proxied: ProxiedRequest) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no", PROXIED: "true"}
        super().__init__(self._events(), headers=headers, media_type=_EVENTS)
        self._answer = answer
        self._proxied = proxied
        self._outcome = "cancelled"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._answer.close()
            self._proxied.close(self._outcome)

    async def _events(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._answer.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._outcome = "failed"
            why = self._proxied.connection_error(error)
            yield b"\n\n" + encode_error(why)  # an event that was under way ends here
        else:
            self._outcome = "answered"


def as_json(body: bytes) -> BodyFactory:
    """The request's own body of JSON, with another model's name."""

    async def build(model: str) -> Content:
        asked: dict[str, msgspec.Raw] = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
        asked["model"] = msgspec.Raw(msgspec.json.encode(model))
        return Content(msgspec.json.encode(asked), _JSON)

    return build


def as_form(form: Form) -> BodyFactory:
    """The request's own form, with another model's name. To be made while the form can be read."""

    async def build(model: str) -> Content:
        sent = aiohttp.FormData()
        for name, text in (form.texts | {"model": model}).items():
            sent.add_field(name, text)
        for name, file in form.parts:
            content = await asyncio.to_thread(file.read)
            sent.add_field(name, content, filename=f"{name}.{file.kind}", content_type=f"image/{file.kind}")
        return Content(sent)

    return build


def _discard(asking: asyncio.Task[Response | aiohttp.ClientResponse]) -> None:
    """Nobody takes the answer any more."""
    if not asking.cancelled() and asking.exception() is None:
        answer = asking.result()
        if isinstance(answer, aiohttp.ClientResponse):
            answer.close()
