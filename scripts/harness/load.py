"""A closed-loop load for benchmarks, and a description of the machine."""

from __future__ import annotations

import asyncio
import os
import platform
import random
import statistics
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import psutil

#: A user's pause after a refusal or an error.
_AFTER_ERROR_S = 0.05


@dataclass
class LoadResult:
    """What a number of users observed in a period of `seconds`."""

    users: int
    seconds: float
    #: Seconds, of every request that was sent in the period, also of those answered later.
    latencies: list[float] = field(default_factory=list)
    #: Requests answered in the period.
    answered: int = 0
    errors: int = 0

    def summary(self) -> dict[str, float | int]:
        """Return images per second answered in the period, and the latency in ms of the requests sent in it.

        Requests that still wait at its end count: without them a server that lets them wait longer would look better.
        """
        latencies = sorted(self.latencies) or [float("nan")]
        return {
            "users": self.users,
            "images": self.answered,
            "images_per_s": self.answered / self.seconds,
            "p50_ms": 1000 * latencies[len(latencies) // 2],
            "p95_ms": 1000 * latencies[min(len(latencies) - 1, int(len(latencies) * 0.95))],
            "p99_ms": 1000 * latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))],
            "mean_ms": 1000 * statistics.fmean(latencies),
            "errors": self.errors,
        }


@dataclass(frozen=True)
class RequestTemplate:
    """What every user sends. Step counts are uniform in `steps`; none: the body has its own."""

    body: dict[str, Any]
    steps: tuple[int, int] | None = None
    path: str = "/v1/images/generations"
    #: Parts of the body of which each request has one.
    choices: tuple[dict[str, Any], ...] = ({},)

    def draw(self, rng: random.Random) -> dict[str, Any]:
        """Return the body of one request."""
        steps = {"num_inference_steps": rng.randint(*self.steps)} if self.steps else {}
        return self.body | steps | rng.choice(self.choices) | {"seed": rng.randrange(2**31)}


async def closed_loop(
    url: str, users: int, seconds: float, request: RequestTemplate, *, pause_s: float = 0.0, warm_up_s: float = 0.0
) -> LoadResult:
    """Run users who each wait for the answer before the next request, after a pause of `pause_s` on average.

    What is sent in the first `warm_up_s` does not count; `seconds` come after them. No answer is an error.
    """
    result = LoadResult(users, seconds)
    start = time.perf_counter() + warm_up_s
    end = start + seconds

    async def send(session: aiohttp.ClientSession, body: dict[str, Any]) -> bool:
        try:
            async with session.post(f"{url}{request.path}", json=body) as answer:
                await answer.read()
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError):
            return False

    async def user(number: int, session: aiohttp.ClientSession) -> None:
        rng = random.Random(number)
        while True:
            # Also before the first request: users who start together would stay together.
            pause = rng.expovariate(1 / pause_s) if pause_s else 0.0
            await asyncio.sleep(min(pause, max(end - time.perf_counter(), 0.0)))
            sent_at = time.perf_counter()
            if sent_at >= end:
                return
            is_answered = await send(session, request.draw(rng))
            answered_at = time.perf_counter()
            result.answered += is_answered and start <= answered_at <= end
            if not is_answered:
                await asyncio.sleep(_AFTER_ERROR_S)
            if sent_at < start:
                continue
            if is_answered:
                result.latencies.append(answered_at - sent_at)
            else:
                result.errors += 1

    timeout = aiohttp.ClientTimeout(total=300)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
        await asyncio.gather(*(user(number, session) for number in range(users)))
    return result


def machine() -> dict[str, str | int]:
    """Return the hardware and the versions that the numbers belong to."""
    import torch

    gpu = torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"
    return {
        "cpu_cores": psutil.cpu_count() or os.cpu_count() or 0,
        "processor": platform.machine(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
