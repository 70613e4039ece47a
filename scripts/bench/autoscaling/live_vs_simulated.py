r"""Compare the live controller, with simulated accelerators, to the simulator on one accelerated hour of traffic.

    python -m scripts.bench.autoscaling.live_vs_simulated --json scripts/bench/results/live_vs_simulated.json \
        --plot docs/live_vs_simulated.png
    python -m scripts.bench.autoscaling.live_vs_simulated --trace gentd26_day.csv --scale-work 0.25 --speed 12 \
        --max-workers 12 --json scripts/bench/results/live_vs_simulated_trace.json --plot live_vs_simulated_trace.png

Of a recorded trace, its busiest hour is taken, or `--hours` from the hour `--begin` on.

Both run the same requests with the same settings; all times are divided by the speed. The simulator gets the start-up
times that were measured in the live run, because it cannot know how long this machine takes to start a process.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import math
import re
import tempfile
import time
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from configs.paths import internal_token
from configs.scaling import Scaling
from controller.simulator.cli import run
from controller.simulator.model_sim import WorkerProfile
from controller.simulator.results import model_results
from controller.simulator.scenarios import Scenario, Traffic, merge_traffic, scale_work, slice_traffic
from controller.simulator.synthetic import is_synthetic, synthetic_traffic
from controller.simulator.traces import read_trace
from scripts.harness.instance import serving
from scripts.harness.load import machine
from wire.snapshot import Snapshot

_STEP_S = 0.02
_HOUR_S = 3600.0
_LINE = re.compile(
    r"^(\S+ \S+) \w+ +controller: (?:(starting|draining|killing) worker (\S+)|worker (\S+) on \S+ died)",
)

#: Pairs of time, in seconds since the start of the trace, and number of starting and ready workers.
Counts = list[tuple[float, int]]


def busiest_hour(traffic: Traffic) -> Traffic:
    """Return the hour with the most work, which begins at a request. Times are relative to its start."""
    sums = list(itertools.accumulate(traffic.work, initial=0.0))
    ends = (bisect_right(traffic.times, start + _HOUR_S) for start in traffic.times)
    loads = [sums[end] - sums[number] for number, end in enumerate(ends)]
    start = traffic.times[loads.index(max(loads))]
    return slice_traffic(traffic, start, start + _HOUR_S)


def part_of(trace: str, work_factor: float, begin: float | None, hours: float) -> Traffic:
    """Return the traffic of a synthetic hour, of the busiest hour of a file, or of its hours from `begin` on."""
    if is_synthetic(trace):
        return scale_work(synthetic_traffic(trace, 1), work_factor)
    traffic = merge_traffic(read_trace(Path(trace)))
    if begin is None:
        return scale_work(busiest_hour(traffic), work_factor)
    return scale_work(slice_traffic(traffic, begin * _HOUR_S, (begin + hours) * _HOUR_S), work_factor)


def settings(
    speed: float,
    policy: str,
    interval_s: float,
    load_s: float,
    max_workers: int,
    max_wait_s: float = 10.0,
    initial_workers: int = 1,
) -> dict[str, Any]:
    """Return the default scaling settings with all times divided by `speed`."""
    defaults = Scaling()
    return {
        "policy": policy,
        "min_workers": 1,
        "initial_workers": initial_workers,
        "max_workers": max_workers,
        "interval_s": interval_s / speed,
        "slo": {"max_wait_s": max_wait_s / speed},
        "look_back_period_s": defaults.look_back_period_s / speed,
        "rate_window_s": defaults.rate_window_s / speed,
        "drain_s": defaults.drain_s / speed,
        # Configured, because the live controller has measured its first worker's start before the first request.
        "cold_start_s": load_s / speed,
        **({"startup_hold_s": defaults.startup_hold_s / speed} if policy == "slo_work" else {}),
    }


@dataclass
class LiveRun:
    """Measurements of the live run. Times are seconds since the start of the trace."""

    traffic: Traffic
    counts: Counts = field(default_factory=list)
    ready: Counts = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)
    errors: int = 0
    #: Uptime of the balancer at the start of the trace.
    uptime_s: float = 0.0
    #: Share of the started requests that waited for at most the allowed time.
    in_time: float = 0.0


async def send_requests(url: str, folder: Path, live: LiveRun, zero: float) -> None:
    """Send every request at its time, and poll the workers meanwhile."""
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def send(at: float, work_s: float, seed: int) -> None:
            await asyncio.sleep(zero + at - time.time())
            steps = max(round(work_s / _STEP_S), 1)
            body = {"prompt": "a seven", "num_inference_steps": steps, "seed": seed, "size": "64x64"}
            async with session.post(f"{url}/v1/images/generations", json=body) as answer:
                await answer.read()
                live.errors += answer.status != 200

        async def poll() -> None:
            while True:
                snapshot = await fetch_snapshot(session, url, folder)
                at = time.time() - zero
                live.uptime_s = live.uptime_s or snapshot.uptime_s - at
                ready = sum(w.state == "ready" and w.slots > 0 for w in snapshot.workers)
                live.ready.append((at, ready))
                (model,) = snapshot.models
                live.in_time = 1 - model.started_late_total / max(model.started_total, 1)
                await asyncio.sleep(0.25)

        poller = asyncio.create_task(poll())
        await asyncio.gather(*(send(one.at, one.work_s, n) for n, one in enumerate(live.traffic.requests)))
        await asyncio.sleep(2.0)
        poller.cancel()


async def fetch_snapshot(session: aiohttp.ClientSession, url: str, folder: Path) -> Snapshot:
    headers = {"authorization": f"Bearer {internal_token(folder)}"}
    async with session.get(f"{url}/internal/snapshot", headers=headers) as answer:
        return msgspec.json.decode(await answer.read(), type=Snapshot)


async def wait_for_workers(url: str, folder: Path, number: int) -> None:
    """Return once this number of workers is ready."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(120):
        while sum(worker.state == "ready" for worker in (await fetch_snapshot(session, url, folder)).workers) < number:
            await asyncio.sleep(0.1)


