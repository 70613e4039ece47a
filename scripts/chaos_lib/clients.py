"""Concurrent clients that follow the protocol.

A client waits for `Retry-After`, and polls its job again after a balancer's death. It repeats a request after a
broken connection only if it is a GET or has an `Idempotency-Key`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import aiohttp

from scripts.chaos_lib.monitor import Monitor
from scripts.chaos_lib.outcomes import BALANCER_DIED, BALANCER_UNREACHABLE, CUT_OFF, EndState, Outcome
from scripts.chaos_lib.payloads import body_of, path_of, results_of
from scripts.chaos_lib.profiles import JOB_TIMEOUT_S, TIMEOUT_S, Profile
from scripts.chaos_lib.sse_client import RetryLater, StreamTruncated, read_stream

Result = TypeVar("Result")
ReadAnswer = Callable[[aiohttp.ClientResponse], Awaitable[Result]]

JOBS = "/v1/jobs"
#: How long a client retries a rejected request, and the pause before it connects again.
_PATIENCE_S, _RECONNECT_S = 240.0, 0.5
#: Added to every time limit, because the server may be stopped for a part of the time.
_GRACE_S = 60.0
_POLL_S = 1.0
#: A connection breaks shortly before the death of its process is observed.
_DEATH_VISIBLE_S = 15.0
_SLOW_SOCKET_BYTES = 2048


class RequestFailed(Exception):
    """The request ends without an image; the text is the reason."""


class RequestLost(Exception):
    """The request is lost, which is a violation; the text describes it."""


class ChaosClients:
    """All clients of one run."""

    def __init__(self, url: str, tokens: Mapping[str, str], monitor: Monitor, profile: Profile) -> None:
        self._url = url
        self._tokens = tokens
        self._monitor = monitor
        self._profile = profile
        self._started_at = time.monotonic()
        #: A digest of the first complete answer of each idempotency key.
        self._answers: dict[str, bytes] = {}

    async def __aenter__(self) -> ChaosClients:
        # One connection per request: the server may be about to close an idle one.
        self._quick = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        slow = aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=_small_socket)
        self._slow = aiohttp.ClientSession(connector=slow, read_bufsize=_SLOW_SOCKET_BYTES)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._quick.close()
        await self._slow.close()

    async def send(self, outcome: Outcome) -> None:
        """Send the request and follow it to its end."""
        request = outcome.request
        outcome.started = time.monotonic() - self._started_at
        attempts: list[Coroutine[Any, Any, None]] = [self._attempt(outcome)]
        if request.resend_after_s is not None:
            attempts.append(self._attempt(outcome, request.resend_after_s))
        await asyncio.gather(*(self._record(outcome, attempt) for attempt in attempts))
        outcome.ended = time.monotonic() - self._started_at

    async def _record(self, outcome: Outcome, attempt: Coroutine[Any, Any, None]) -> None:
        try:
            await attempt
        except RequestFailed as failure:
            outcome.close(EndState.FAILED, str(failure))
        except RequestLost as loss:
            outcome.close(EndState.LOST, str(loss))

    async def _attempt(self, outcome: Outcome, after_s: float = 0.0) -> None:
        await asyncio.sleep(after_s)
        request = outcome.request
        if request.is_job:
            await self._run_job(outcome)
        elif request.mode.startswith("abort"):
            try:
                async with asyncio.timeout(request.abort_after_s):
                    await self._request(outcome)
            except TimeoutError:
                outcome.close(EndState.ABORTED)
        elif request.mode == "repeat":
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(request.abort_after_s):
                    await self._request(outcome)
            await self._request(outcome)
        else:
            await self._request(outcome)

    # ---- plain and streamed requests

    async def _request(self, outcome: Outcome) -> None:
        request = outcome.request
        path, streamed = path_of(self._profile, request), request.mode in ("stream", "slow", "abort_stream")

        async def take(answer: aiohttp.ClientResponse) -> list[bytes]:
            outcome.accepted = True
            if not streamed:
                body = await answer.read()
                images = results_of(json.loads(body))
            else:
                stream = await read_stream(answer, request.n, slow=request.mode == "slow")
                outcome.duplicates += stream.duplicates
                if stream.failure:
                    raise RequestFailed(stream.failure)
                body, images = stream.body, [stream.images[index] for index in range(request.n)]
            self._check_same_answer(outcome, body)
            return images

        images = await self._exchange(
            outcome,
            "POST",
            path,
            take,
            body_of(self._profile, request, streamed=streamed, timed=True),
            repeat=request.has_key,
        )
        if not outcome.images:
            outcome.images = images
        outcome.close(EndState.COMPLETED)

    def _check_same_answer(self, outcome: Outcome, body: bytes) -> None:
        key = outcome.request.idempotency
        if key is not None:
            digest = hashlib.sha256(body).digest()
            if self._answers.setdefault(key, digest) != digest:
                outcome.duplicates.append("one key has two different answers")

    # ---- jobs

    async def _run_job(self, outcome: Outcome) -> None:
        request = outcome.request
        body = {
            "path": path_of(self._profile, request),
            "body": body_of(self._profile, request, streamed=False, timed=False),
            "metadata": {"request": request.id},
        }
        view = await self._exchange(outcome, "POST", JOBS, _json, body, repeat=request.has_key)
        outcome.accepted = True
        job = str(view["id"])
        if outcome.job not in (None, job):
            outcome.duplicates.append(f"one key has two jobs: {outcome.job} and {job}")
        outcome.job = job
        if request.mode == "follow":
            stream = await self._exchange(
                outcome, "GET", f"{JOBS}/{job}/events", lambda answer: read_stream(answer, request.n)
            )
            outcome.duplicates += stream.duplicates
        await self._wait_job_end(outcome, job)
        first, again = [await self._exchange(outcome, "GET", f"{JOBS}/{job}/result", _read) for _ in range(2)]
        if first != again:
            outcome.duplicates.append("the job's result has changed")
        if not outcome.images:
            outcome.images = results_of(json.loads(first))
        outcome.close(EndState.COMPLETED)

    async def _wait_job_end(self, outcome: Outcome, job: str) -> None:
        deadline = time.monotonic() + JOB_TIMEOUT_S + _GRACE_S
        while True:
            view = await self._exchange(outcome, "GET", f"{JOBS}/{job}", _json)
            if view["state"] == "done":
                return
            if view["state"] in ("failed", "cancelled"):
                raise RequestFailed(f"job {view['state']}: {(view['error'] or {}).get('code')}")
            if time.monotonic() > deadline:
                raise RequestLost(f"the job is {view['state']} {JOB_TIMEOUT_S + _GRACE_S:g} s after it was accepted")
            await asyncio.sleep(_POLL_S)

    async def list_jobs(self, owner: str) -> list[dict[str, Any]]:
        """Return every job of the key."""
        found: list[dict[str, Any]] = []
        headers, after = {"authorization": f"Bearer {self._tokens[owner]}"}, ""
        while True:
            async with self._quick.get(f"{self._url}{JOBS}?limit=100{after}", headers=headers) as answer:
                page = await answer.json()
            found += page["data"]
            if not page["has_more"]:
                return found
            after = f"&after={page['last_id']}"

    # ---- one exchange

    async def _exchange(
        self,
        outcome: Outcome,
        method: str,
        path: str,
        take: ReadAnswer[Result],
        body: Any = None,
        *,
        repeat: bool = True,
    ) -> Result:
        """Repeat the request until it is answered. Raises `RequestFailed` and `RequestLost`."""
        request, deadline = outcome.request, time.monotonic() + _PATIENCE_S
        headers = {"authorization": f"Bearer {self._tokens[request.owner]}"}
        if request.idempotency is not None and method == "POST":
            headers["idempotency-key"] = request.idempotency
        session = self._slow if request.mode == "slow" else self._quick
        limit_s = (JOB_TIMEOUT_S if request.is_job else TIMEOUT_S) + _GRACE_S
        while time.monotonic() < deadline:
            sent = time.monotonic()
            try:
                async with session.request(
                    method, f"{self._url}{path}", json=body, headers=headers, timeout=aiohttp.ClientTimeout(limit_s)
                ) as answer:
                    await _raise_for_status(answer)
                    return await take(answer)
            except RetryLater as later:
                outcome.retries[later.reason] += 1
                await asyncio.sleep(later.after_s)
            except aiohttp.ClientConnectorError:  # nothing was sent, so a retry is safe
                outcome.retries[BALANCER_UNREACHABLE] += 1
                await asyncio.sleep(_RECONNECT_S)
            except TimeoutError:
                raise RequestLost(f"{method} {path} was not answered within {limit_s:g} s") from None
            except (aiohttp.ClientError, StreamTruncated) as error:
                if not await self._monitor.has_death_since(sent, _DEATH_VISIBLE_S):
                    raise RequestLost(f"{method} {path} broke, and no balancer had died: {error!r}") from None
                if not repeat:
                    outcome.accepted = True
                    raise RequestFailed(CUT_OFF) from None
                outcome.retries[BALANCER_DIED] += 1
        raise RequestFailed("rejected for too long")


async def _raise_for_status(answer: aiohttp.ClientResponse) -> None:
    """Raise `RetryLater`, `RequestFailed` or `RequestLost` for an error status."""
    if answer.status < 400:
        return
    code = (await answer.json())["error"]["code"]
    if answer.status in (429, 503):
        raise RetryLater(f"{answer.status} {code}", float(answer.headers["retry-after"]))
    if answer.status == 404 and answer.method == "GET":
        raise RequestLost(f"the server does not know the job any more: {code}")
    raise RequestFailed(f"{answer.status} {code}")


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    return await answer.read()


async def _json(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    view: dict[str, Any] = await answer.json()
    return view


def _small_socket(address: Any) -> socket.socket:
    """Return a socket with a small receive buffer, so that a slow reader blocks the server."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_SOCKET_BYTES)
    return made
