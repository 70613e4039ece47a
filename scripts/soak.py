#!/usr/bin/env python3
"""Whether the balancer's memory stays what it is: its resident size over many requests of every kind.

    scripts/soak.py --requests 200000 --json soak.json --plot soak.png

A real balancer with simulated workers, as many requests at once as `--users`. Of a hundred, 68 are plain, 12 streamed,
10 given up by their clients, 8 durable jobs, 2 sent twice under one `Idempotency-Key`. Jobs and kept answers are kept
for ten seconds. The least-squares slope over the second half is told with its standard error.

Exit status 1 where the slope exceeds 16 bytes per request by more than twice its error: what leaks in Python leaks at
least an object, and no object is that small.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from scripts import ensure_venv  # noqa: F401 - first: it may begin again elsewhere

# isort: split
import argparse
import asyncio
import json
import math
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import aiohttp
import psutil
from rich.console import Console
from rich.table import Table

from scripts.harness.balancer import Server, running, sim
from scripts.harness.processes import PATIENCE_S

#: Bytes per 1000 requests.
MOST = 16_000.0
_KINDS = {"plain": 68, "streamed": 12, "given up": 10, "job": 8, "sent twice": 2}
_SETTINGS: dict[str, Any] = {
    "queue": {"max_tasks": 4096, "deadline_slack": None},
    "jobs": {"keep_s": 10.0},
}
_QUICK = {"t0_s": 0.001, "t1_s": 0.0}
_SAMPLES = 200


class Sample(NamedTuple):
    """The balancer at some moment."""

    requests: int
    rss: int


class Slope(NamedTuple):
    """Bytes per 1000 requests, and its standard error."""

    slope: float
    error: float

    @property
    def too_steep(self) -> bool:
        """Whether it is beyond the bound, by more than chance."""
        return self.slope - 2 * self.error > MOST


def slope_of(samples: Sequence[Sample]) -> Slope:
    """The straight line nearest to three samples or more."""
    xs, ys = [each.requests / 1000 for each in samples], [float(each.rss) for each in samples]
    count, mean_x, mean_y = len(samples), sum(xs) / len(samples), sum(ys) / len(samples)
    spread = sum((x - mean_x) ** 2 for x in xs)
    slope = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True)) / spread
    rest = sum((y - mean_y - slope * (x - mean_x)) ** 2 for x, y in zip(xs, ys, strict=True))
    return Slope(slope, math.sqrt(rest / (count - 2) / spread))


class Load:
    """Users who each send the next request after an answer, and the size of the balancer meanwhile."""

    def __init__(self, server: Server, requests: int, seed: int) -> None:
        self._server = server
        self._process = psutil.Process(server.balancer.pid)
        self._requests = requests
        self._random = random.Random(seed)
        self._begun = 0
        self.samples: list[Sample] = []
        #: How many requests of each kind came to what.
        self.outcomes: Counter[tuple[str, str]] = Counter()

    async def run(self, users: int) -> None:
        """Send everything."""
        timeout, connector = aiohttp.ClientTimeout(total=PATIENCE_S), aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(self._server.base_url, timeout=timeout, connector=connector) as session:
            await asyncio.gather(*(self._user(session) for _ in range(users)))

    async def _user(self, session: aiohttp.ClientSession) -> None:
        while self._begun < self._requests:
            self._begun += 1
            number = self._begun
            [kind] = self._random.choices(list(_KINDS), list(_KINDS.values()))
            self.outcomes[kind, await self._ask(session, kind, number)] += 1
            if number % max(self._requests // _SAMPLES, 1) == 0:
                self.samples.append(Sample(number, self._process.memory_info().rss))

    async def _ask(self, session: aiohttp.ClientSession, kind: str, number: int) -> str:
        """What came of it: a status, or `given up`."""
        body: dict[str, Any] = {"prompt": f"number {number}", "num_inference_steps": 4, "seed": number}
        match kind:
            case "streamed":
                return await _post(session, "/v1/images/generations", body | {"stream": True, "partial_images": 1})
            case "given up":
                slow = body | {"num_inference_steps": 200, "stream": number % 2 == 0}
                try:
                    async with asyncio.timeout(0.05):
                        return await _post(session, "/v1/images/generations", slow)
                except TimeoutError:
                    return "given up"
            case "job":
                return await _post(session, "/v1/jobs", {"path": "/predict", "body": body})
            case "sent twice":
                key = {"idempotency-key": f"key-{number}"}
                both = await asyncio.gather(*(_post(session, "/predict", body, key) for _ in range(2)))
                return max(both)
        return await _post(session, "/predict", body)


async def _post(session: aiohttp.ClientSession, path: str, body: dict[str, Any], headers: Any = None) -> str:
    async with session.post(path, json=body, headers=headers) as answer:
        await answer.read()
        return str(answer.status)


def main() -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--users", type=int, default=32, help="requests at once")
    parser.add_argument("--workers", type=int, default=1, help="simulated workers, of 32 images each")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--json", type=Path, help="write the result here")
    parser.add_argument("--plot", type=Path, help="draw the size over the requests here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muster-soak-") as folder:
        model = sim(max_batch_size=32, **_QUICK)
        with running(Path(folder) / "data", {"sim": model}, args.workers, **_SETTINGS) as server:
            load, began = Load(server, args.requests, args.seed), time.monotonic()
            asyncio.run(load.run(args.users))
            seconds = time.monotonic() - began
    second_half = load.samples[len(load.samples) // 2 :]
    slope = slope_of(second_half)
    _tell(load, slope, seconds)
    if args.json:
        args.json.write_text(json.dumps(_tree(load, slope, seconds, vars(args)), indent=1) + "\n")
    if args.plot:
        _draw(load.samples, second_half, slope, args.plot)
    return int(slope.too_steep)


def _tell(load: Load, slope: Slope, seconds: float) -> None:
    table = Table("requests", "came to", "how many", title="Soak, on simulated accelerators")
    for (kind, outcome), count in sorted(load.outcomes.items()):
        table.add_row(kind, outcome, str(count))
    Console().print(table)
    first, middle, last = load.samples[0], load.samples[len(load.samples) // 2], load.samples[-1]
    print(f"{last.requests} requests in {seconds:.0f} s; resident MiB after the first, half, all:", end=" ")
    print(", ".join(f"{each.rss / 2**20:.1f}" for each in (first, middle, last)))
    verdict = "TOO STEEP" if slope.too_steep else "flat"
    print(f"second half: {slope.slope:.0f} ± {slope.error:.0f} bytes per 1000 requests (bound {MOST:.0f}): {verdict}")


def _tree(load: Load, slope: Slope, seconds: float, args: dict[str, Any]) -> dict[str, Any]:
    return {
        "options": {name: value for name, value in args.items() if name not in ("json", "plot")},
        "seconds": seconds,
        "outcomes": {f"{kind}: {outcome}": count for (kind, outcome), count in sorted(load.outcomes.items())},
        "bytes_per_1000_requests": slope._asdict(),
        "bound": MOST,
        "samples": [each._asdict() for each in load.samples],
    }


def _draw(samples: Sequence[Sample], half: Sequence[Sample], slope: Slope, file: Path) -> None:
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
