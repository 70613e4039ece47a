"""Streams of texts: what has come is written to the client once in a turn of the event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from loadbalancer.generation.text.choice import TextChoice
from loadbalancer.generation.text.generated_texts import GeneratedTexts
from loadbalancer.generation.text.in_flight_text import InFlightTexts
from loadbalancer.generation.text.text_spec import TextSpec
from loadbalancer.schema.errors import ApiError, TaskFailed
from loadbalancer.schema.stream_events import KEEP_ALIVE, KEEP_ALIVE_S

if TYPE_CHECKING:
    from loadbalancer.generation.in_flight import RequestTracker

log = logging.getLogger(__name__)

#: A stream is ended when its client leaves so many bytes unread.
_MAX_UNREAD_BYTES = 16 << 20


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
            try:
                stream.flush()
            except Exception:  # an error here must not affect other requests
                log.exception("a stream cannot be written")
