"""Loads: users who wait for answers, arrivals at a rate, and clients that leave."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from scripts.bench.serving.peers_lib.deployment import BODY, Measurement
from scripts.bench.serving.peers_lib.http_client import HttpConnection, raw_post
from scripts.bench.serving.workloads import completion_rate, poisson, quantile

#: In place of a status.
LOST, TIMED_OUT = 0, -1
REFUSED = frozenset({429, 503})
_NAMES = {LOST: "connection lost", TIMED_OUT: "no answer"}
_NO_ERRORS = {"status 200", *(f"status {status}" for status in REFUSED)}
_RECONNECT_S = 0.05


class Outcome(NamedTuple):
    """One request."""

    sent_at: float
    ended_at: float
    #: The HTTP status, `LOST` or `TIMED_OUT`.
    status: int


class Target(NamedTuple):
    """Where the requests go."""

    url: str
    headers: Mapping[str, str]

    @property
    def raw(self) -> bytes:
        return raw_post(self.url, BODY, self.headers)


async def closed_loop(target: Target, users: int, seconds: float, grace_s: float = 0.0) -> list[Outcome]:
    """Run users who each wait for an answer before the next request.

    Requests that are open at the end get `grace_s` more; with a grace, those without an answer then are `TIMED_OUT`.
    """
    raw, outcomes = target.raw, list[Outcome]()
    end = time.perf_counter() + seconds

    async def user() -> None:
        connection: HttpConnection | None = None
        while (sent_at := time.perf_counter()) < end:
            try:
                if connection is None or not connection.is_open:
                    connection = await HttpConnection.open(target.url)
                status = await connection.request(raw)
            except OSError:
                connection, status = None, LOST
            except asyncio.CancelledError:
                if grace_s:
                    outcomes.append(Outcome(sent_at, time.perf_counter(), TIMED_OUT))
                raise
            outcomes.append(Outcome(sent_at, time.perf_counter(), status))
            if status != 200:
                await asyncio.sleep(_RECONNECT_S)

    tasks = [asyncio.create_task(user()) for _ in range(users)]
    _, late = await asyncio.wait(tasks, timeout=seconds + grace_s)
    for task in late:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return outcomes


async def open_loop(target: Target, rate: float, seconds: float, timeout_s: float) -> list[Outcome]:
    """Send requests when they are due, whether earlier ones are answered or not. Latency counts from the due time."""
    raw, outcomes, idle = target.raw, list[Outcome](), list[HttpConnection]()
    begin = time.perf_counter()

    async def send(due: float) -> None:
        connection: HttpConnection | None = None
        try:
            async with asyncio.timeout(timeout_s):
                while idle and (connection is None or not connection.is_open):
                    connection = idle.pop()
                if connection is None or not connection.is_open:
                    connection = await HttpConnection.open(target.url)
                status = await connection.request(raw)
            idle.append(connection)
        except TimeoutError:
            status = TIMED_OUT
        except OSError:
            status = LOST
        if status in (TIMED_OUT, LOST) and connection is not None:
            connection.close()
        outcomes.append(Outcome(due, time.perf_counter(), status))

    async with asyncio.TaskGroup() as group:
        for offset in poisson(rate, seconds, "overload"):
            await asyncio.sleep(begin + offset - time.perf_counter())
            group.create_task(send(begin + offset))
    return outcomes


async def leave_early(target: Target, clients: int, after_s: float) -> None:
    """Send a request on each of a number of connections, and close them all after `after_s` seconds."""
    raw = target.raw
    connections = [await HttpConnection.open(target.url) for _ in range(clients)]
    answers = [asyncio.create_task(connection.request(raw)) for connection in connections]
    await asyncio.sleep(after_s)
    for connection in connections:
        connection.close()
    await asyncio.gather(*answers, return_exceptions=True)


async def one_answer(target: Target, timeout_s: float) -> float:
    """Return the seconds until a new client's request is answered with 200; infinity if it is not."""
    begin = time.perf_counter()
    with contextlib.suppress(OSError, TimeoutError):
        async with asyncio.timeout(timeout_s):
            connection = await HttpConnection.open(target.url)
            status = await connection.request(target.raw)
            connection.close()
            if status == 200:
                return time.perf_counter() - begin
    return float("inf")


def measured(outcomes: Sequence[Outcome], since: float, until: float) -> Measurement:
    """Return the rate of answers between two times, and what became of the requests that were sent between them.

    The rate is a slope: a count would be wrong by up to a batch at either end.
    """
    inside = [outcome for outcome in outcomes if since <= outcome.sent_at <= until]
    answered = [outcome for outcome in inside if outcome.status == 200]
    times = [outcome.ended_at for outcome in outcomes if outcome.status == 200 and since <= outcome.ended_at <= until]
    latencies = [outcome.ended_at - outcome.sent_at for outcome in answered]
    refused = sum(outcome.status in REFUSED for outcome in inside)
    failed = Counter(_NAMES.get(outcome.status, f"status {outcome.status}") for outcome in inside)
    failed = Counter({name: count for name, count in failed.items() if name not in _NO_ERRORS})
    return Measurement(
        per_s=completion_rate(times, [1.0] * len(times), since, until),
        p50_ms=1000 * quantile(latencies, 0.5),
        p99_ms=1000 * quantile(latencies, 0.99),
        answered=len(answered),
        refused=refused,
        errors=failed.total(),
        details={name: float(count) for name, count in failed.items()},
    )
