"""`/v1/jobs`: durable requests whose results are fetched later."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial
from typing import Annotated, NoReturn
from weakref import WeakValueDictionary

from fastapi import APIRouter, Depends, Query, Request, Response

from loadbalancer.access.api_keys import Caller
from loadbalancer.api.call_stream import CallStream
from loadbalancer.api.event_stream import EventStream
from loadbalancer.api.http_helpers import json_response, read_json, run_while_connected
from loadbalancer.api.idempotency_keys import HEADER, key_of_request, reused
from loadbalancer.api.image_requests import RequestBuilder
from loadbalancer.api.job_result import JobResult, job_bytes
from loadbalancer.api.openapi import event_stream, request_body, responses, schema_ref
from loadbalancer.api.query_parameters import check_query
from loadbalancer.api.result_links import ResultLinks, base_url
from loadbalancer.api.storage_errors import stored
from loadbalancer.api.text.job_stream import JobTextStream
from loadbalancer.context.request_context import CURRENT
from loadbalancer.generation.call_spec import CallSpec
from loadbalancer.generation.call_validation import call_model, instances_spec
from loadbalancer.generation.text.followed_texts import FollowedTexts
from loadbalancer.generation.text.text_model import text_model
from loadbalancer.generation.text.text_resolution import resolve_text, text_options
from loadbalancer.generation.text.text_spec import TextSpec
from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.jobs.requests import ParsedJob, called_model, parse_job
from loadbalancer.jobs.views import JobView, StoredError, job_list, missing_result_error
from loadbalancer.scheduling.task import TaskCompleted
from loadbalancer.schema.errors import Conflict, InvalidRequest, NotFound, shutting_down
from loadbalancer.schema.media_types import parse_accept
from loadbalancer.schema.parsing import shorten
from loadbalancer.schema.predictions import Instances
from loadbalancer.schema.text.chat_request import ChatRequest
from loadbalancer.schema.text.completion_request import CompletionRequest
from loadbalancer.schema.text.response_events import RESPONSE_EVENTS
from loadbalancer.schema.text.response_request import ResponseRequest
from loadbalancer.schema.text.text_requests import TextRequest
from loadbalancer.services import Services
from loadbalancer.storage.records import (
    IdempotencyKey,
    IdempotencyKeyReused,
    JobRecord,
    JobSpec,
    JobState,
    StoredImage,
    TextOptions,
    WebhookTarget,
)

_EDITS = "/v1/images/edits"
_OF_EDITS = ("EditProgress", "EditPartialImage", "EditCompletedImage")
_OF_CALLS = ("PredictionChunk", "PredictionCompleted")
_OF_TEXTS = ("ChatChunk", "CompletionAnswer", *[event.__name__ for event in RESPONSE_EVENTS])
_EVENTS = event_stream("Progress", "PartialImage", "CompletedImage", *_OF_EDITS, *_OF_CALLS, *_OF_TEXTS, "ErrorEvent")
_RESULTS = (
    *("ImagesAnswer", "PredictAnswer", "PredictionsAnswer"),
    *("ChatAnswer", "CompletionAnswer", "ResponseAnswer"),
)
_RESULT = responses("ImagesAnswer", 400, 404, 406, 409, 500, 503, 504)
_RESULT[200]["content"] = {
    "application/json": {"schema": {"anyOf": [schema_ref(name) for name in _RESULTS]}},
    "*/*": {"schema": {"type": "string", "format": "binary"}},
}
_CREATED = responses("JobView", 400, 404, 413, 422, 429, 503)
_CREATED[202] = _CREATED.pop(200)


def router(services: Services, builder: RequestBuilder) -> APIRouter:
    routes = APIRouter(tags=["jobs"])
    api = _JobsApi(services, builder)

    @routes.post(
        "/v1/jobs",
        summary="Create a job",
        status_code=202,
        openapi_extra=request_body("JobRequest"),
        responses=_CREATED,
    )
    async def create_job(request: Request) -> Response:
        """Accept a request of another endpoint as a job, which survives a restart of this server."""
        return await api.create(request)

    @routes.get(
        "/v1/jobs",
        summary="List jobs",
        responses=responses("JobList", 400, 503),
        dependencies=[Depends(check_query)],
    )
    async def list_jobs(
        request: Request,
        limit: Annotated[str, Query(description="Maximum number of jobs per page, 1 to 100.")] = "20",
        after: Annotated[str | None, Query(description="Id of the last job of the previous page.")] = None,
        state: Annotated[str | None, Query(description="Only jobs in this state.")] = None,
    ) -> Response:
        """The caller's jobs, the newest first."""
        return await api.page(request, limit, after, state)

    @routes.get("/v1/jobs/{job}", summary="Describe a job", responses=responses("JobView", 404, 503))
    async def describe_job(request: Request, job: str) -> Response:
        """The state and progress of the job."""
        record = await api.find(request, job)
        return json_response(services.jobs.view(record))

    @routes.get(
        "/v1/jobs/{job}/result",
        summary="Fetch a job's result",
        responses=_RESULT,
    )
    async def job_result(request: Request, job: str) -> Response:
        """The response of the job's endpoint; 409 while the job is unfinished."""
        return await api.result(request, job)

    @routes.get("/v1/jobs/{job}/events", summary="Follow a job", responses=responses("JobView", 404, 503, **_EVENTS))
    async def job_events(request: Request, job: str) -> Response:
        """Server-sent events: first the current progress and finished images, then updates until the end."""
        return await api.events(request, job)

    @routes.delete("/v1/jobs/{job}", summary="Cancel or delete a job", responses=responses("JobView", 404, 503))
    async def delete_job(request: Request, job: str) -> Response:
        """Cancel the job; if it has ended, delete it and its result."""
        record = await stored(services.jobs.discard(job, request.state.caller.owner))
        if record is None:
            _job_not_found(job)
        return json_response(services.jobs.view(record))

    return routes


