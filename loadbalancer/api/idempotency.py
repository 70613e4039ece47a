"""Replays of responses: a request with an `Idempotency-Key` runs once, and each repetition gets the same response.

Repetitions follow a running request. Later ones get the response from disk. Only successful responses are stored.
The middleware is plain ASGI, so that it also records streams. Jobs store their keys together with the job.
"""

from __future__ import annotations

import asyncio
import io
import logging
import time
from collections.abc import Coroutine
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.http_helpers import client_disconnected, error_response, read_body, wait_disconnect
from loadbalancer.api.idempotency_keys import HEADER, key_of_request, reused
from loadbalancer.generation.in_flight import ResponseMemory
from loadbalancer.schema.errors import ApiError
from loadbalancer.schema.media_types import prefers_json
from loadbalancer.storage.database import Database, StorageUnavailable
from loadbalancer.storage.records import IdempotencyKey, IdempotencyKeyReused, StoredResponse

log = logging.getLogger(__name__)

_REPLAYED = (b"idempotent-replayed", b"true")
#: Headers that are stored with a response, beside its media type.
_STORED_HEADERS = (
    b"inference-header-content-length",
    b"x-tensor-dtype",
    b"x-tensor-shape",
    b"x-muster-seed",
    b"x-muster-flagged",
    b"x-muster-truncated-tokens",
)
#: Of a body that the application reads.
_REPLAYED_PART_BYTES = 256 * 2**10
#: Last events of streams that fail.
_FAILED = (b"event: error\n", b"event: response.failed\n")


