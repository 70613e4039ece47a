"""Server-sent events of calls: each chunk as soon as it arrives, then the end of each call."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from typing import Any, Protocol

from loadbalancer.api.call_json import json_of
from loadbalancer.api.event_stream import ServerSentEvents
from loadbalancer.scheduling.task import TaskChunk, TaskCompleted
from loadbalancer.schema.call_events import PredictionCompleted, chunk_event, completed_event
from loadbalancer.schema.call_results import CallResult, InvalidResult
from loadbalancer.schema.errors import ApiError, Conflict, TaskFailed
from loadbalancer.schema.responses import Timings
from loadbalancer.schema.stream_events import KEEP_ALIVE, KEEP_ALIVE_S, encode_error


class CallEvents(Protocol):
    """The results of calls for one reader: those of a request, or those of a job."""

    ended: asyncio.Future[None]
    changed: asyncio.Event
    failure: ApiError | None

    @property
    def tasks(self) -> Sequence[str]:
        """The tasks in the order of the inputs."""

    @property
    def events(self) -> deque[Any]:
        """Chunks and results that the reader has not taken yet: `TaskChunk`, `TaskCompleted`; others are ignored."""

    async def load(self, completed: TaskCompleted) -> TaskCompleted | None:
        """Return the result with its frames; None if it was deleted."""

    def release(self, size: int) -> None:
        """So many bytes of the results have been sent."""

    def close(self) -> None:
        """Release the results when their reader has left. Idempotent."""


class CallStream(ServerSentEvents):
    """The chunks and results of the calls of one model."""

    def __init__(self, source: CallEvents, model: str) -> None:
        super().__init__(_events(source, model), source.close)


async def _events(source: CallEvents, model: str) -> AsyncIterator[bytes]:
    """Yield every event as soon as it is due, and a comment after a silence, so that no proxy closes the connection."""
    chunks: Counter[int] = Counter()
    indexes = {task: index for index, task in enumerate(source.tasks)}
    while True:
        source.changed.clear()
        is_over = source.ended.done()
        while source.events:
            update = source.events.popleft()
            if not isinstance(update, TaskChunk | TaskCompleted):
                continue
            index = indexes[update.task]
            if isinstance(update, TaskChunk):
                yield await _chunk(index, chunks, CallResult([update.part], [update.frame]))
                source.release(len(update.frame))
                continue
            completed = await source.load(update)
            if completed is None:
                raise Conflict("The job was deleted.", code="job_cancelled")
            if completed.parts or not chunks[index]:
                yield await _chunk(index, chunks, CallResult(completed.parts, completed.frames))
            timings = Timings(completed.waited_s, completed.ran_s)
            yield completed_event(PredictionCompleted(index, chunks[index], model, timings))
            source.release(sum(map(len, completed.frames)))
        if is_over:
            if source.failure is not None:
                yield encode_error(source.failure)
            return
        try:
            await asyncio.wait_for(source.changed.wait(), KEEP_ALIVE_S)
        except TimeoutError:
            yield KEEP_ALIVE


async def _chunk(index: int, chunks: Counter[int], result: CallResult) -> bytes:
    """Return the next event of the call. Raises `TaskFailed` for a result that cannot be sent."""
    try:
        event = chunk_event(index, chunks[index], await json_of(result))
    except InvalidResult as error:
        raise TaskFailed(f"The result cannot be sent: {error}.", code="invalid_result") from None
    chunks[index] += 1
    return event
