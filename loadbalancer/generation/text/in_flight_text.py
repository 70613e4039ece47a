"""Texts in flight: the tasks of one request, and its response (`AwaitedTexts`) or stream (`StreamedTexts`).

There is no task of asyncio for a request: its last update makes the response, which the HTTP server awaits as a future.
"""

from __future__ import annotations

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from loadbalancer.context.request_context import CURRENT
from loadbalancer.generation.text.choice import TextChoice
from loadbalancer.generation.text.generated_texts import GeneratedTexts, usage_of
from loadbalancer.generation.text.parsing import text_parser
from loadbalancer.generation.text.text_spec import TextSpec
from loadbalancer.scheduling.task import TaskCompleted, TaskEnded, TaskTokens, TaskUpdate
from loadbalancer.schema.errors import ApiError, TaskFailed
from loadbalancer.schema.stream_events import KEEP_ALIVE, KEEP_ALIVE_S
from loadbalancer.schema.text.ended_texts import from_ended_text
from loadbalancer.schema.text.usage import TextUsage

if TYPE_CHECKING:
    from loadbalancer.generation.in_flight import RequestTracker

#: A stream is ended when its client leaves so many bytes unread.
_MAX_UNREAD_BYTES = 16 << 20


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
        engine = self._tracker.scheduler.engine_info(self.job.model)
        info = None if engine is None else engine.text
        if info is not None:
            for choice in self.choices:
                choice.parser = text_parser(info, self.job.output)

    def _hold(self, size: int) -> None:
        """So many bytes of the response are in memory."""
        if self._is_open and size != self._held_bytes:
            memory, owner = self._tracker.memory, self.job.owner
            memory.remove(owner, self._held_bytes)
            memory.add(owner, size)
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


class EventWriter(Protocol):
    """Makes the events of a stream in the format of its endpoint."""

    def news(self, texts: GeneratedTexts, choices: Sequence[TextChoice]) -> bytes:
        """Return the events of these choices; empty where there is nothing to tell yet."""

    def end(self, texts: GeneratedTexts) -> bytes:
        """Return the last events, of a stream without a failure."""

    def failure(self, error: ApiError) -> bytes:
        """Return the last events of a stream that fails."""


class StreamSink(Protocol):
    """Where a stream goes: to a client."""

    def write(self, data: bytes) -> int:
        """Send a part. Return how many bytes the client has not read, as far as they are in memory."""

    def finish(self) -> None:
        """The stream is complete."""


class StreamedTexts(InFlightTexts):
    """Texts that are sent as they come: once in a turn of the event loop, what has come in it.

    `response` is what `respond` makes of this when the first text has come or after some seconds, so that a request
    which fails at once has a status of its own. A failed or cancelled `response` closes it.
    """

    def __init__(
        self,
        tracker: RequestTracker,
        spec: TextSpec,
        writer: EventWriter,
        respond: Callable[[StreamedTexts], Any],
        keep_alive_s: float = KEEP_ALIVE_S,
    ) -> None:
        """After a silence of `keep_alive_s`, a comment is sent, so that no proxy closes the connection."""
        self._writer, self._respond, self._keep_alive_s = writer, respond, keep_alive_s
        self._sink: StreamSink | None = None
        #: Events until there is a sink.
        self._unsent = b""
        self._is_queued = self._has_sent = False
        loop = asyncio.get_running_loop()
        self.response: asyncio.Future[Any] = loop.create_future()
        super().__init__(tracker, spec)
        self.response.add_done_callback(self._on_response)
        self._timer = loop.call_later(self._keep_alive_s, self._keep_alive)

    def attach(self, sink: StreamSink) -> None:
        """Send everything to this client from now on."""
        self._sink = sink
        unsent, self._unsent = self._unsent, b""
        if unsent:
            self._send(unsent)
        if self._is_ended:
            sink.finish()

    def flush(self) -> None:
        """Send what has come."""
        self._is_queued = False
        if not self._is_ended:
            self._send_news()

    def close(self) -> None:
        self._timer.cancel()
        super().close()

    def _on_news(self) -> None:
        if not self._is_queued:
            self._is_queued = True
            self._tracker.flusher.add(self)

    def _send_news(self) -> None:
        choices = [choice for choice in self.choices if choice.has_news]
        events = self._writer.news(self, choices) if choices else b""
        if events:
            self._send(events)

    def _on_end(self) -> None:
        self._send_news()
        if self.failure is None:
            self._send(self._writer.end(self))
        elif self._sink is None and not self.response.done():
            self.response.set_exception(self.failure)
        else:
            self._send(self._writer.failure(self.failure))
        if self._sink is not None:
            self._sink.finish()

    def _send(self, events: bytes) -> None:
        self._has_sent = True
        sink = self._sink
        if sink is None:
            self._unsent += events
            self._begin()
            return
        unread = sink.write(events)
        if unread != self._held_bytes:
            self._hold(unread)
        if unread > _MAX_UNREAD_BYTES and not self._is_ended:
            text = f"The stream ends because {_MAX_UNREAD_BYTES} bytes of it were not read."
            self.end(TaskFailed(text, code="stream_not_read"))

    def _begin(self) -> None:
        if not self.response.done():
            self.response.set_result(self._respond(self))

    def _keep_alive(self) -> None:
        if self._is_ended:
            return
        self._timer = asyncio.get_running_loop().call_later(self._keep_alive_s, self._keep_alive)
        if not self._has_sent:
            self._send(KEEP_ALIVE)
        self._has_sent = False

    def _on_response(self, response: asyncio.Future[Any]) -> None:
        if response.cancelled() or response.exception() is not None:
            self.close()


class StreamFlusher:
    """Flushes all streams that have news, once in a turn of the event loop."""

    def __init__(self) -> None:
        self._streams: list[StreamedTexts] = []

    def add(self, stream: StreamedTexts) -> None:
        if not self._streams:
            asyncio.get_running_loop().call_soon(self._flush)
        self._streams.append(stream)

    def _flush(self) -> None:
        streams, self._streams = self._streams, []
        for stream in streams:
            stream.flush()