class ResponseRecording:
    """A response in progress, buffered for all its readers."""

    def __init__(self, key: IdempotencyKey, memory: ResponseMemory) -> None:
        self.key = key
        self._memory = memory
        self._held_bytes = 0
        #: The work has ended, and no reader can join.
        self._is_closed = False
        #: Set when its last reader has left: the work ends, and a repetition begins anew.
        self.abandoned = asyncio.Event()
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.chunks: list[bytes] = []
        self.done = False
        self.readers = 0
        #: The route that the request went to, for metrics.
        self.route: Any = None
        self._task: asyncio.Task[None] | None = None
        self._changed = asyncio.Event()

    def __repr__(self) -> str:
        return f"<ResponseRecording {self.status}, {len(self.chunks)} chunks, {self.readers} readers>"

    def start(self, work: Coroutine[None, None, None]) -> None:
        """Run the work that makes the response. `raise_error` raises its exception."""
        self._task = asyncio.create_task(work)
        self._task.add_done_callback(lambda _: self.notify())

    def notify(self) -> None:
        """Wake the readers."""
        self._changed.set()
        self._changed = asyncio.Event()

    def wait_changed(self) -> Coroutine[None, None, Any]:
        """Wait for the first `notify` after this call."""
        return self._changed.wait()

    def add_chunk(self, chunk: bytes) -> None:
        """Count it until the work has ended and all readers have left."""
        self.chunks.append(chunk)
        self._held_bytes += len(chunk)
        self._memory.add(self.key.owner, len(chunk))

    def close(self) -> None:
        """The work has ended."""
        self._is_closed = True
        self._release()

    def _release(self) -> None:
        if self._is_closed and not self.readers:
            self._memory.add(self.key.owner, -self._held_bytes)
            self._held_bytes = 0

    @property
    def is_finished(self) -> bool:
        """Return True once the response is complete or its task has ended."""
        return self.done or self._task is None or self._task.done()

    def raise_error(self) -> None:
        """Raise the exception of the work, if any."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    def leave(self) -> None:
        """Remove a reader. For the application, the last one is the client that disconnects."""
        self.readers -= 1
        if not self.readers and not self.is_finished:
            self.abandoned.set()
        self._release()

    def response(self, last: bytes) -> StoredResponse | None:
        """Return the response that ends with these bytes; None unless it is successful."""
        chunks = [*self.chunks, last]
        final = next((chunk for chunk in reversed(chunks) if chunk), b"")
        if not 200 <= self.status < 300 or any(
            event in final for event in _FAILED
        ):  # a stream fails after its status was sent
            return None
        headers = dict(self.headers)
        media_type = headers.get(b"content-type", b"").decode("latin-1")
        others = {name.decode(): headers[name].decode("latin-1") for name in _STORED_HEADERS if name in headers}
        return StoredResponse(self.status, media_type, b"".join(chunks), others)


class IdempotencyMiddleware:
    """Replays stored and running responses of the application. Only for requests with a key on `ReplayedPaths`."""

    def __init__(self, app: ASGIApp, database: Database, memory: ResponseMemory, max_bytes: int) -> None:
        """`max_bytes` limits the body of a request."""
        self._app = app
        self._database = database
        self._memory = memory
        self._max_bytes = max_bytes
        self._running: dict[tuple[str, str], ResponseRecording] = {}

    def __len__(self) -> int:
        return len(self._running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        given = request.headers[HEADER]
        try:
            received = io.BytesIO()  # its value is not a copy, unlike that of a join
            async for chunk in read_body(request, self._max_bytes):
                received.write(chunk)
            body = received.getvalue()
            kind = request.headers.get("content-type", "")
            if not prefers_json(accept := request.headers.get("accept", "")):  # it is another request
                kind += f"\0{accept}"
            key = await key_of_request(request.state.caller.owner, given, scope["path"], kind, body)
            recording, first = await self._recording(key, scope, body)
            del body, received  # the application releases it before it waits
        except IdempotencyKeyReused:
            await error_response(reused(given), scope["path"])(scope, receive, send)
        except ApiError as error:
            await error_response(error, scope["path"])(scope, receive, send)
        else:
            if isinstance(recording, StoredResponse):
                await _replay(recording, key.owner, self._memory)(scope, receive, send)
            else:
                await self._stream(recording, first, scope, receive, send)

    async def _recording(
        self, key: IdempotencyKey, scope: Scope, body: bytes
    ) -> tuple[ResponseRecording | StoredResponse, bool]:
        """Return the stored, running or new response, and whether it is new.

        Raises `IdempotencyKeyReused`, and `TooBusy` where the owner's responses fill its memory.
        """
        self._memory.check(key.owner)
        running = self._find_running(key)
        if running is None:
            try:
                stored = await self._database.do(lambda repository: repository.recall(key))
            except StorageUnavailable:  # the request can still be answered
                stored = None
            if stored is not None:
                self._memory.check(key.owner)  # many may have been read meanwhile
                return stored, False
            running = self._find_running(key)  # a repetition may have arrived meanwhile
        if running is not None:
            if running.key != key:
                raise IdempotencyKeyReused
            return running, False
        recording = self._running[key[:2]] = ResponseRecording(key, self._memory)
        recording.start(self._record(recording, scope, body))
        return recording, True

    def _find_running(self, key: IdempotencyKey) -> ResponseRecording | None:
        running = self._running.get(key[:2])
        return None if running is None or running.abandoned.is_set() else running

    async def _record(self, recording: ResponseRecording, scope: Scope, body: bytes) -> None:
        """Record the application's response. It is stored before its last bytes are readable."""
        source = io.BytesIO(body)  # no copy; it is dropped once it has been read
        unread = len(body)
        del body  # it may be large, and the response may take long
        is_sent = False

        async def receive() -> Message:
            nonlocal unread, is_sent
            if is_sent:  # no cancellation of the task, which may overtake a response that is to be closed
                await recording.abandoned.wait()
                return {"type": "http.disconnect"}
            part = source.read(_REPLAYED_PART_BYTES)
            unread -= len(part)
            is_sent = not unread
            if is_sent:
                source.close()
            return {"type": "http.request", "body": part, "more_body": not is_sent}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                recording.status, recording.headers = message["status"], list(message["headers"])
                recording.route = scope.get("route")
            elif message["type"] == "http.response.body":
                chunk, last = bytes(message.get("body", b"")), not message.get("more_body", False)
                if last:  # before it is readable: a client that knows the length does not wait for the end
                    await self._store(recording, chunk)
                recording.add_chunk(chunk)
                recording.done = last
            recording.notify()

        try:
            await self._app(scope, receive, send)
        finally:
            if self._running.get(recording.key[:2]) is recording:
                del self._running[recording.key[:2]]
            recording.close()

    async def _store(self, recording: ResponseRecording, last: bytes) -> None:
        response, now = recording.response(last), time.time()
        if response is None:
            return
        try:
            await self._database.do(lambda repository: repository.remember(recording.key, response, now))
        except StorageUnavailable as error:
            log.warning("the response could not be stored for its idempotency key: %s", error)

    async def _stream(
        self, recording: ResponseRecording, first: bool, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Send the response while it is recorded."""
        recording.readers += 1
        disconnect = asyncio.create_task(wait_disconnect(receive))
        sent = 0
        started = False
        try:
            while not disconnect.done():
                finished, chunks = recording.is_finished, recording.chunks[sent:]
                if recording.status and not started:
                    started = True
                    scope["route"] = recording.route
                    extra = [] if first else [_REPLAYED]
                    headers = [*recording.headers, *extra]
                    await send({"type": "http.response.start", "status": recording.status, "headers": headers})
                for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                sent += len(chunks)
                if finished:
                    recording.raise_error()
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                if sent == len(recording.chunks) and recording.is_finished == finished:
                    more = asyncio.create_task(recording.wait_changed())
                    await asyncio.wait({disconnect, more}, return_when=asyncio.FIRST_COMPLETED)
                    more.cancel()
            if not started:
                await error_response(client_disconnected(), scope["path"])(scope, receive, send)
        finally:
            disconnect.cancel()
            recording.leave()


def _replay(stored: StoredResponse, owner: str, memory: ResponseMemory) -> Response:
    """The stored response, counted until the client has read it."""
    size = len(stored.body)
    memory.add(owner, size)
    release = partial(memory.add, owner, -size)
    response = FrameResponse([stored.body], stored.media_type, stored.status, stored.headers, on_end=release)
    response.raw_headers.append(_REPLAYED)
    return response
