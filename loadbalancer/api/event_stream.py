"""Server-sent events of a request or a job, until its last image or its failure."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from loadbalancer.api.storage_errors import storage_error
from loadbalancer.generation.in_flight import ResultStream
from loadbalancer.scheduling.task import TaskCompleted, TaskProgress
from loadbalancer.schema.errors import ApiError, Conflict, InternalError
from loadbalancer.schema.responses import Timings, base64_json
from loadbalancer.schema.stream_events import (
    KEEP_ALIVE,
    CompletedImage,
    PartialImage,
    ProgressThrottle,
    encode,
    encode_error,
)
from loadbalancer.storage.database import StorageUnavailable

log = logging.getLogger(__name__)

AddResult = Callable[[TaskCompleted], Awaitable[str]]


class ServerSentEvents(StreamingResponse):
    """Always closes its source at the end. When the client disconnects, this cancels the tasks."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], close: Callable[[], None]) -> None:
        # Some reverse proxies buffer responses without the second header.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_catch_errors(events), headers=headers)
        self._close = close

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._close()


class EventStream(ServerSentEvents):
    """The progress and the images of a request."""

    def __init__(self, source: ResultStream, *, edit: bool = False, add_result: AddResult | None = None) -> None:
        """`add_result` stores a finished image and returns its URL, which is sent in place of the image."""
        super().__init__(_EventWriter(source, edit, add_result).stream(), source.close)


async def _catch_errors(events: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The stream, with a neutral last event for an exception, because the status is already sent."""
    try:
        async for chunk in events:
            yield chunk
    except ApiError as error:
        yield encode_error(error)
    except StorageUnavailable as error:
        yield encode_error(storage_error(error))
    except Exception:
        log.exception("a stream failed")
        yield encode_error(InternalError("The server had an error while streaming. Please try again."))


class _EventWriter:
    """Writes the progress and results of a source as events."""

    def __init__(self, source: ResultStream, edit: bool, add_result: AddResult | None) -> None:
        self._add_result = add_result
        self._source = source
        self._edit = edit
        self._throttle = ProgressThrottle()
        self._is_deleted = False
        self._indexes = {task: index for index, task in enumerate(source.tasks)}
        #: Steps whose previews were sent, by task: a restarted task does not send them again.
        self._previews: dict[str, list[int]] = {task: [] for task in source.tasks}

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield every event as soon as it is due."""
        source, throttle = self._source, self._throttle
        while True:
            source.changed.clear()
            is_over = source.ended.done()
            sent = False
            async for chunk in self._events(time.monotonic()):  # one at a time: a slow reader holds one image
                yield chunk
                throttle.on_sent(time.monotonic())
                sent = True
            if self._is_deleted:
                return
            if is_over and source.failure is not None:
                yield encode_error(source.failure)
                return
            if not sent and throttle.is_silent(time.monotonic()):
                yield KEEP_ALIVE
                throttle.on_sent(time.monotonic())
            if is_over:
                return
            with contextlib.suppress(TimeoutError):  # the next progress poll is due
                await asyncio.wait_for(source.changed.wait(), throttle.wait_s(time.monotonic()))

    async def _events(self, now: float) -> AsyncIterator[bytes]:
        source = self._source
        if self._throttle.poll(now):
            views = self._throttle.changed(list(source.progress()))
            if views:
                yield b"".join(encode(view, edit=self._edit) for view in views)
        while source.events:
            update = source.events.popleft()
            if isinstance(update, TaskCompleted):
                loaded = await source.load(update)
                if loaded is None:
                    self._is_deleted = True
                    yield encode_error(Conflict("The job was deleted.", code="job_cancelled"))
                    return
                update = loaded
            event = self._image_event(update)
            if isinstance(event, CompletedImage) and isinstance(update, TaskCompleted) and self._add_result is not None:
                url = await self._add_result(update)
                event = msgspec.structs.replace(event, b64_json=msgspec.UNSET, url=url)
            if event is not None:
                yield encode(event, edit=self._edit)

    def _image_event(self, update: TaskProgress | TaskCompleted) -> PartialImage | CompletedImage | None:
        job, index, created = self._source.job, self._indexes[update.task], int(time.time())
        size, output_format = job.inputs[0].shape.key, job.inputs[0].output_format
        if isinstance(update, TaskCompleted):
            timings = Timings(update.waited_s, update.ran_s)
            seed = job.inputs[index].seed
            return CompletedImage(
                base64_json(update.image),
                created,
                output_format,
                size,
                index,
                seed,
                job.model,
                timings,
                flagged=update.flagged or msgspec.UNSET,
                truncated_tokens=update.truncated_tokens or msgspec.UNSET,
            )
        sent_steps = self._previews[update.task]
        if update.preview is None or update.step in sent_steps:
            return None
        sent_steps.append(update.step)
        return PartialImage(base64_json(update.preview), len(sent_steps) - 1, created, output_format, size, index)
