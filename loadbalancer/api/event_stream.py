"""Server-sent events of a request or a job, until its last image or its failure."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Iterator

import msgspec
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from loadbalancer.generation.in_flight import ResultStream
from loadbalancer.scheduling.task import TaskCompleted, TaskProgress
from loadbalancer.schema.errors import InternalError
from loadbalancer.schema.responses import Timings
from loadbalancer.schema.stream_events import (
    KEEP_ALIVE,
    CompletedImage,
    PartialImage,
    ProgressThrottle,
    encode,
    encode_error,
)

log = logging.getLogger(__name__)


class EventStream(StreamingResponse):
    """Always closes its source at the end. When the client disconnects, this cancels the tasks."""

    media_type = "text/event-stream"

    def __init__(self, source: ResultStream, *, edit: bool = False) -> None:
        # Some reverse proxies buffer responses without the second header.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_catch_errors(_EventWriter(source, edit)), headers=headers)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._source.close()


async def _catch_errors(writer: _EventWriter) -> AsyncIterator[bytes]:
    """The stream, with a neutral last event for an exception, because the status is already sent."""
    try:
        async for chunk in writer.stream():
            yield chunk
    except Exception:
        log.exception("a stream failed")
        yield encode_error(InternalError("The server had an error while streaming. Please try again."))


class _EventWriter:
    """Writes the progress and results of a source as events."""

    def __init__(self, source: ResultStream, edit: bool) -> None:
        self._source = source
        self._edit = edit
        self._throttle = ProgressThrottle()
        self._indexes = {task: index for index, task in enumerate(source.tasks)}
        #: Steps whose previews were sent, by task: a restarted task does not send them again.
        self._previews: dict[str, list[int]] = {task: [] for task in source.tasks}

    async def stream(self) -> AsyncIterator[bytes]:
        """Yield every event as soon as it is due."""
        source, throttle = self._source, self._throttle
        while True:
            source.changed.clear()
            chunks = list(self._events(time.monotonic()))
            is_over = source.ended.done()
            if chunks:
                yield b"".join(chunks)
                throttle.on_sent(time.monotonic())
            elif throttle.is_silent(time.monotonic()):
                yield KEEP_ALIVE
                throttle.on_sent(time.monotonic())
            if is_over:
                return
            with contextlib.suppress(TimeoutError):  # the next progress poll is due
                await asyncio.wait_for(source.changed.wait(), throttle.wait_s(time.monotonic()))

    def _events(self, now: float) -> Iterator[bytes]:
        if self._throttle.poll(now):
            for view in self._throttle.changed(list(self._source.progress())):
                yield encode(view, edit=self._edit)
        while self._source.events:
            event = self._image_event(self._source.events.popleft())
            if event is not None:
                yield encode(event, edit=self._edit)
        if self._source.failure is not None:
            yield encode_error(self._source.failure)

    def _image_event(self, update: TaskProgress | TaskCompleted) -> PartialImage | CompletedImage | None:
        job, index, created = self._source.job, self._indexes[update.task], int(time.time())
        if isinstance(update, TaskCompleted):
            timings = Timings(update.waited_s, update.ran_s)
            seed = job.inputs[index].seed
            return CompletedImage(
                memoryview(update.image),
                created,
                job.inputs[0].output_format,
                job.size,
                index,
                seed,
                job.model,
                timings,
                flagged=update.flagged or msgspec.UNSET,
            )
        sent_steps = self._previews[update.task]
        if update.preview is None or update.step in sent_steps:
            return None
        sent_steps.append(update.step)
        return PartialImage(
            memoryview(update.preview), len(sent_steps) - 1, created, job.inputs[0].output_format, job.size, index
        )
