"""The streamed answer: server-sent events of a request or a job, until its last image or its failure."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from typing import Protocol

import msgspec
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.scheduling.task import TaskCompleted, TaskProgress
from loadbalancer.schema.errors import ApiError, InternalError
from loadbalancer.schema.responses import Timings
from loadbalancer.schema.stream_events import (
    KEEP_ALIVE,
    CompletedImage,
    PartialImage,
    Progress,
    ProgressThrottle,
    encode,
    encode_error,
)

log = logging.getLogger(__name__)


class ProgressSource(Protocol):
    """What is streamed: an `Errand`, or a `Follower` of a job."""

    job: GenerationSpec
    tasks: list[str]
    #: Previews and finished images in the order in which they came, for the stream to take.
    news: deque[TaskProgress | TaskCompleted]
    #: Why there will be no images.
    failure: ApiError | None
    over: asyncio.Future[None]
    changed: asyncio.Event

    def views(self) -> Iterator[Progress]:
        """Where each image stands that is not finished."""

    def close(self) -> None:
        """The stream has ended."""


class EventStream(StreamingResponse):
    """Closes what it streams when it ends, however it ends: a client that hangs up has its tasks cancelled."""

    media_type = "text/event-stream"

    def __init__(self, source: ProgressSource, *, edit: bool = False) -> None:
        #: The last word against proxies that collect an answer before they pass it on.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_guarded(_EventWriter(source, edit)), headers=headers)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._source.close()


async def _guarded(writer: _EventWriter) -> AsyncIterator[bytes]:
    """The stream with a neutral last event in place of an exception: its status has long been sent."""
    try:
        async for chunk in writer.stream():
            yield chunk
    except Exception:
        log.exception("a stream broke off")
        yield encode_error(InternalError("The server had an error while streaming. Please try again."))


class _EventWriter:
    """Puts what becomes of an errand into events."""

    def __init__(self, source: ProgressSource, edit: bool) -> None:
        self._source = source
        self._edit = edit
        self._throttle = ProgressThrottle()
        self._indexes = {task: index for index, task in enumerate(source.tasks)}
        #: Step of each preview told, by task: a task that had to start again does not show them twice.
        self._previews: dict[str, list[int]] = {task: [] for task in source.tasks}

    async def stream(self) -> AsyncIterator[bytes]:
        """Every event, as soon as it is due."""
        source, throttle = self._source, self._throttle
        while True:
            source.changed.clear()
            chunks = list(self._events(time.monotonic()))
            over = source.over.done()
            if chunks:
                yield b"".join(chunks)
                throttle.sent(time.monotonic())
            elif throttle.silent(time.monotonic()):
                yield KEEP_ALIVE
                throttle.sent(time.monotonic())
            if over:
                return
            with contextlib.suppress(TimeoutError):  # it is time to look at the progress
                await asyncio.wait_for(source.changed.wait(), throttle.wait_s(time.monotonic()))

    def _events(self, now: float) -> Iterator[bytes]:
        if self._throttle.due(now):
            for view in self._throttle.news(list(self._source.views())):
                yield encode(view, edit=self._edit)
        while self._source.news:
            event = self._image_event(self._source.news.popleft())
            if event is not None:
                yield encode(event, edit=self._edit)
        if self._source.failure is not None:
            yield encode_error(self._source.failure)

    def _image_event(self, news: TaskProgress | TaskCompleted) -> PartialImage | CompletedImage | None:
        job, index, created = self._source.job, self._indexes[news.task], int(time.time())
        if isinstance(news, TaskCompleted):
            timings = Timings(news.waited_s, news.ran_s)
            seed = job.inputs[index].seed
            return CompletedImage(
                memoryview(news.image),
                created,
                job.output_format,
                job.size,
                index,
                seed,
                job.model,
                timings,
                flagged=news.flagged or msgspec.UNSET,
            )
        told = self._previews[news.task]
        if news.preview is None or news.step in told:
            return None
        told.append(news.step)
        return PartialImage(memoryview(news.preview), len(told) - 1, created, job.output_format, job.size, index)