def read_log(text: str, zero: float) -> tuple[Counts, dict[str, float]]:
    """Return the numbers of starting and ready workers, and the start time of each, from the controller's log."""
    counts, number, started = [], 0, {}
    for line in text.splitlines():
        found = _LINE.match(line)
        if not found:
            continue
        at = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").timestamp() - zero
        number += 1 if found[2] == "starting" else -1
        if found[2] == "starting":
            started[found[3]] = at
        counts.append((at, number))
    return counts, started


def run_live(scenario: Scenario, scaling: dict[str, Any], load_s: float) -> LiveRun:
    live = LiveRun(scenario.traffic["m"])
    model = {
        "engine": "sim",
        "max_batch_size": 1,
        "defaults": {"size": "64x64", "steps": 10},
        "limits": {"max_steps": 1000, "min_side": 32},
        "sim": {"t0_s": 0.0, "t1_s": _STEP_S, "load_s": load_s},
        "scaling": scaling,
    }
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "controller.log"
        with serving(Path(folder), {"models": {"m": model}}) as url:
            asyncio.run(wait_for_workers(url, Path(folder), scaling["initial_workers"]))
            zero = time.time() + 1.0
            asyncio.run(send_requests(url, Path(folder), live, zero))
            text = log.read_text()
    live.counts, started = read_log(text, zero)
    ready = re.findall(r"worker (\S+) ready on \S+ after ([\d.]+) s", text)
    live.starts_s = [float(seconds) for name, seconds in ready if name in started]
    return live


def at(counts: Counts, when: float) -> int:
    number = bisect_right(counts, (when, math.inf))
    return counts[number - 1][1] if number else 0


def share_within_tick(counts: Counts, other: Counts, span_s: float, tick_s: float) -> float:
    """Return the share of time in which `counts` differs from `other` by at most 1, within one tick."""
    points = [0.25 * number for number in range(int(span_s / 0.25))]
    good = 0
    for when in points:
        near = {at(other, when + tick_s * step / 8) for step in range(-8, 9)}
        good += min(near) - 1 <= at(counts, when) <= max(near) + 1
    return good / len(points)