class _JobsApi:
    """Creates, finds and lists jobs."""

    def __init__(self, services: Services, builder: RequestBuilder) -> None:
        self._services = services
        self._builder = builder
        #: Of the keys of requests that are being accepted.
        self._locks: WeakValueDictionary[tuple[str, str], asyncio.Lock] = WeakValueDictionary()

    async def create(self, request: Request) -> Response:
        services = self._services
        if not services.tracker.is_open:
            raise shutting_down()
        body = await read_json(request, services.settings.server.largest_body_bytes)
        key = await _given_key(request, body)
        async with self._turn(key):
            if key is not None and (known := await self._known(key)) is not None:
                return _accepted(known)  # before anything is charged or decoded for it
            parsed = self._parse(body)
            del body  # it may be large, and decoding may take long
            job, sources, options = await self._spec(request, parsed)
            allowed_s = job.timeout_s if parsed.request.timeout_s is not None else services.settings.jobs.timeout_s
            order = _job_spec(parsed, job, time.time() + allowed_s, options)
            on_end = services.tracker.charge_until_end(job) if isinstance(job, TextSpec) else None
            try:
                return _accepted(await stored(services.jobs.add(order, sources, key, on_end)))
            except IdempotencyKeyReused:
                raise reused("" if key is None else key.key) from None

    @contextlib.asynccontextmanager
    async def _turn(self, key: IdempotencyKey | None) -> AsyncIterator[None]:
        """Requests with one key take turns: the first makes the job, which the others then find."""
        if key is None:
            yield
            return
        lock = self._locks.setdefault((key.owner, key.key), asyncio.Lock())
        async with lock:
            yield

    def _parse(self, body: bytes) -> ParsedJob:
        settings = self._services.settings
        return parse_job(
            body,
            settings.server.max_body_bytes,
            webhook_private=settings.jobs.webhook_private,
            max_instances=settings.max_instances,
            max_text_bytes=settings.server.max_text_body_bytes,
        )

    async def _spec(
        self, request: Request, parsed: ParsedJob
    ) -> tuple[GenerationSpec | CallSpec | TextSpec, Sequence[bytes], TextOptions | None]:
        """Return what the job computes, the bytes to store for it, and the options of a text. Raises `ApiError`."""
        caller = request.state.caller
        if isinstance(parsed.request, Instances):
            calls = self._call_spec(parsed.job.path, parsed.request, caller)
            return calls, [bytes(frame) for frames in calls.frames for frame in frames], None
        if isinstance(parsed.request, ChatRequest | CompletionRequest | ResponseRequest):
            texts = self._text_spec(parsed.request, caller)
            return texts, texts.frames[:: texts.choices], text_options(parsed.request, texts)
        building = self._builder.build(parsed.request, caller, parsed.image, parsed.mask)
        images = await run_while_connected(request, building)
        return images, images.sources, None

    async def _known(self, key: IdempotencyKey) -> JobView | None:
        """The job that was created with the key before. Raises `KeyReused`."""
        try:
            return await stored(self._services.jobs.known(key))
        except IdempotencyKeyReused:
            raise reused(key.key) from None

    def _call_spec(self, path: str, given: Instances, caller: Caller) -> CallSpec:
        settings = self._services.settings
        return instances_spec(call_model(called_model(path) or "", settings), given, settings, caller, stream=False)

    def _text_spec(self, given: TextRequest, caller: Caller) -> TextSpec:
        settings = self._services.settings
        model = text_model(given.model, settings)
        engine = self._services.scheduler.pools[model].engine_info
        return resolve_text(given, settings, engine, secrets.randbits(32), caller, model)

    async def find(self, request: Request, job: str) -> JobRecord:
        """The caller's job. Raises `NotFound`, also for jobs of others."""
        record = await stored(self._services.jobs.find(job, request.state.caller.owner))
        if record is None:
            _job_not_found(job)
        return record

    async def result(self, request: Request, job: str) -> Response:
        record = await self.find(request, job)
        if record.ended is None:
            text = f"The job is {record.state.value}; it has no result yet."
            raise Conflict(text, code="job_not_finished", retry_after_s=1)
        missing = missing_result_error(record)
        if isinstance(missing, StoredError):
            return json_response(missing.body, missing.failure.status)
        if missing is not None:
            raise missing
        first = await self._image(job, 0)
        if record.order.calls:
            return self._call_result(request, record, first)
        link = self._link(request, job, record.order) if record.order.response_format == "url" else None
        return JobResult(record, partial(self._image, job), first, link)

    def _call_result(self, request: Request, record: JobRecord, first: StoredImage) -> Response:
        """The predictions of a job as JSON, or the bytes of its only one."""
        accepted = parse_accept(request.headers.get("accept", ""))
        if len(record.order.inputs) == 1 and (answer := job_bytes(first, accepted)) is not None:
            return answer
        return JobResult(record, partial(self._image, record.id), first, None)

    async def events(self, request: Request, job: str) -> Response:
        subscriber = await stored(self._services.jobs.subscribe(job, request.state.caller.owner))
        if subscriber is None:
            _job_not_found(job)
        spec, add_result = subscriber.spec, None
        if spec.text is not None:
            try:
                texts = FollowedTexts(await self.find(request, job))
            except BaseException:
                subscriber.close()
                raise
            return JobTextStream(subscriber, texts)
        if spec.calls:
            return CallStream(subscriber, spec.model)
        if spec.response_format == "url":
            link = self._link(request, job, spec)
            add_result = partial(_link_result, link)
        return EventStream(subscriber, edit=spec.path == _EDITS, add_result=add_result)

    def _link(self, request: Request, job: str, spec: JobSpec) -> Callable[[int], Awaitable[str]]:
        """Return a function from the index of an image to its URL."""
        services = self._services
        host, scope = request.headers.get("host", ""), request.scope
        base = base_url(host, scope["scheme"], scope.get("server"), services.settings.server)
        return partial(ResultLinks(services.results, base, spec.images[0].output_format).link, job)

    async def _image(self, job: str, item: int) -> StoredImage:
        image = await stored(self._services.jobs.image(job, item))
        if image is None:
            _job_not_found(job)
        return image

    async def page(self, request: Request, limit: str, after: str | None, state: str | None) -> Response:
        jobs, owner = self._services.jobs, request.state.caller.owner
        if not (limit.isascii() and limit.isdecimal() and len(limit) <= 3 and 1 <= int(limit) <= 100):
            text = f"Invalid value for 'limit': {shorten(limit)}. Must be between 1 and 100."
            raise InvalidRequest(text, param="limit")
        if state is not None and state not in list(JobState):
            text = f"Invalid value for 'state': {shorten(state)}. Supported: {', '.join(JobState)}."
            raise InvalidRequest(text, param="state")
        if after is not None and await stored(jobs.find(after, owner)) is None:
            raise InvalidRequest(f"Invalid value for 'after': {shorten(after)}. There is no such job.", param="after")
        page = await stored(jobs.page(owner, int(limit), after, None if state is None else JobState(state)))
        return json_response(job_list([jobs.view(record) for record in page.records], more=page.more))


