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
            "p99_ms": 1000 * latencies[min(len(latencies) - 1, int(len(latencies) * 0.99))],
            "mean_ms": 1000 * statistics.fmean(latencies),
            "errors": self.errors,
        }


async def closed_loop(url: str, users: int, seconds: float, body: dict[str, Any], steps: tuple[int, int]) -> LoadResult:
    """Run users who each wait for the answer before the next request. Step counts are uniform in `steps`."""
    result = LoadResult(users, seconds)
    start = time.perf_counter()
    end = start + seconds

    async def user(number: int, session: aiohttp.ClientSession) -> None:
        rng = random.Random(number)
        while (sent_at := time.perf_counter()) < end:
            request = body | {"num_inference_steps": rng.randint(*steps), "seed": rng.randrange(2**31)}
            async with session.post(f"{url}/v1/images/generations", json=request) as answer:
                await answer.read()
            answered_at = time.perf_counter()
            if answer.status != 200:
                result.errors += 1
                continue
            result.latencies.append(answered_at - sent_at)
            result.answered += answered_at <= end

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
