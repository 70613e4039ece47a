"""Server-sent events of a job that generates texts."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from loadbalancer.api.event_stream import ServerSentEvents
from loadbalancer.generation.text.followed_texts import FollowedTexts
from loadbalancer.jobs.job_run import JobSubscriber
from loadbalancer.scheduling.task import TaskCompleted
from loadbalancer.schema.errors import Conflict
from loadbalancer.schema.stream_events import KEEP_ALIVE, KEEP_ALIVE_S

#: Tokens are sent together that come in this time; without a text under way, it is looked for one less often.
_BATCH_S, _IDLE_S = 0.1, 1.0


class JobTextStream(ServerSentEvents):
    """The events of the endpoint's stream, from the first token on: also for a reader that comes later."""

    def __init__(self, source: JobSubscriber, texts: FollowedTexts) -> None:
        super().__init__(_stream(source, texts), source.close)


async def _stream(source: JobSubscriber, texts: FollowedTexts) -> AsyncIterator[bytes]:
    sent_at = float("-inf")
    while True:
        source.changed.clear()
        is_over, running = source.ended.done(), source.texts()
        events = texts.follow(running)
        while source.events:
            update = source.events.popleft()
            if not isinstance(update, TaskCompleted):
                continue
            stored = await source.load(update)
            if stored is None:
                yield events + texts.failure(Conflict("The job was deleted.", code="job_cancelled"))
                return
            events += texts.finish(int(stored.task), bytes(stored.frames[0]))
        if is_over:
            yield events + (texts.end() if source.failure is None else texts.failure(source.failure))
            return
        if not events and time.monotonic() - sent_at >= KEEP_ALIVE_S:
            events = KEEP_ALIVE
        if events:
            yield events
            sent_at = time.monotonic()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(source.changed.wait(), _BATCH_S if running else _IDLE_S)