async def _given_key(request: Request, body: bytes) -> IdempotencyKey | None:
    """Return the idempotency key of the request, if it has one. Raises `InvalidRequest`."""
    given = request.headers.get(HEADER)
    if given is None:
        return None
    return await key_of_request(request.state.caller.owner, given, request.url.path, "", body)


def _job_spec(
    parsed: ParsedJob, job: GenerationSpec | CallSpec | TextSpec, deadline: float, options: TextOptions | None
) -> JobSpec:
    webhook, context = parsed.job.webhook, CURRENT.get()
    return JobSpec(
        path=parsed.job.path,
        model=job.model,
        inputs=list(job.inputs),
        priority=job.priority,
        deadline=deadline,
        owner=job.owner,
        weight=job.weight,
        metadata=parsed.job.metadata,
        hook=None if webhook is None else WebhookTarget(webhook.url, webhook.secret),
        response_format="b64_json" if options else getattr(parsed.request, "response_format", None) or "b64_json",
        text=options,
        request_id="" if context is None else context.request_id,
        traceparent="" if context is None else context.traceparent,
    )


def _accepted(view: JobView) -> Response:
    return json_response(view, 202, {"location": f"/v1/jobs/{view.id}"})


async def _link_result(link: Callable[[int], Awaitable[str]], image: TaskCompleted) -> str:
    return await link(int(image.task))


def _job_not_found(job: str) -> NoReturn:
    raise NotFound(f"There is no job {shorten(job)}.", param="job", code="job_not_found")
