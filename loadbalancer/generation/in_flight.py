"""Requests in flight: connect the scheduler's task updates to the route that awaits or streams them.

Each request closes its `InFlightRequest` in every case, which cancels the tasks that have not ended. The
`RequestTracker` counts open requests and rejects new ones once the server shuts down.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Concatenate, ParamSpec, TypeVar

from loadbalancer.access.token_limit import TokenLimiter
from loadbalancer.context.request_context import CURRENT
from loadbalancer.generation.call_spec import CallSpec
from loadbalancer.generation.deferred_callbacks import DeferredCallbacks
from loadbalancer.generation.in_flight_call import InFlightCalls
from loadbalancer.generation.text.in_flight_text import InFlightTexts
from loadbalancer.generation.text.streamed_texts import StreamFlusher
from loadbalancer.generation.text.text_spec import TextSpec
from loadbalancer.generation.validation import GenerationSpec
from loadbalancer.metrics.prometheus import Metrics
from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.scaling.control_plane import ControlPlane
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.task import (
    DeadlineUnreachable,
    QueueFull,
    TaskCompleted,
    TaskEnded,
    TaskProgress,
    TaskUpdate,
)
from loadbalancer.schema.errors import ApiError, TooBusy, Unavailable, from_ended, model_cannot_start, shutting_down
from loadbalancer.schema.stream_events import Progress
from wire.codec import Frame

Request = TypeVar("Request")
Spec = TypeVar("Spec", GenerationSpec, CallSpec, TextSpec)
Arguments = ParamSpec("Arguments")
#: Code of the error that `ResponseMemory.check` raises.
MEMORY_FULL = "response_memory_of_key_full"
#: Interval of `RequestTracker.wait_idle`.
_IDLE_POLL_S = 0.02


class ResponseMemory:
    """Counts the bytes of results that each owner's clients have not read. Without API keys there is one owner.

    What is under way may exceed the limit: it is ready, and its client waits for it. New requests are refused then.
    """

    def __init__(self, max_bytes_per_key: int, refusals: RefusalCounter) -> None:
        self._max = max_bytes_per_key
        self._refusals = refusals
        self._held: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<ResponseMemory {self.held} bytes, {len(self._held)} owners>"

    @property
    def held(self) -> int:
        """Bytes of all owners."""
        return sum(self._held.values())

    def check(self, owner: str) -> None:
        """Raises `TooBusy` where the owner's responses fill its memory."""
        if self._held.get(owner, 0) >= self._max:
            self._refusals.add(MEMORY_FULL)
            text = (
                "Results that the clients of this API key have not read fill the memory for them. "
                "Please read them, or try again later."
            )
            raise TooBusy(text, code=MEMORY_FULL, retry_after_s=5)

    def add(self, owner: str, size: int) -> None:
        """Count so many more bytes. A negative number of bytes is released."""
        held = self._held.get(owner, 0) + size
        if held:
            self._held[owner] = held
        else:
            self._held.pop(owner, None)


class ResultStream(ABC):
    """The results of one request for one reader: previews and finished images, then the end.

    All methods are called in the event loop.
    """

    def __init__(self, job: GenerationSpec, tasks: list[str]) -> None:
        self.job = job
        self.tasks = tasks
        #: Results that the reader has not taken yet, in order of arrival.
        self.events: deque[TaskProgress | TaskCompleted] = deque()
        #: The error that ended the request.
        self.failure: ApiError | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.changed = asyncio.Event()
        self._context = CURRENT.get()

    @abstractmethod
    def progress(self) -> Iterator[Progress]:
        """Yield the progress of each unfinished image."""

    async def load(self, completed: TaskCompleted) -> TaskCompleted | None:
        """Return the finished image with its file; None if it was deleted."""
        return completed

    @abstractmethod
    def close(self) -> None:
        """Release the stream when its reader has left. Idempotent."""

    def end(self, failure: ApiError | None = None) -> None:
        """End the stream; only the first call counts."""
        if not self.ended.done():
            self.failure = failure
            if failure is not None and self._context is not None:
                self._context.on_error(failure.code or failure.type)
            self.ended.set_result(None)
            self.changed.set()


class InFlightRequest(ResultStream):
    """A request whose images are queued or running."""

    def __init__(self, tracker: RequestTracker, job: GenerationSpec) -> None:
        super().__init__(job, [])
        self.images: dict[str, TaskCompleted] = {}
        #: Steps done and steps in all, by task.
        self.steps: dict[str, tuple[int, int]] = {}
        self._tracker = tracker
        self._is_open = True
        self._held_bytes = 0
        self.tasks = tracker.scheduler.submit(
            job.model,
            job.inputs,
            timeout_s=job.timeout_s,
            priority=job.priority,
            listener=self._on_update,
            sources=job.sources,
            owner=job.owner,
            weight=job.weight,
            already_counted=job.already_counted,
        )

    def __repr__(self) -> str:
        return f"<InFlightRequest {len(self.images)} of {len(self.job.inputs)} images, failure {self.failure!r}>"

    def progress(self) -> Iterator[Progress]:
        for index, task in enumerate(self.tasks):
            estimate = self._tracker.scheduler.estimate(task)
            if estimate is not None:
                step, steps = self.steps.get(task, (0, self.job.inputs[index].steps))
                yield Progress(index, estimate.state, step, steps, estimate.position, estimate.eta_s)

    async def results(self) -> list[TaskCompleted]:
        """Return the images in order. Raises the request's `ApiError`.

        The request is closed after an error, and when this is cancelled.
        """
        try:
            await self.ended
            if self.failure is not None:
                raise self.failure
        except BaseException:
            self.close()
            raise
        return [self.images[task] for task in self.tasks]

    def close(self) -> None:
        """Cancel the unfinished images. Idempotent."""
        if self._is_open:
            self._is_open = False
            unfinished = [task for task in self.tasks if task not in self.images]
            if unfinished:
                self._tracker.scheduler.cancel(unfinished)
            self._tracker.memory.add(self.job.owner, -self._held_bytes)
            self._tracker.unregister(self)

    def _on_update(self, update: TaskUpdate) -> None:
        frames: Sequence[Frame]
        match update:
            case TaskProgress(task=task, step=step, steps=steps, preview=preview):
                self.steps[task] = (step, steps)
                if preview is None:  # readers poll the steps
                    return
                frames = [preview]
            case TaskCompleted(task=task, frames=frames):
                self.images[task] = update
            case TaskEnded():  # one failed image fails the request
                self.end(from_ended(update))
                return
            case _:
                return
        if self._is_open:  # its bytes are held until `close`
            size = sum(map(len, frames))
            self._held_bytes += size
            self._tracker.memory.add(self.job.owner, size)
        self.events.append(update)
        self.changed.set()
        if len(self.images) == len(self.job.inputs):
            self.end()


