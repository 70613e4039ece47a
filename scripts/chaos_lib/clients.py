"""The clients: many at once, each honest. What they are told, they do; what they may not repeat, they do not.

A client waits as long as `Retry-After` says, takes up a job again after a balancer's death, and repeats a request whose
connection broke only where that is right: looking, or under an `Idempotency-Key`.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeVar

import aiohttp

from scripts.chaos_lib.fault_plan import Ask
from scripts.chaos_lib.monitor import Watch
from scripts.chaos_lib.outcomes import BALANCER_AWAY, BALANCER_DIED, CUT_OFF, End, Story
from scripts.chaos_lib.profiles import JOB_TIMEOUT_S, TIMEOUT_S
from scripts.chaos_lib.sse_client import CutShort, Heard, Later, listen

Result = TypeVar("Result")
Take = Callable[[aiohttp.ClientResponse], Awaitable[Result]]

GENERATE, PREDICT, JOBS = "/v1/images/generations", "/predict", "/v1/jobs"
#: How long a client stands at a door that is closed to it, and how soon it looks whether somebody opens.
_PATIENCE_S, _KNOCK_S = 240.0, 0.5
#: Beyond the time after which an answer is worthless; the server may have been stopped for a part of it.
_GRACE_S = 60.0
_POLL_S = 1.0
#: A connection breaks a little before the process that held it is seen to be dead.
_SEEN_DEAD_WITHIN_S = 15.0
_SLOW_SOCKET_BYTES = 2048


class Failed(Exception):
    """There will be no image; the text is the reason."""


class Lost(Exception):
    """What must not happen; the text says what is known."""


class Visitors:
    """All clients of one run."""

    def __init__(self, url: str, tokens: Mapping[str, str], watch: Watch) -> None:
        self._url = url
        self._tokens = tokens
        self._watch = watch
        self._began = time.monotonic()
        #: A digest of every whole answer under a key.
        self._answers: dict[str, bytes] = {}

    async def __aenter__(self) -> Visitors:
        # A connection each: a request must never meet one that the server was about to close.
        self._quick = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        slow = aiohttp.TCPConnector(limit=0, force_close=True, socket_factory=_small_socket)
        self._slow = aiohttp.ClientSession(connector=slow, read_bufsize=_SLOW_SOCKET_BYTES)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._quick.close()
        await self._slow.close()

    async def visit(self, story: Story) -> None:
        """Send the request and see it through to its end."""
        ask = story.ask
        story.began = time.monotonic() - self._began
        ways: list[Coroutine[Any, Any, None]] = [self._go(story)]
        if ask.again_s is not None:
            ways.append(self._go(story, ask.again_s))
        await asyncio.gather(*(self._tell(story, way) for way in ways))
        story.ended = time.monotonic() - self._began

    async def _tell(self, story: Story, way: Coroutine[Any, Any, None]) -> None:
        try:
            await way
        except Failed as failure:
            story.close(End.FAILED, str(failure))
        except Lost as loss:
            story.close(End.LOST, str(loss))

    async def _go(self, story: Story, after_s: float = 0.0) -> None:
        await asyncio.sleep(after_s)
        ask = story.ask
        if ask.is_job:
            await self._job(story)
        elif ask.way.startswith("hang_up"):
            try:
                async with asyncio.timeout(ask.leave_s):
                    await self._request(story)
            except TimeoutError:
                story.close(End.LEFT)
        else:
            await self._request(story)

    # ---- plain and streamed requests

    async def _request(self, story: Story) -> None:
        ask = story.ask
        path, streamed = PREDICT if ask.way == "predict" else GENERATE, ask.way in ("stream", "slow", "hang_up_stream")

        async def take(answer: aiohttp.ClientResponse) -> list[bytes]:
            story.accepted = True
            if not streamed:
                whole = await answer.read()
                images = _images(json.loads(whole))
            else:
                heard = await listen(answer, ask.n, slow=ask.way == "slow")
                story.twice += heard.twice
                if heard.failure:
                    raise Failed(heard.failure)
                whole, images = heard.whole, _all(heard, ask)
            self._same_answer(story, whole)
            return images

        images = await self._ask(story, "POST", path, take, _body(ask, streamed), repeat=ask.idempotency is not None)
        if not story.images:
            story.images = images
        story.close(End.COMPLETED)

    def _same_answer(self, story: Story, whole: bytes) -> None:
        key = story.ask.idempotency
        if key is not None:
            digest = hashlib.sha256(whole).digest()
            if self._answers.setdefault(key, digest) != digest:
                story.twice.append("one key, and two answers that differ")

    # ---- jobs

    async def _job(self, story: Story) -> None:
        ask = story.ask
        wanted = {"path": GENERATE, "body": _body(ask, streamed=False, timed=False), "metadata": {"ask": ask.id}}
        view = await self._ask(story, "POST", JOBS, _json, wanted, repeat=ask.idempotency is not None)
        story.accepted = True
        job = str(view["id"])
        if story.job not in (None, job):
            story.twice.append(f"one key, and two jobs: {story.job} and {job}")
        story.job = job
        if ask.way == "follow":
            heard = await self._ask(story, "GET", f"{JOBS}/{job}/events", lambda answer: listen(answer, ask.n))
            story.twice += heard.twice
        await self._until_ended(story, job)
        first, again = [await self._ask(story, "GET", f"{JOBS}/{job}/result", _read) for _ in range(2)]
        if first != again:
            story.twice.append("the job's result is another when it is asked for again")
        if not story.images:
            story.images = _images(json.loads(first))
        story.close(End.COMPLETED)

    async def _until_ended(self, story: Story, job: str) -> None:
        by = time.monotonic() + JOB_TIMEOUT_S + _GRACE_S
        while True:
            view = await self._ask(story, "GET", f"{JOBS}/{job}", _json)
            if view["state"] == "done":
                return
            if view["state"] in ("failed", "cancelled"):
                raise Failed(f"job {view['state']}: {(view['error'] or {}).get('code')}")
            if time.monotonic() > by:
                raise Lost(f"the job is {view['state']} {JOB_TIMEOUT_S + _GRACE_S:g} s after it was accepted")
            await asyncio.sleep(_POLL_S)

    async def jobs_of(self, owner: str) -> list[dict[str, Any]]:
        """Every job of the key, as the server tells them now."""
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

    async def _ask(
        self, story: Story, method: str, path: str, take: Take[Result], body: Any = None, *, repeat: bool = True
    ) -> Result:
        """Ask until there is an answer. Raises `Failed` and `Lost`."""
        ask, by = story.ask, time.monotonic() + _PATIENCE_S
        headers = {"authorization": f"Bearer {self._tokens[ask.owner]}"}
        if ask.idempotency is not None and method == "POST":
            headers["idempotency-key"] = ask.idempotency
        session = self._slow if ask.way == "slow" else self._quick
        limit_s = (JOB_TIMEOUT_S if ask.is_job else TIMEOUT_S) + _GRACE_S
        while time.monotonic() < by:
            sent = time.monotonic()
            try:
                async with session.request(
                    method, f"{self._url}{path}", json=body, headers=headers, timeout=aiohttp.ClientTimeout(limit_s)
                ) as answer:
                    await _refused(answer)
                    return await take(answer)
            except Later as later:
                story.retries[later.reason] += 1
                await asyncio.sleep(later.after_s)
            except aiohttp.ClientConnectorError:  # nothing was sent: to repeat it is always right
                story.retries[BALANCER_AWAY] += 1
                await asyncio.sleep(_KNOCK_S)
            except TimeoutError:
                raise Lost(f"{method} {path} was not answered within {limit_s:g} s") from None
            except (aiohttp.ClientError, CutShort) as error:
                if not await self._watch.explains(sent, _SEEN_DEAD_WITHIN_S):
                    raise Lost(f"{method} {path} broke off, and no balancer had died: {error!r}") from None
                if not repeat:
                    story.accepted = True
                    raise Failed(CUT_OFF) from None
                story.retries[BALANCER_DIED] += 1
        raise Failed("turned away for too long")


async def _refused(answer: aiohttp.ClientResponse) -> None:
    """Raises `Later`, `Failed` or `Lost` where the answer is not what was asked for."""
    if answer.status < 400:
        return
    code = (await answer.json())["error"]["code"]
    if answer.status in (429, 503):
        raise Later(f"{answer.status} {code}", float(answer.headers["retry-after"]))
    if answer.status == 404 and answer.method == "GET":
        raise Lost(f"the job is not known any more: {code}")
    raise Failed(f"{answer.status} {code}")


async def _read(answer: aiohttp.ClientResponse) -> bytes:
    return await answer.read()


async def _json(answer: aiohttp.ClientResponse) -> dict[str, Any]:
    view: dict[str, Any] = await answer.json()
    return view


def _body(ask: Ask, streamed: bool, *, timed: bool = True) -> dict[str, Any]:
    """The request as JSON."""
    body: dict[str, Any] = {
        "prompt": ask.prompt,
        "seed": ask.seed,
        "num_inference_steps": ask.steps,
        "size": ask.size,
        "reproducible": ask.reproducible,
        "priority": ask.priority,
    }
    body |= {"timeout_s": TIMEOUT_S} if timed else {}
    body |= {"n": ask.n} if ask.way != "predict" else {}
    return body | ({"stream": True, "partial_images": 3} if streamed else {})


def _images(answer: dict[str, Any]) -> list[bytes]:
    """The pictures in an answer of the Images API, or of the simple form."""
    encoded = [item["b64_json"] for item in answer["data"]] if "data" in answer else [answer["image"]]
    return [base64.b64decode(one) for one in encoded]


def _all(heard: Heard, ask: Ask) -> list[bytes]:
    return [heard.images[index] for index in range(ask.n)]


def _small_socket(address: Any) -> socket.socket:
    """A socket that takes little at a time, so that a slow reader is felt at the other end."""
    family, kind, protocol, _, _ = address
    made = socket.socket(family, kind, protocol)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SLOW_SOCKET_BYTES)
    return made
