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

from loadbalancer.generation.validation import Job
from loadbalancer.scheduling.task import TaskCompleted, TaskProgress
from loadbalancer.schema.errors import ApiError, InternalError
from loadbalancer.schema.responses import Timings
from loadbalancer.schema.stream_events import (
    KEEP_ALIVE,
    CompletedImage,
    Pace,
    PartialImage,
    Progress,
    encode,
    encode_error,
)

log = logging.getLogger(__name__)


class Watched(Protocol):
    """What is streamed: an `Errand`, or a `Follower` of a job."""

    job: Job
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

    def __init__(self, errand: Watched, *, edit: bool = False) -> None:
        #: The last word against proxies that collect an answer before they pass it on.
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_guarded(_Teller(errand, edit)), headers=headers)
        self._errand = errand

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the events."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._errand.close()


async def _guarded(teller: _Teller) -> AsyncIterator[bytes]:
    """The stream with a neutral last event in place of an exception: its status has long been sent."""
    try:
        async for chunk in teller.stream():
            yield chunk
    except Exception:
        log.exception("a stream broke off")
        yield encode_error(InternalError("The server had an error while streaming. Please try again."))


class _Teller:
    """Puts what becomes of an errand into events."""

    def __init__(self, errand: Watched, edit: bool) -> None:
        self._errand = errand
        self._edit = edit
        self._pace = Pace()
        self._indexes = {task: index for index, task in enumerate(errand.tasks)}
        #: Step of each preview told, by task: a task that had to start again does not show them twice.
        self._previews: dict[str, list[int]] = {task: [] for task in errand.tasks}

    async def stream(self) -> AsyncIterator[bytes]:
        """Every event, as soon as it is due."""
        errand, pace = self._errand, self._pace
        while True:
            errand.changed.clear()
            chunks = list(self._tell(time.monotonic()))
            over = errand.over.done()
            if chunks:
                yield b"".join(chunks)
                pace.sent(time.monotonic())
            elif pace.silent(time.monotonic()):
                yield KEEP_ALIVE
                pace.sent(time.monotonic())
            if over:
                return
            with contextlib.suppress(TimeoutError):  # it is time to look at the progress
                await asyncio.wait_for(errand.changed.wait(), pace.wait_s(time.monotonic()))

    def _tell(self, now: float) -> Iterator[bytes]:
        if self._pace.due(now):
            for view in self._pace.news(list(self._errand.views())):
                yield encode(view, edit=self._edit)
        while self._errand.news:
            event = self._picture(self._errand.news.popleft())
            if event is not None:
                yield encode(event, edit=self._edit)
        if self._errand.failure is not None:
            yield encode_error(self._errand.failure)

    def _picture(self, news: TaskProgress | TaskCompleted) -> PartialImage | CompletedImage | None:
        job, index, created = self._errand.job, self._indexes[news.task], int(time.time())
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
