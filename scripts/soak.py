#!/usr/bin/env python3
"""Measure whether the balancer's resident memory grows over many requests of every kind.

    scripts/soak.py --requests 200000 --json soak.json --plot soak.png

Runs a balancer with simulated workers, and `--users` concurrent requests. Of a hundred, 44 are plain images, 10
streamed, 10 aborted by their clients, 8 durable jobs, and 2 sent twice with one `Idempotency-Key`. 8 are chats, 12
streamed chats, and 6 aborted ones. Jobs and stored answers are kept for ten seconds. Prints the least-squares slope
over the second half with its standard error.

The exit status is 1 if the slope exceeds 16 bytes per request by more than twice its error. A leak in Python is at
least one object, and no object is that small.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import ensure_venv  # noqa: F401 - first: it may run this program again in `.venv`

# isort: split
import argparse
import asyncio
import json
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Sequence
from typing import Any, NamedTuple

import aiohttp
import psutil
from rich.console import Console
from rich.table import Table

from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S

#: Bytes per 1000 requests.
MAX_SLOPE = 16_000.0
_KINDS = {
    "plain": 44,
    "streamed": 10,
    "aborted": 10,
    "job": 8,
    "sent twice": 2,
    "chat": 8,
    "streamed chat": 12,
    "aborted chat": 6,
}
_SETTINGS: dict[str, Any] = {
    "queue": {"max_tasks": 4096, "deadline_slack": None},
    "jobs": {"keep_s": 10.0},
}
_QUICK = {"t0_s": 0.001, "t1_s": 0.0}
_SAMPLES = 200
_CHATS = "/v1/chat/completions"


class Sample(NamedTuple):
    """The balancer's resident bytes after a number of requests."""

    requests: int
    rss: int


class Slope(NamedTuple):
    """Bytes per 1000 requests, and its standard error."""

    slope: float
    error: float

    @property
    def is_too_steep(self) -> bool:
        """Whether the slope exceeds the bound by more than twice its error."""
        return self.slope - 2 * self.error > MAX_SLOPE


def slope_of(samples: Sequence[Sample]) -> Slope:
    """Return the least-squares slope of at least three samples."""
    xs, ys = [each.requests / 1000 for each in samples], [float(each.rss) for each in samples]
    count, mean_x, mean_y = len(samples), sum(xs) / len(samples), sum(ys) / len(samples)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    residual = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    return Slope(slope, math.sqrt(residual / (count - 2) / spread))


