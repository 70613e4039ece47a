"""The results of one request for one reader, as they are made."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator

from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.scheduling.task import TaskCompleted, TaskProgress
from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.stream_events import Progress


class ResultStream(ABC):
    """Queued previews and finished images, then the end. All methods are called in the event loop."""

    def __init__(self, job: GenerationSpec, tasks: list[str]) -> None:
        self.job = job
        self.tasks = tasks
        #: Results that the reader has not taken yet, in order of arrival.
        self.events: deque[TaskProgress | TaskCompleted] = deque()
        #: The error that ended the request.
        self.failure: ApiError | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()

    @abstractmethod
    def progress(self) -> Iterator[Progress]:
        """Yield the progress of each unfinished image."""

    @abstractmethod
    def close(self) -> None:
        """Release the stream when its reader has left. Idempotent."""

    def publish(self, event: TaskProgress | TaskCompleted) -> None:
        self.events.append(event)
        self.changed.set()

    def end(self, failure: ApiError | None = None) -> None:
        """End the stream; only the first call counts."""
        if not self.ended.done():
            self.failure = failure
            self.ended.set_result(None)
            self.changed.set()
