"""What is kept for an idempotency key, and when: before the client has it."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from loadbalancer.access.api_keys import Caller
from loadbalancer.api.frame_response import FrameResponse
from loadbalancer.api.http_helpers import run_while_connected, wait_disconnect
from loadbalancer.api.idempotency import IdempotencyMiddleware, ResponseRecording
from loadbalancer.api.idempotency_keys import key_of, key_of_request
from loadbalancer.generation.in_flight import MEMORY_FULL, ResponseMemory
from loadbalancer.metrics.refusals import RefusalCounter
from loadbalancer.storage.database import Database
from scripts.harness.processes import PATIENCE_S

_SCOPE: Scope = {
    "type": "http", "method": "POST", "path": "/predict", "query_string": b"", "client": ("127.0.0.1", 1),
    "headers": [(b"idempotency-key", b"k"), (b"content-length", b"0")]
}  # fmt: skip


def memory(max_bytes: int = 1 << 20) -> ResponseMemory:
    return ResponseMemory(max_bytes, RefusalCounter())


async def _post(app: IdempotencyMiddleware, told: asyncio.Queue[Message]) -> None:
    body = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Message:
        if body:
            return body.pop()
        await asyncio.get_running_loop().create_future()  # it never hangs up
        raise AssertionError

    await app({**_SCOPE, "state": {"caller": Caller()}}, receive, told.put)


async def test_not_a_byte_is_told_before_the_answer_is_on_disk(tmp_path: Path) -> None:
    database, slow_disk, asked = Database(tmp_path / "j.sqlite3"), threading.Event(), 0
    busy: list[asyncio.Future[bool]] = []

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        asked += 1
        busy.append(asyncio.ensure_future(database.do(lambda _: slow_disk.wait(PATIENCE_S))))
        await asyncio.sleep(0)
        await PlainTextResponse(f"answer {asked}")(scope, receive, send)

    once = IdempotencyMiddleware(application, database, memory(), max_bytes=100)
    told = asyncio.Queue[Message]()
    posted = asyncio.create_task(_post(once, told))
    try:
        assert (await asyncio.wait_for(told.get(), PATIENCE_S))["status"] == 200
        await asyncio.sleep(0.1)
        assert told.empty(), "a client that counts bytes would take this for the whole answer"
    finally:
        slow_disk.set()
    assert (await asyncio.wait_for(told.get(), PATIENCE_S))["body"] == b"answer 1"
    await posted
    again = asyncio.Queue[Message]()
    await _post(once, again)
    await again.get()
    assert (await again.get())["body"] == b"answer 1"
    assert asked == 1
    await database.close()


async def test_repetition_of_an_abandoned_request_begins_anew(tmp_path: Path) -> None:
    """A client that closes its connection may repeat the request before the work has ended."""
    database, disconnected, may_end, asked = Database(tmp_path / "j.sqlite3"), asyncio.Event(), asyncio.Event(), 0

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            await wait_disconnect(receive)
            disconnected.set()
            await may_end.wait()
        await PlainTextResponse(f"answer {asked}")(scope, receive, send)

    once = IdempotencyMiddleware(application, database, memory(), max_bytes=100)
    messages: asyncio.Queue[Message] = asyncio.Queue()
    messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
    unread = asyncio.Queue[Message]()
    left = asyncio.create_task(once({**_SCOPE, "state": {"caller": Caller()}}, messages.get, unread.put))
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not asked:
                await asyncio.sleep(0.01)
            messages.put_nowait({"type": "http.disconnect"})
            await disconnected.wait()
            told = asyncio.Queue[Message]()
            await _post(once, told)
            assert (await told.get())["status"] == 200
            assert (await told.get())["body"] == b"answer 2"
            may_end.set()
            await left
            while len(once):
                await asyncio.sleep(0.01)
    finally:
        may_end.set()
        await database.close()


async def test_abandoned_response_is_closed(tmp_path: Path) -> None:
    """However far its route is when the client leaves: a response holds results until it is closed."""
    database, unread, opened, closed = Database(tmp_path / "j.sqlite3"), memory(), 0, 0

    def close() -> None:
        nonlocal closed
        closed += 1

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal opened

        async def route() -> FrameResponse:
            nonlocal opened
            for _ in range(rounds):
                await asyncio.sleep(0)
            opened += 1
            return FrameResponse([b"answer"], "text/plain", on_end=close)

        response = await run_while_connected(Request(scope, receive), route())
        await response(scope, receive, send)

    once = IdempotencyMiddleware(application, database, unread, max_bytes=100)
    try:
        for rounds in range(20):
            messages: asyncio.Queue[Message] = asyncio.Queue()
            messages.put_nowait({"type": "http.request", "body": b"", "more_body": False})
            scope = {**_SCOPE, "headers": [(b"idempotency-key", b"%d" % rounds)], "state": {"caller": Caller()}}
            sent: asyncio.Queue[Message] = asyncio.Queue()
            posted = asyncio.create_task(once(scope, messages.get, sent.put))
            async with asyncio.timeout(PATIENCE_S):
                while not len(once) and not posted.done():
                    await asyncio.sleep(0)
                for _ in range(10):
                    await asyncio.sleep(0)
                messages.put_nowait({"type": "http.disconnect"})
                await asyncio.gather(posted, return_exceptions=True)
                while len(once):
                    await asyncio.sleep(0.01)
            assert closed == opened, rounds
        assert opened
        assert unread.held == 0
    finally:
        await database.close()


@pytest.mark.parametrize("size", [10, 1 << 16, (1 << 16) + 1, 1 << 20])
async def test_large_digests_are_made_in_a_thread(size: int) -> None:
    """A type that records where it is read tells the thread of the digest."""
    threads: list[threading.Thread] = []

    class MediaType(str):
        __slots__ = ()

        def encode(self, encoding: str = "utf-8", errors: str = "strict") -> bytes:
            threads.append(threading.current_thread())
            return super().encode(encoding, errors)

    key = await key_of_request("alice", "k", "/v1/jobs", MediaType("text/plain"), bytes(size))
    assert key == key_of("alice", "k", "/v1/jobs", "text/plain", bytes(size))
    assert (threads[0] is threading.current_thread()) is (size <= 1 << 16)


@pytest.mark.parametrize("size", [0, 1, 1 << 18, 600_000])
async def test_application_gets_the_whole_body(tmp_path: Path, size: int) -> None:
    """In parts, so that a form is on disk before all of it is copied."""
    sent, parts = bytes(range(256)) * (size // 256) + b"x" * (size % 256), list[bytes]()

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        more = True
        while more:
            message = await receive()
            parts.append(message["body"])
            more = message["more_body"]
        await PlainTextResponse("done")(scope, receive, send)

    messages = [{"type": "http.request", "body": sent, "more_body": False}]

    async def receive() -> Message:
        if messages:
            return messages.pop()
        await asyncio.get_running_loop().create_future()  # it never hangs up
        raise AssertionError

    told = asyncio.Queue[Message]()
    database = Database(tmp_path / "j.sqlite3")
    once = IdempotencyMiddleware(application, database, memory(), max_bytes=1 << 20)
    headers = [(b"idempotency-key", b"k"), (b"content-length", b"%d" % size)]
    await once({**_SCOPE, "headers": headers, "state": {"caller": Caller()}}, receive, told.put)
    await database.close()
    assert b"".join(parts) == sent
    assert max(map(len, parts)) <= 1 << 18


@given(st.lists(st.sampled_from([b"--B", b"--", b"B", b"-", b"x", b"\r\n"]), max_size=30).map(b"".join))
def test_digest_knows_no_boundary(body: bytes) -> None:
    """A repetition of the same form has another boundary."""
    first = key_of("alice", "k", "/", "multipart/form-data; boundary=B", body)
    again = key_of("alice", "k", "/", "multipart/form-data; boundary=other", body.replace(b"--B", b"--other"))
    assert first == again
    if body:
        assert first != key_of("alice", "k", "/", "multipart/form-data; boundary=B", body[1:])


@pytest.mark.parametrize(
    ("media_type", "one", "other"),
    [
        ('multipart/form-data; boundary="%s"', "a;b", "c,d"),
        ('multipart/form-data; boundary="%s"; charset=utf-8', "a b", "c d"),
        ("multipart/form-data; boundary=%s ", "B", "other"),
        ("multipart/form-data; BOUNDARY=%s;charset=utf-8", "B", "other"),
        ("multipart/form-data; boundary=%s\0image/png", "B", "other"),
        ("multipart/form-data; boundary=%s\0text/event-stream, */*;q=0.5", "B", "other"),
    ],
)
def test_boundary_is_found_in_its_media_type(media_type: str, one: str, other: str) -> None:
    """A null separates what the response is to be."""
    first, again = (key_of("a", "k", "/", media_type % name, f"--{name}\r\nx".encode()) for name in (one, other))
    assert first == again


@pytest.mark.parametrize("boundary", [b"B", b"-", b"-B--", b"x" * 70])
@pytest.mark.parametrize("before", [0, 1, *range((1 << 18) - 75, (1 << 18) + 3)])
def test_digest_is_that_of_the_body_with_short_delimiters(boundary: bytes, before: int) -> None:
    """Also where they are on the edge of two parts, or overlap each other."""
    body = b"y" * before + (b"--" + boundary) * 5 + b"-" * 7 + (b"--" + boundary) * 3
    kind = b"multipart/form-data; boundary=" + boundary
    described = [b"/", b"multipart/form-data; boundary=", body.replace(b"--" + boundary, b"--")]
    assert key_of("alice", "k", "/", kind.decode(), body).digest == hashlib.sha256(b"\0".join(described)).digest()


async def test_responses_that_are_not_read_bound_their_key(tmp_path: Path) -> None:
    """The running one and its repetitions are counted until all of their clients have left."""
    database, unread_bytes = Database(tmp_path / "j.sqlite3"), memory(3000)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("x" * 2000)(scope, receive, send)

    once = IdempotencyMiddleware(application, database, unread_bytes, max_bytes=100)
    unread: list[tuple[asyncio.Queue[Message], asyncio.Task[None]]] = []
    try:
        for number in range(2):  # the first is recorded, the second replayed from the disk
            taken: asyncio.Queue[Message] = asyncio.Queue(1)  # it has room for the start of the response
            unread.append((taken, asyncio.create_task(_post(once, taken))))
            async with asyncio.timeout(PATIENCE_S):
                while unread_bytes.held < 2000 * (number + 1):
                    await asyncio.sleep(0.01)
        refused = asyncio.Queue[Message]()
        await _post(once, refused)
        assert (await refused.get())["status"] == 429
        assert MEMORY_FULL.encode() in (await refused.get())["body"]
        for taken, posted in unread:
            while not posted.done() or not taken.empty():
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(taken.get(), 0.05)
            await posted
        assert unread_bytes.held == 0
        again = asyncio.Queue[Message]()
        await _post(once, again)
        assert (await again.get())["status"] == 200
    finally:
        await database.close()


@pytest.mark.parametrize(
    ("last", "is_stored"),
    [
        (b"event: response.completed\ndata: {}\n\n", True),
        (b"data: [DONE]\n\n", True),
        (b"event: error\ndata: {}\n\ndata: [DONE]\n\n", False),
        (b"event: response.failed\ndata: {}\n\n", False),
    ],
)
def test_failed_streams_are_not_stored(last: bytes, is_stored: bool) -> None:
    recording = ResponseRecording(key_of("a", "k", "/v1/responses", "", b""), memory(1000))
    recording.status = 200
    recording.add_chunk(last)
    assert (recording.response(b"") is not None) == is_stored
