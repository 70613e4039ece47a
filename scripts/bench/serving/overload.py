#!/usr/bin/env python
"""A flood of jobs by one key, and an overload of ten times the capacity.

    python -m scripts.bench.serving.overload --json scripts/bench/results/overload_sim.json

(a) One API key submits 1000 jobs; another key then sends single requests in sequence. Their waiting time is given in
fair shares: the time for which a request has its slot in a full batch.
(b) Requests arrive at ten times the service rate. The queue is bounded in seconds of work (`queue.max_work_s`).
Admitted requests must finish within the bound plus their own time; all others must be rejected. With `--timeout`, and a
`--bound` beyond it, each request has a deadline. Late requests must end with 504 before a worker starts them.

The workers are simulated accelerators: this measures the load balancer, not a model.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import json
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from configs.paths import run_dir
from loadbalancer.access import keys_cli
from scripts.bench.serving.workloads import quantile
from scripts.harness.instance import serving
from scripts.harness.load import machine

STEPS, BATCH = 20, 4
T0_S, T1_S = 0.02, 0.005
#: Seconds of a full batch from first to last step.
TURN_S = STEPS * (T0_S + T1_S * BATCH)
_FLOOD = 1000


def config(**queue: Any) -> dict[str, Any]:
    """Return a configuration of a model on one simulated worker."""
    model = {
        "engine": "sim",
        "max_batch_size": BATCH,
        "defaults": {"size": "64x64", "steps": STEPS},
        "sim": {"t0_s": T0_S, "t1_s": T1_S, "load_s": 0.0},
        "scaling": {"min_workers": 1, "max_workers": 1},
    }
    return {"models": {"sim": model}, "queue": queue}


def key(folder: Path, name: str) -> dict[str, str]:
    """Return the header of a new API key."""
    shown = io.StringIO()
    with contextlib.redirect_stdout(shown):
        keys_cli.main(["--data-dir", str(folder), "add", name])
    return {"authorization": f"Bearer {shown.getvalue().strip()}"}


async def waits(
    session: aiohttp.ClientSession, headers: dict[str, str], count: int
) -> list[tuple[float, float, float]]:
    """Send single requests in sequence. Return seconds to the start and to the response of each."""
    results: list[tuple[float, float, float]] = []
    for seed in range(count):
        started = time.perf_counter()
        async with session.post("/v1/images/generations", json={"prompt": "one", "seed": seed}, headers=headers) as got:
            answer = await got.json()
        timings = answer["data"][0]["timings"]
        results.append((timings["queued_s"], timings["running_s"], time.perf_counter() - started))
        await asyncio.sleep(random.Random(seed).uniform(0, TURN_S))  # not synchronized with the batch
    return results


async def flood(url: str, folder: Path, singles: int) -> dict[str, Any]:
    """Part (a)."""
    many, one = key(folder, "many"), key(folder, "one")
    async with aiohttp.ClientSession(url, timeout=aiohttp.ClientTimeout(total=300)) as session:
        while True:  # the first key fills the queue within a second
            async with session.get("/v1/models") as answer:
                if answer.status == 401:
                    break
            await asyncio.sleep(0.1)
        forward_only = await waits(session, one, singles)

        async def job(number: int) -> int:
            body = {"path": "/predict", "body": {"prompt": f"job {number}"}}
            async with session.post("/v1/jobs", json=body, headers=many) as answer:
                return answer.status

        statuses = Counter(await asyncio.gather(*(job(number) for number in range(_FLOOD))))
        crowded = await waits(session, one, singles)
    shares = [queued / running for queued, running, _ in crowded]
    before, after = (quantile([total for _, _, total in each], 0.5) for each in (forward_only, crowded))
    return {
        "jobs": {str(status): count for status, count in statuses.items()},
        "singles": singles,
        "alone_p50_s": before,
        "crowded_p50_s": after,
        "answer_over_alone": after / before,
        "wait_in_fair_shares": {"p50": quantile(shares, 0.5), "p90": quantile(shares, 0.9), "max": max(shares)},
    }


@dataclass
class Overloaded:
    """Results of part (b)."""

    statuses: Counter[int] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    refused_in: list[float] = field(default_factory=list)
    retry_after: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    #: Requests that ended with 504 although a worker had started them.
    late_started: int = 0


async def overload(
    url: str, folder: Path, seconds: float, bound_s: float, factor: float, timeout_s: float | None
) -> dict[str, Any]:
    """Part (b). The latency limit is the queue's bound plus one turn of the request itself."""
    body = {"prompt": "one"} | ({} if timeout_s is None else {"timeout_s": timeout_s})
    capacity = BATCH / TURN_S
    results, rng = Overloaded(), random.Random(7)
    process = psutil.Process(_balancer(folder))
    sizes: list[int] = []
    timeout, connector = aiohttp.ClientTimeout(total=300), aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=timeout, connector=connector) as session, asyncio.TaskGroup() as all_:
        started = at = time.perf_counter()
        while at < started + seconds:
            at += rng.expovariate(factor * capacity)
            await asyncio.sleep(max(at - time.perf_counter(), 0.0))
            all_.create_task(_one(session, body, results))
            sizes.append(process.memory_info().rss)
    took = time.perf_counter() - started
    return {
        "capacity_per_s": capacity,
        "asked_per_s": len(sizes) / seconds,
        "bound_s": bound_s,
        "timeout_s": timeout_s,
        "statuses": {str(status): count for status, count in sorted(results.statuses.items())},
        "late_after_work": results.late_started,
        "admitted_p50_s": quantile(results.latencies, 0.5),
        "admitted_p99_s": quantile(results.latencies, 0.99),
        "admitted_p99_over_bound": quantile(results.latencies, 0.99) / (bound_s + TURN_S),
        "answered_over_capacity": len(results.latencies) / took / capacity,
        "refused_p99_s": quantile(results.refused_in, 0.99),
        "retry_after_s": {"p50": quantile(results.retry_after, 0.5), "max": max(results.retry_after)},
        "refused_without_retry_after": results.without_retry_after,
        "rss_mib": {"begin": sizes[len(sizes) // 10] / 2**20, "end": sizes[-1] / 2**20},
    }


async def _one(session: aiohttp.ClientSession, body: dict[str, Any], results: Overloaded) -> None:
    started = time.perf_counter()
    async with session.post("/predict", json=body) as answer:
        text = await answer.text()
    took = time.perf_counter() - started
    results.statuses[answer.status] += 1
    if answer.status == 200:
        results.latencies.append(took)
    elif answer.status in (429, 503):
        results.refused_in.append(took)
        if "retry-after" in answer.headers:
            results.retry_after.append(float(answer.headers["retry-after"]))
        else:
            results.without_retry_after += 1
    elif answer.status == 504:
        results.late_started += "(queued)" not in text and "not started" not in text


def _balancer(folder: Path) -> int:
    record = json.loads((run_dir(folder) / "children" / "loadbalancer.json").read_text())
    return int(record["pid"])


def main() -> int:
    """Return the exit status: 1 if a request was neither finished in time nor rejected."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--singles", type=int, default=20, help="requests of the second key in part (a)")
    parser.add_argument("--seconds", type=float, default=30.0, help="length of part (b)")
    parser.add_argument("--bound", type=float, default=4.0, help="`queue.max_work_s` of part (b)")
    parser.add_argument("--factor", type=float, default=10.0, help="load over capacity in part (b)")
    parser.add_argument("--timeout", type=float, help="`timeout_s` of the requests of part (b)")
    parser.add_argument("--slack", type=float, default=1.5, help="`queue.deadline_slack` of part (b); 0: null")
    parser.add_argument("--json", type=Path, help="write the result here")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="muster-overload-") as place:
        first, second = Path(place) / "a", Path(place) / "b"
        with serving(first, config(deadline_slack=None, max_tasks=1024)) as url:
            crowded = asyncio.run(flood(url, first, args.singles))
        queue = {"max_work_s": args.bound, "deadline_slack": args.slack or None}
        with serving(second, config(**queue)) as url:
            pressed = asyncio.run(overload(url, second, args.seconds, args.bound, args.factor, args.timeout))
    result = {"machine": machine(), "flood": crowded, "overload": pressed}
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    fair = {"200", "429", "503"} | ({"504"} if args.timeout is not None else set())
    return int(bool(pressed["statuses"].keys() - fair))


if __name__ == "__main__":
    sys.exit(main())
