"""Texts in flight: the tasks of one request, and its response (`AwaitedTexts`). For streams, see `streamed_texts`.

There is no task of asyncio for a request: its last update makes the response, which the HTTP server awaits as a future.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from loadbalancer.context.request_context import CURRENT
from loadbalancer.generation.text.choice import TextChoice
from loadbalancer.generation.text.generated_texts import usage_of
from loadbalancer.generation.text.parsing import text_parser
from loadbalancer.generation.text.text_spec import TextSpec
from loadbalancer.scheduling.task import TaskCompleted, TaskEnded, TaskTokens, TaskUpdate
from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.text.ended_texts import from_ended_text
from loadbalancer.schema.text.usage import TextUsage

if TYPE_CHECKING:
    from loadbalancer.generation.in_flight import RequestTracker


class InFlightTexts(ABC):
    """A request whose texts are queued or running. All methods are called in the event loop.

    `close` must be called in every case: it cancels what has not ended, and releases the memory of the texts.
    """

    def __init__(self, tracker: RequestTracker, spec: TextSpec) -> None:
        """Raises `QueueFull`."""
        self.job = spec
        self.failure: ApiError | None = None
        self.choices = [TextChoice(index) for index in range(len(spec.inputs))]
        self._tracker, self._metrics = tracker, tracker.metrics.texts.model(spec.model)
        #: What its key was charged before.
        self._charged = 0 if spec.tokens_per_minute is None else tracker.expected_tokens(spec)
        self._running: dict[str, TextChoice] = {}
        self._context = CURRENT.get()
        self._is_open = True
        self._is_ended = False
        self._held_bytes = 0
        #: Model and parser of the choices are known.
        self._has_parsers = False
        self._started = time.monotonic()
        #: Time of the first token of each task.
        self._first_token_at: dict[str, float] = {}
        self.tasks = tracker.scheduler.submit(
            spec.model,
            spec.inputs,
            timeout_s=spec.timeout_s,
            priority=spec.priority,
            listener=self._on_update,
            own_frames=[[frame] for frame in spec.frames],
            owner=spec.owner,
            weight=spec.weight,
        )
        self._running = dict(zip(self.tasks, self.choices, strict=True))

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {len(self._running)} of {len(self.choices)} running, failure {self.failure!r}>"

    @abstractmethod
    def _on_news(self) -> None:
        """A choice has taken in an output."""

    @abstractmethod
    def _on_end(self) -> None:
        """All texts are complete, or `failure` is set."""

    @property
    def model(self) -> str:
        return self.job.model

    @property
    def alternatives(self) -> int | None:
        return self.job.inputs[0].logprobs

    @property
    def usage(self) -> TextUsage:
        return usage_of(self.choices, self.job.choices)

    @property
    def limit_headers(self) -> dict[str, str]:
        """What tells the client the token limit of its key; empty without one."""
        if self.job.tokens_per_minute is None:
            return {}
        return self._tracker.token_limits.headers(self.job.owner, time.monotonic())

    def end(self, failure: ApiError | None = None) -> None:
        """End the request; only the first call counts."""
        if not self._is_ended:
            self._is_ended = True
            self.failure = failure
            if self._context is not None:
                usage = self.usage
                self._context.on_usage(usage.prompt_tokens, usage.completion_tokens)
                if failure is not None:
                    self._context.on_error(failure.code or failure.type)
            if failure is not None:
                self._cancel_running()
            self._on_end()

    def close(self) -> None:
        """Cancel the unfinished texts. Idempotent."""
        if self._is_open:
            self._hold(0)
            self._is_open = False
            self._cancel_running()
            self._tracker.unregister(self)
            if self._charged:
                used, now = self.usage.total_tokens, time.monotonic()
                self._tracker.token_limits.correct(self.job.owner, self._charged, used, now)

    def _cancel_running(self) -> None:
        if self._running:
            self._tracker.scheduler.cancel(list(self._running))
            self._running.clear()

    def _on_update(self, update: TaskUpdate) -> None:
        choice = self._running.get(update.task)
        if choice is None:
            if isinstance(update, TaskEnded) and not self._running:  # it ended while it was submitted
                self.end(from_ended_text(update, self.job.prompt_param))
            return
        if isinstance(update, TaskTokens):
            if not self._has_parsers:
                self._add_parsers()
            if update.task not in self._first_token_at:
                now = self._first_token_at[update.task] = time.monotonic()
                self._metrics.first_token(now - self._started)
                if self._context is not None:
                    self._context.on_output(now)
            choice.add(update.output)
            self._on_news()
        elif isinstance(update, TaskCompleted):
            del self._running[update.task]
            self._count_tokens(update.task, choice)
            if not self._running:
                self.end()
        elif isinstance(update, TaskEnded):  # one failed text fails the request
            del self._running[update.task]
            self.end(from_ended_text(update, self.job.prompt_param))

    def _count_tokens(self, task: str, choice: TextChoice) -> None:
        first, generated = self._first_token_at.get(task), choice.generated_tokens
        per_token_s = None
        if first is not None and generated > 1:
            per_token_s = (time.monotonic() - first) / (generated - 1)
        self._metrics.ended(
            prompt=choice.prompt_tokens,
            cached=choice.cached_tokens,
            generated=generated,
            per_token_s=per_token_s,
        )

    def _add_parsers(self) -> None:
        """The engine is known, and with it the marks of its texts."""
        self._has_parsers = True
        engine = self._tracker.scheduler.pools[self.job.model].engine_info
        info = None if engine is None else engine.text
        if info is not None:
            for choice in self.choices:
                choice.parser = text_parser(info, self.job.output)

    def _hold(self, size: int) -> None:
        """So many bytes of the response are in memory."""
        if self._is_open and size != self._held_bytes:
            self._tracker.memory.add(self.job.owner, size - self._held_bytes)
            self._held_bytes = size


class AwaitedTexts(InFlightTexts):
    """Texts that are answered at once, when the last of them has ended. A failed or cancelled `response` closes them.

    `respond` makes the response from the choices and their usage.
    """

    def __init__(self, tracker: RequestTracker, spec: TextSpec, respond: Callable[[AwaitedTexts], Any]) -> None:
        self._respond = respond
        self.response: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        super().__init__(tracker, spec)
        self.response.add_done_callback(self._on_response)

    def _on_news(self) -> None:
        """Texts wait for the last one."""

    def _on_end(self) -> None:
        if self.response.done():
            return
        if self.failure is not None:
            self.response.set_exception(self.failure)
            return
        self._hold(sum(choice.chars for choice in self.choices))
        try:
            self.response.set_result(self._respond(self))
        except ApiError as error:
            self.response.set_exception(error)

    def _on_response(self, response: asyncio.Future[Any]) -> None:
        if response.cancelled() or response.exception() is not None:
            self.close()