class SoakLoad:
    """Closed-loop users, and samples of the balancer's memory."""

    def __init__(self, server: Server, requests: int, seed: int) -> None:
        self._server = server
        self._process = psutil.Process(server.balancer.pid)
        self._requests = requests
        self._random = random.Random(seed)
        self._started = 0
        self.samples: list[Sample] = []
        #: Number of requests by kind and outcome.
        self.outcomes: Counter[tuple[str, str]] = Counter()

    async def run(self, users: int) -> None:
        timeout, connector = aiohttp.ClientTimeout(total=PATIENCE_S), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self._server.base_url, timeout=timeout, connector=connector) as session:
            await asyncio.gather(*(self._user(session) for _ in range(users)))

    async def _user(self, session: aiohttp.ClientSession) -> None:
        while self._started < self._requests:
            self._started += 1
            number = self._started
            [kind] = self._random.choices(list(_KINDS), list(_KINDS.values()))
            self.outcomes[kind, await self._send(session, kind, number)] += 1
            if number % max(self._requests // _SAMPLES, 1) == 0:
                self.samples.append(Sample(number, self._process.memory_info().rss))

    async def _send(self, session: aiohttp.ClientSession, kind: str, number: int) -> str:
        """Send one request. Return its status, or `aborted`."""
        if kind.endswith("chat"):
            return await self._chat(session, kind, number)
        body: dict[str, Any] = {"model": "sim", "prompt": f"number {number}", "num_inference_steps": 4, "seed": number}
        match kind:
            case "streamed":
                return await _post(session, "/v1/images/generations", body | {"stream": True, "partial_images": 1})
            case "aborted":
                slow = body | {"num_inference_steps": 200, "stream": number % 2 == 0}
                return await _aborted(_post(session, "/v1/images/generations", slow))
            case "job":
                return await _post(session, "/v1/jobs", {"path": "/predict", "body": body})
            case "sent twice":
                key = {"idempotency-key": f"key-{number}"}
                statuses = await asyncio.gather(*(_post(session, "/predict", body, key) for _ in range(2)))
                return max(statuses)
        return await _post(session, "/predict", body)

    async def _chat(self, session: aiohttp.ClientSession, kind: str, number: int) -> str:
        """Send one chat. Return its status, or `aborted`."""
        messages = [{"role": "user", "content": f"number {number}"}]
        body = {"model": "words", "messages": messages, "seed": number, "ignore_eos": True}
        if kind == "aborted chat":
            return await _aborted(_post(session, _CHATS, body | {"max_tokens": 2000, "stream": True}))
        return await _post(session, _CHATS, body | {"max_tokens": 16, "stream": kind == "streamed chat"})


async def _aborted(request: Awaitable[str]) -> str:
    """Leave the request after 50 ms. Return its status if it ends earlier, else `aborted`."""
    try:
        async with asyncio.timeout(0.05):
            return await request
    except TimeoutError:
        return "aborted"


async def _post(session: aiohttp.ClientSession, path: str, body: dict[str, Any], headers: Any = None) -> str:
    async with session.post(path, json=body, headers=headers) as answer:
        await answer.read()
        return str(answer.status)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--users", type=int, default=32, help="concurrent requests")
    parser.add_argument("--workers", type=int, default=1, help="simulated workers of each model, of 32 requests each")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--plot", type=Path, help="plot the size over the requests here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muster-soak-") as folder:
        model = sim(max_batch_size=32, **_QUICK)
        words = {"engine": "sim", "max_batch_size": 32, "sim": {"task": "text", **_QUICK}}
        with running(Path(folder) / "data", {"sim": model, "words": words}, args.workers, **_SETTINGS) as server:
            load, started_at = SoakLoad(server, args.requests, args.seed), time.monotonic()
            asyncio.run(load.run(args.users))
            seconds = time.monotonic() - started_at
    second_half = load.samples[len(load.samples) // 2 :]
    slope = slope_of(second_half)
    _print_result(load, slope, seconds)
    if args.json:
        args.json.write_text(json.dumps(_to_json(load, slope, seconds, vars(args)), indent=1) + "\n")
    if args.plot:
        _plot(load.samples, second_half, slope, args.plot)
    return int(slope.is_too_steep)


def _print_result(load: SoakLoad, slope: Slope, seconds: float) -> None:
    table = Table("requests", "outcome", "count", title="Soak, on simulated accelerators")
    for (kind, outcome), count in sorted(load.outcomes.items()):
        table.add_row(kind, outcome, str(count))
    Console().print(table)
    first, middle, last = load.samples[0], load.samples[len(load.samples) // 2], load.samples[-1]
    print(f"{last.requests} requests in {seconds:.0f} s; resident MiB after the first, half, all:", end=" ")
    print(", ".join(f"{each.rss / 2**20:.1f}" for each in (first, middle, last)))
    verdict = "TOO STEEP" if slope.is_too_steep else "flat"
    print(
        f"second half: {slope.slope:.0f} ± {slope.error:.0f} bytes per 1000 requests (bound {MAX_SLOPE:.0f}): {verdict}"
    )


def _to_json(load: SoakLoad, slope: Slope, seconds: float, args: dict[str, Any]) -> dict[str, Any]:
    return {
        "options": {name: value for name, value in args.items() if name not in ("json", "plot")},
        "seconds": seconds,
        "outcomes": {f"{kind}: {outcome}": count for (kind, outcome), count in sorted(load.outcomes.items())},
        "bytes_per_1000_requests": slope._asdict(),
        "bound": MAX_SLOPE,
        "samples": [each._asdict() for each in load.samples],
    }


def _plot(samples: Sequence[Sample], half: Sequence[Sample], slope: Slope, file: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(8, 4.5))
    axis.plot([each.requests for each in samples], [each.rss / 2**20 for each in samples], ".", markersize=3)
    middle = half[len(half) // 2]
    mean = sum(each.rss for each in half) / len(half)
    ends = [half[0].requests, half[-1].requests]
    line = [(mean + slope.slope * (x - middle.requests) / 1000) / 2**20 for x in ends]
    axis.plot(ends, line, "k-", label=f"{slope.slope:.0f} ± {slope.error:.0f} bytes per 1000 requests")
    top = 1.3 * max(each.rss for each in samples) / 2**20
    axis.set(xlabel="requests", ylabel="MiB resident", ylim=(0, top), title="The balancer, on simulated accelerators")
    axis.legend(loc="upper right")
    axis.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=110)


if __name__ == "__main__":
    sys.exit(main())