def draw_plot(file: Path, live: LiveRun, simulated: Counts, speed: float, span_s: float, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (upper, lower) = pyplot.subplots(2, 1, figsize=(11, 6), sharex=True, layout="constrained")
    bins = [0.5 * number * span_s / 60 for number in range(121)]
    upper.hist(list(live.traffic.times), bins=bins, weights=[1 / (bins[1])] * len(live.traffic.times), color="0.6")
    upper.set_ylabel("requests/s")
    for counts, name, style in ((live.counts, "live", "C0-"), (simulated, "simulated", "C1--")):
        points = [(0.0, at(counts, 0.0)), *((t, n) for t, n in counts if 0 < t < span_s), (span_s, at(counts, span_s))]
        lower.step([t for t, _ in points], [n for _, n in points], style, where="post", label=name)
    lower.set(
        xlabel=f"seconds ({speed:g} times as fast as recorded)", ylabel="workers, starting or ready", ylim=(0, None)
    )
    lower.legend()
    figure.suptitle(title)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", default="synthetic:onoff?rate=0.9&on=900&off=1500&hours=1&work=4")
    parser.add_argument("--begin", type=float, help="first hour of the trace to take; default: the busiest hour")
    parser.add_argument("--hours", type=float, default=1.0, help="with --begin, the number of hours")
    parser.add_argument("--scale-work", type=float, default=1.0, help="multiply the work of requests")
    parser.add_argument("--max-workers", type=int, default=8)
    parser.add_argument("--initial-workers", type=int, default=1, help="ready before the first request")
    parser.add_argument("--speed", type=float, default=6.0)
    parser.add_argument("--policy", default="slo_work")
    parser.add_argument("--interval", type=float, default=30.0, help="seconds between decisions, before the speed-up")
    parser.add_argument("--load", type=float, default=40.0, help="seconds of loading, before the speed-up")
    parser.add_argument("--max-wait", type=float, default=10.0, help="allowed wait in seconds, before the speed-up")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    hour = part_of(args.trace, args.scale_work, args.begin, args.hours)
    traffic = Traffic([t / args.speed for t in hour.times], scale_work(hour, 1 / args.speed).work)
    # The live run rounds the work to whole steps, so the simulation does the same.
    traffic = traffic._replace(work=[max(round(work / _STEP_S), 1) * _STEP_S for work in traffic.work])
    span_s = 60 * math.ceil(max(hour.times) / 60) / args.speed
    scaling = settings(
        args.speed, args.policy, args.interval, args.load, args.max_workers, args.max_wait, args.initial_workers
    )
    scenario = Scenario(
        {"m": traffic}, {"m": WorkerProfile("m")}, {"m": Scaling.model_validate(scaling)}, args.max_workers, span_s
    )
    live = run_live(scenario, scaling, args.load / args.speed)
    simulated, in_time = simulate(scenario, live)
    tick_s = args.interval / args.speed
    shares = [
        share_within_tick(live.counts, simulated, span_s, tick_s),
        share_within_tick(simulated, live.counts, span_s, tick_s),
    ]
    result = {
        "what": "share of time in which the worker counts of both runs differ by at most 1, within one tick",
        "live_as_simulated": shares[0],
        "simulated_as_live": shares[1],
        "requests": len(traffic.times),
        "errors": live.errors,
        "mean_workers": {"live": mean(live.counts, span_s), "simulated": mean(simulated, span_s)},
        "in_time": {"live": live.in_time, "simulated": in_time},
        "engine": "simulated engine",
        "starts": {"live": len(live.starts_s), "took_s": live.starts_s},
        "options": {key: Path(str(value)).name for key, value in vars(args).items() if value is not None},
        "machine": machine(),
        "live": live.counts,
        "simulated": simulated,
    }
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")
    title = f"{args.policy}: the same traffic live and simulated ({100 * shares[0]:.1f} % within one tick and ±1)"
    if args.plot:
        draw_plot(args.plot, live, simulated, args.speed, span_s, title)
    print(json.dumps({key: result[key] for key in list(result)[:7]}, indent=1))


def simulate(scenario: Scenario, live: LiveRun) -> tuple[Counts, float]:
    """Simulate the same hour. Returns the workers over time, and the share of requests in time.

    It starts earlier by the live balancer's uptime at the first request.
    """
    lead_s = live.uptime_s
    traffic = Traffic([t + lead_s for t in live.traffic.times], live.traffic.work)
    profile = WorkerProfile("m", cold_starts_s=tuple(live.starts_s) or (5.0,), drain_s=0.2)
    moved = replace(scenario, traffic={"m": traffic}, profiles={"m": profile}, span_s=scenario.span_s + lead_s)
    result = run(moved.scalings["m"].policy, moved)
    (row,) = model_results("simulated", result)
    history = result.models["m"].history
    return [(when - lead_s, starting + ready) for when, starting, ready in history], row.in_slo


def mean(counts: Sequence[tuple[float, int]], span_s: float) -> float:
    points = [0.25 * number for number in range(int(span_s / 0.25))]
    return sum(at(list(counts), when) for when in points) / len(points)


if __name__ == "__main__":
    main()
