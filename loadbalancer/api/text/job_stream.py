"""Server-sent events of a job that generates texts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

from loadbalancer.api.event_stream import ServerSentEvents
from loadbalancer.jobs.job_run import JobSubscriber
from loadbalancer.schema.stream_events import KEEP_ALIVE, KEEP_ALIVE_S, encode_error


class JobTextStream(ServerSentEvents):
    """The events of the endpoint's stream at the end of the job, and comments before, so that no proxy closes it."""

    def __init__(self, source: JobSubscriber, events: Callable[[], Awaitable[bytes]]) -> None:
        """`events` makes the events of complete texts."""
        super().__init__(_stream(source, events), source.close)


async def _stream(source: JobSubscriber, events: Callable[[], Awaitable[bytes]]) -> AsyncIterator[bytes]:
    while not source.ended.done():
        yield KEEP_ALIVE
        await asyncio.wait([source.ended], timeout=KEEP_ALIVE_S)
    if source.failure is not None:
        yield encode_error(source.failure)
    else:
        yield await events()