class RequestTracker:
    """Accepts jobs while the server is open."""

    def __init__(
        self, scheduler: SchedulerService, metrics: Metrics, control: ControlPlane, memory: ResponseMemory
    ) -> None:
        self.scheduler = scheduler
        self.metrics = metrics
        self.memory = memory
        self._control = control
        #: What the calls that end in this turn of the loop do in the next one.
        self.deferred = DeferredCallbacks()
        self.flusher = StreamFlusher()
        self.token_limits = TokenLimiter()
        self.is_open = True
        self._requests: set[object] = set()
        #: A request, local or proxied, is in flight from `register` to `unregister`.
        self.register, self.unregister = self._requests.add, self._requests.discard

    def __repr__(self) -> str:
        return f"<RequestTracker {'open' if self.is_open else 'closed'}, {len(self._requests)} requests>"

    def __len__(self) -> int:
        return len(self._requests)

    def accept(
        self,
        kind: Callable[Concatenate[RequestTracker, Spec, Arguments], Request],
        spec: Spec,
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Request:
        """Make a request of this kind, which queues its tasks. Texts go through `accept_texts`.

        Raises `Unavailable` when shutting down, where it would be too late, and while no worker of the model can
        start. Raises `TooBusy` when full, and where the owner's clients do not read their results.
        """
        model = spec.model
        if not self.is_open:
            raise shutting_down()
        self.memory.check(spec.owner)
        if model in self._control.start_failures and (reason := self.start_failure(model)):
            raise model_cannot_start(model, reason)
        try:
            request = kind(self, spec, *args, **kwargs)
        except DeadlineUnreachable as late:
            text = f"The deadline cannot be met: {late}. Please try again later, or with a larger timeout_s."
            raise Unavailable(text, code="deadline_unreachable", retry_after_s=late.retry_after_s) from None
        except QueueFull as full:
            text = f"Too many requests: {full}. Please try again later."
            raise TooBusy(text, retry_after_s=full.retry_after_s) from None
        self.register(request)
        return request

    def accept_texts(
        self,
        kind: Callable[Concatenate[RequestTracker, TextSpec, Arguments], Request],
        spec: TextSpec,
        *args: Arguments.args,
        **kwargs: Arguments.kwargs,
    ) -> Request:
        """Charge the expected tokens to the key, and queue the texts. Raises `RateLimited`, and as `accept` does."""
        charged = self.charge(spec)
        try:
            return self.accept(kind, spec, *args, **kwargs)
        except ApiError:
            self.token_limits.correct(spec.owner, charged, 0, time.monotonic())
            raise

    def charge(self, spec: TextSpec) -> int:
        """Charge the expected tokens of a request to its key, and return them. Raises `RateLimited`."""
        if spec.tokens_per_minute is None:
            return 0
        charged = self.expected_tokens(spec)
        self.token_limits.charge(spec.owner, spec.tokens_per_minute, charged, time.monotonic())
        return charged

    def charge_until_end(self, spec: TextSpec) -> Callable[[int], None]:
        """Charge likewise. Return a function that corrects it to the tokens that were used. Raises `RateLimited`."""
        charged = self.charge(spec)

        def correct(used: int) -> None:
            if charged:
                self.token_limits.correct(spec.owner, charged, used, time.monotonic())

        return correct

    def expected_tokens(self, spec: TextSpec) -> int:
        """Return the expected tokens of all prompts and texts. Choices of one prompt count it once."""
        prompts = spec.frames[:: spec.choices]
        expect, limit = self.scheduler.expected_tokens, spec.inputs[0].max_tokens
        first = sum(expect(spec.model, spec.owner, len(frame), limit) for frame in prompts)
        further = (len(spec.inputs) - len(prompts)) * expect(spec.model, spec.owner, 0, limit)
        return first + further

    def start_failure(self, model: str) -> str:
        """Return why the model has no worker and gets none; empty if it has one, or may get one."""
        reason = self._control.cannot_start(model, time.monotonic())
        return "" if not reason or self.scheduler.is_ready(model) else reason

    def reject_unservable(self) -> None:
        """End the queued requests of models whose workers cannot start. Jobs wait until they can."""
        if not self._control.start_failures:
            return
        for request in list(self._requests):
            if isinstance(request, InFlightRequest | InFlightCalls | InFlightTexts) and (
                reason := self.start_failure(request.job.model)
            ):
                request.end(model_cannot_start(request.job.model, reason))

    def close(self) -> None:
        """Reject new requests from now on."""
        self.is_open = False

    async def wait_idle(self) -> None:
        """Wait until no request is in flight. Looks now and then, because it runs only while the server stops."""
        while self._requests:
            await asyncio.sleep(_IDLE_POLL_S)
