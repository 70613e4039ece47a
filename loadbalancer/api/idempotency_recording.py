"""Requests that may come twice: under one `Idempotency-Key` they are one request, with one answer.

While it runs, who sends it again listens in; afterwards its answer is kept on disk. Only successes are kept: whoever
was refused may try again with the same key. Rule: no HTTP in here, that is `routes.once`.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Coroutine
from typing import Any

from loadbalancer.schema.errors import InvalidRequest, KeyReused
from loadbalancer.storage.records import IdempotencyKey, StoredResponse

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
