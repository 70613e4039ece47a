"""Idempotency keys: a request with an `Idempotency-Key` runs once, and each repetition gets the same response.

Repetitions follow a running request. Later ones get the response from disk. Only successful responses are stored.
The middleware is plain ASGI, so that it also records streams. Jobs store their keys together with the job.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
import time
from collections.abc import Coroutine
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from loadbalancer.api.http_helpers import caller, client_disconnected, error_response, read_body, wait_disconnect
from loadbalancer.schema.errors import ApiError, InvalidRequest, KeyReused
from loadbalancer.storage.database import Database, StorageUnavailable
from loadbalancer.storage.records import IdempotencyKey, IdempotencyKeyReused, StoredResponse

log = logging.getLogger(__name__)

HEADER = "idempotency-key"
_REPLAYED = (b"idempotent-replayed", b"true")
_ELSEWHERE = ("/v1/jobs", "/internal")


_KEY = re.compile(r"[\x21-\x7e]{1,255}")
_BOUNDARY = re.compile(rb'boundary="?([^";,]+)"?', re.IGNORECASE)
_FAILED = b"event: error\n"


def key_of(owner: str, given: str, path: str, media_type: str, body: bytes) -> IdempotencyKey:
    """The key with what it stands for. Raises `InvalidRequest`.

    The boundary of a form is left out: clients choose a new one each time that they send the same form.
    """
    if not _KEY.fullmatch(given):
        text = "Invalid header 'Idempotency-Key': Must be 1 to 255 visible ASCII characters."
        raise InvalidRequest(text, code="invalid_idempotency_key")
    kind = media_type.encode("latin-1", "replace")
    boundary = _BOUNDARY.search(kind)
    if boundary is not None:
        kind, body = kind.replace(boundary[1], b""), body.replace(boundary[1], b"")
    digest = hashlib.sha256(b"\0".join([path.encode(), kind, body])).digest()
    return IdempotencyKey(owner, given, digest)


def reused(key: str) -> KeyReused:
    """What is told to another request under a key that has been used."""
    text = f"The Idempotency-Key '{key}' was used for another request. Choose a new key for each request."
    return KeyReused(text)


class ResponseRecording:
    """An answer as it is made, for everyone who waits for it."""

    def __init__(self, key: IdempotencyKey) -> None:
        self.key = key
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
        """Let the work make the answer. What it raises is raised by `outcome`."""
        self._task = asyncio.create_task(work)
        self._task.add_done_callback(lambda _: self.changed())

    def changed(self) -> None:
        """There is more to read, or nothing follows."""
        self._changed.set()
        self._changed = asyncio.Event()

    def more(self) -> Coroutine[None, None, Any]:
        """Waits for the next `changed` from this call on."""
        return self._changed.wait()

    @property
    def over(self) -> bool:
        """Whether nothing follows, as the answer is whole or its making broke."""
        return self.done or self._task is None or self._task.done()

    def outcome(self) -> None:
        """Raises what broke the making of the answer, if something did."""
        if self._task is not None and self._task.done() and not self._task.cancelled():
            self._task.result()

    def leave(self) -> None:
        """A reader has gone. With the last one goes the request, as it would without a key."""
        self.readers -= 1
        if not self.readers and not self.over and self._task is not None:
            self._task.cancel()

    def answer(self, last: bytes) -> StoredResponse | None:
        """What is to be kept of the answer that ends with these bytes; None if it is no success."""
        chunks = [*self.chunks, last]
        told = next((chunk for chunk in reversed(chunks) if chunk), b"")
        if not 200 <= self.status < 300 or _FAILED in told:  # a stream fails after its status was sent
            return None
        media_type = dict(self.headers).get(b"content-type", b"").decode("latin-1")
        return StoredResponse(self.status, media_type, b"".join(chunks))


class IdempotencyMiddleware:
    """Answers what it has seen before; everything else goes on to the application."""

    def __init__(self, app: ASGIApp, database: Database, most: int) -> None:
        """`most` bounds the body of a request in bytes."""
        self._app = app
        self._database = database
        self._most = most
        self._running: dict[tuple[str, str], ResponseRecording] = {}

    def __len__(self) -> int:
        return len(self._running)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        given = Headers(scope=scope).get(HEADER) if scope["type"] == "http" and scope["method"] == "POST" else None
        if given is None or scope["path"].startswith(_ELSEWHERE):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        try:
            body = await read_body(request, self._most)
            kind = request.headers.get("content-type", "")
            key = key_of(caller(request).owner, given, scope["path"], kind, body)
            recording, first = await self._recording(key, scope, body)
        except IdempotencyKeyReused:
            await error_response(reused(given))(scope, receive, send)
        except ApiError as error:
            await error_response(error)(scope, receive, send)
        else:
            if isinstance(recording, StoredResponse):
                await _replay(recording)(scope, receive, send)
            else:
                await self._listen(recording, first, scope, receive, send)

    async def _recording(
        self, key: IdempotencyKey, scope: Scope, body: bytes
    ) -> tuple[ResponseRecording | StoredResponse, bool]:
        """Return the stored, running or new response, and whether it is new. Raises `IdempotencyKeyReused`."""
        running = self._running.get(key[:2])
        if running is None:
            try:
                kept = await self._database.do(lambda repository: repository.recall(key))
            except StorageUnavailable:  # the request itself can be answered all the same
                kept = None
            if kept is not None:
                return kept, False
            running = self._running.get(key[:2])  # it may have come once more meanwhile
        if running is not None:
            if running.key != key:
                raise IdempotencyKeyReused
            return running, False
        recording = self._running[key[:2]] = ResponseRecording(key)
        recording.start(self._record(recording, scope, body))
        return recording, True

    async def _record(self, recording: ResponseRecording, scope: Scope, body: bytes) -> None:
        """Let the application answer into the recording. An answer is kept before its last bytes are told."""
        sent = False

        async def receive() -> Message:
            nonlocal sent
            if sent:  # who listens may go, but that is for `ResponseRecording.leave` to notice
                await asyncio.get_running_loop().create_future()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            if message["type"] == "http.response.start":
                recording.status, recording.headers = message["status"], list(message["headers"])
                recording.route = scope.get("route")
            elif message["type"] == "http.response.body":
                chunk, last = bytes(message.get("body", b"")), not message.get("more_body", False)
                if last:  # before it can be read: whoever was told the length does not wait for the end
                    await self._keep(recording, chunk)
                recording.chunks.append(chunk)
                recording.done = last
            recording.changed()

        try:
            await self._app(scope, receive, send)
        finally:
            del self._running[recording.key[:2]]

    async def _keep(self, recording: ResponseRecording, last: bytes) -> None:
        kept, now = recording.answer(last), time.time()
        if kept is None:
            return
        try:
            await self._database.do(lambda repository: repository.remember(recording.key, kept, now))
        except StorageUnavailable as error:  # the answer is right, and only cannot be given again
            log.warning("an answer could not be kept for its idempotency key: %s", error)

    async def _listen(
        self, recording: ResponseRecording, first: bool, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Pass the answer on as it is made."""
        recording.readers += 1
        gone = asyncio.create_task(wait_disconnect(receive))
        told = 0
        started = False
        try:
            while not gone.done():
                over, chunks = recording.over, recording.chunks[told:]
                if recording.status and not started:
                    started = True
                    scope["route"] = recording.route
                    extra = [] if first else [_REPLAYED]
                    headers = [*recording.headers, *extra]
                    await send({"type": "http.response.start", "status": recording.status, "headers": headers})
                for chunk in chunks:
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
                told += len(chunks)
                if over:
                    recording.outcome()
                    await send({"type": "http.response.body", "body": b"", "more_body": False})
                    return
                if told == len(recording.chunks) and recording.over == over:
                    more = asyncio.create_task(recording.more())
                    await asyncio.wait({gone, more}, return_when=asyncio.FIRST_COMPLETED)
                    more.cancel()
            if not started:
                await error_response(client_disconnected())(scope, receive, send)
        finally:
            gone.cancel()
            recording.leave()


def _replay(kept: StoredResponse) -> Response:
    response = Response(kept.body, kept.status, media_type=None)
    response.raw_headers += [(b"content-type", kept.media_type.encode("latin-1")), _REPLAYED]
    return response
