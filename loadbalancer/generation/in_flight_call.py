"""Calls in flight: the tasks of one request, and its response (`AwaitedCalls`) or stream (`StreamedCalls`).

There is neither a task nor a future of asyncio for a request that comes straight from the HTTP server. Its response is
made in the turn of the loop after its last update, so that workers get their next tasks first.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

from loadbalancer.context.request_context import CURRENT
from loadbalancer.generation.call_spec import CallSpec
from loadbalancer.scheduling.task import TaskChunk, TaskCompleted, TaskEnded, TaskUpdate
from loadbalancer.schema.call_results import CallResult
from loadbalancer.schema.errors import ApiError, TaskFailed, from_ended_call

if TYPE_CHECKING:
    from loadbalancer.generation.in_flight import RequestTracker


#: A stream is ended when its client leaves so many bytes unread: an engine may produce without an end.
_MAX_UNREAD_BYTES = 64 << 20


class InFlightCalls(ABC):
    """A request whose calls are queued or running. All methods are called in the event loop.

    `close` must be called in every case: it cancels what has not ended, and releases the memory of the results.
    """

    def __init__(self, tracker: RequestTracker, spec: CallSpec) -> None:
        self.job = spec
        self.failure: ApiError | None = None
        self._tracker = tracker
        self._results: dict[str, TaskCompleted] = {}
        self._is_open = True
        self._is_ended = False
        self._held_bytes = 0
        self._context = CURRENT.get()
        self.tasks: list[str] = []
        self.tasks = tracker.scheduler.submit(
            spec.model,
            spec.inputs,
            timeout_s=spec.timeout_s,
            priority=spec.priority,
            listener=self._on_update,
            own_frames=spec.frames,
            owner=spec.owner,
            weight=spec.weight,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._results)} of {len(self.job.inputs)}, failure {self.failure!r}>"

    @abstractmethod
    def _on_end(self) -> None:
        """All results are there, or `failure` is set."""

    @abstractmethod
    def _on_piece(self, update: TaskChunk | TaskCompleted) -> None:
        """A chunk or a result has arrived."""

    @property
    def held_bytes(self) -> int:
        """Bytes of the results that are held until `close`, or until a stream has sent them."""
        return self._held_bytes

    def end(self, failure: ApiError | None = None) -> None:
        """End the request; only the first call counts."""
        if not self._is_ended:
            self._is_ended = True
            self.failure = failure
            if failure is not None and self._context is not None:
                self._context.on_error(failure.code or failure.type)
            self._on_end()

    def close(self) -> None:
        """Cancel the unfinished calls. Idempotent."""
        if self._is_open:
            self._is_open = False
            self._cancel_unfinished()
            self._tracker.memory.add(self.job.owner, -self._held_bytes)
            self._tracker.unregister(self)

    def _cancel_unfinished(self) -> None:
        if len(self._results) < len(self.tasks):
            self._tracker.scheduler.cancel([task for task in self.tasks if task not in self._results])

    def _on_update(self, update: TaskUpdate) -> None:
        if isinstance(update, TaskCompleted):
            self._results[update.task] = update
            self._hold(sum(map(len, update.frames)))
            self._on_piece(update)
            if len(self._results) == len(self.job.inputs):
                self.end()
        elif isinstance(update, TaskChunk):
            self._on_piece(update)
        elif isinstance(update, TaskEnded):  # one failed call fails the request
            index = self.tasks.index(update.task) if update.task in self.tasks else 0
            param = self.job.param and f"{self.job.param}[{index}]"
            self.end(from_ended_call(update, param))

    def _hold(self, size: int) -> None:
        if self._is_open:
            self._held_bytes += size
            self._tracker.memory.add(self.job.owner, size)


#: Takes a response, or the error in place of it.
Receiver = Callable[[Any, BaseException | None], None]


class AwaitedCalls(InFlightCalls):
    """Calls that are answered at once, when the last of them has ended. They are closed if they fail or are cancelled.

    `respond` makes the response from the results or the failure: it returns it or a future of it, or raises.
    """

    def __init__(self, tracker: RequestTracker, spec: CallSpec, respond: Callable[[AwaitedCalls], Any]) -> None:
        self._respond = respond
        self._receiver: Receiver | None = None
        self._response: asyncio.Future[Any] | None = None
        super().__init__(tracker, spec)

    @property
    def results(self) -> list[CallResult]:
        """The results in the order of the inputs, when all are there."""
        results = self._results
        return [CallResult(results[task].parts, results[task].frames) for task in self.tasks]

    @property
    def response(self) -> asyncio.Future[Any]:
        """The response as a future, in place of `deliver_to`. The calls are cancelled with it."""
        future = self._response
        if future is None:
            self._response = future = asyncio.get_running_loop().create_future()
            future.add_done_callback(self._on_response)
            self._receiver = self._set_response
        return future

    def __await__(self) -> Generator[Any, None, Any]:
        try:
            return (yield from self.response.__await__())
        except BaseException:  # a cancellation may arrive when there is a response, which nobody gets then
            self.close()
            raise

    def deliver_to(self, receiver: Receiver) -> None:
        """Pass the response, or the error, to the `receiver` in a later turn of the loop, unless it is cancelled.

        This must be called in the turn that has queued the calls.
        """
        self._receiver = receiver

    def cancel(self) -> None:
        """The client has left: nobody wants the response."""
        self._receiver = None
        self.close()

    def _on_end(self) -> None:
        self._tracker.deferred.add(self._make_response)

    def _on_piece(self, update: TaskChunk | TaskCompleted) -> None:
        """Results wait for the last one, and chunks were not asked for."""

    def _make_response(self) -> None:
        if self._receiver is None:
            return
        try:
            response = self._respond(self)
        except Exception as error:
            self._deliver(None, error)
            return
        if isinstance(response, asyncio.Future):
            response.add_done_callback(self._take_response)
        else:
            self._deliver(response, None)

    def _take_response(self, made: asyncio.Future[Any]) -> None:
        error = asyncio.CancelledError() if made.cancelled() else made.exception()
        self._deliver(None if error is not None else made.result(), error)

    def _deliver(self, response: Any, error: BaseException | None) -> None:
        receiver, self._receiver = self._receiver, None
        if error is not None:
            self.close()
        if receiver is not None:
            receiver(response, error)

    def _set_response(self, response: Any, error: BaseException | None) -> None:
        future = self._response
        if future is None or future.done():
            return
        if error is None:
            future.set_result(response)
        elif isinstance(error, asyncio.CancelledError):
            future.cancel()
        else:
            future.set_exception(error)

    def _on_response(self, response: asyncio.Future[Any]) -> None:
        if response.cancelled():
            self.cancel()


class StreamedCalls(InFlightCalls):
    """Calls whose chunks and results are in `events` until their reader takes them."""

    def __init__(self, tracker: RequestTracker, spec: CallSpec) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()
        self.events: deque[TaskChunk | TaskCompleted] = deque()
        super().__init__(tracker, spec)

    async def load(self, completed: TaskCompleted) -> TaskCompleted | None:
        """Return the result with its frames, which are in memory."""
        return completed

    def release(self, size: int) -> None:
        """The stream has sent so many bytes of its results."""
        if self._is_open:
            self._held_bytes -= size
            self._tracker.memory.add(self.job.owner, -size)

    def _on_end(self) -> None:
        self.ended.set_result(None)
        self.changed.set()

    def _on_piece(self, update: TaskChunk | TaskCompleted) -> None:
        if isinstance(update, TaskChunk):
            self._hold(len(update.frame))
        self.events.append(update)
        self.changed.set()
        if self._held_bytes > _MAX_UNREAD_BYTES and not self._is_ended and isinstance(update, TaskChunk):
            self._cancel_unfinished()
            text = f"The stream ends because {_MAX_UNREAD_BYTES} bytes of it were not read."
            self.end(TaskFailed(text, code="stream_not_read"))
