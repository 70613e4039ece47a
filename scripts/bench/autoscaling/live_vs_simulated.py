"""One hour of traffic, sped up, through the real controller with simulated accelerators, and through the simulator.

    python -m scripts.bench.autoscaling.live_vs_simulated --json scripts/bench/results/live_vs_simulated.json \
        --plot docs/live_vs_simulated.png

Both get the same settings, whose times are all divided by the speed, and the same requests. How long starts took in the
live run is measured there and given to the simulator, which cannot know what this machine needs to start a process.
"""

from __future__ import annotations

import argparse
import asyncio
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
from controller.simulator.scenarios import Scenario, Traffic, scale_work
from controller.simulator.synthetic import synthetic_traffic
from scripts.harness.instance import serving
from scripts.harness.load import machine
from wire.snapshot import Snapshot

_STEP_S = 0.02
_MOST = 8
_LINE = re.compile(
    r"^(\S+ \S+) \w+ +controller: (?:(starting|draining|killing) worker (\S+)|worker (\S+) on \S+ on_worker_exit)",
)

#: (seconds since the first request's clock began, workers that are starting or ready).
Counts = list[tuple[float, int]]


def settings(speed: float, policy: str, interval_s: float, load_s: float) -> dict[str, Any]:
    """Defaults of the scaling, sped up."""
    usual = Scaling()
    return {
        "policy": policy,
        "min_workers": 1,
        "max_workers": _MOST,
        "interval_s": interval_s / speed,
        "slo": {"max_wait_s": usual.slo.max_wait_s / speed},
        "look_back_period_s": usual.look_back_period_s / speed,
        "rate_window_s": usual.rate_window_s / speed,
        "drain_s": usual.drain_s / speed,
        # Said, because the live controller has seen its first worker start when the first request comes.
        "cold_start_s": load_s / speed,
        **({"startup_hold_s": usual.startup_hold_s / speed} if policy == "slo_work" else {}),
    }


@dataclass
class Live:
    """What was seen of the live run. Times are seconds on the clock of the requests."""

    traffic: Traffic
    counts: Counts = field(default_factory=list)
    ready: Counts = field(default_factory=list)
    starts_s: list[float] = field(default_factory=list)
    errors: int = 0
    #: The balancer's age when the requests' clock began.
    uptime_s: float = 0.0


async def ask(url: str, folder: Path, live: Live, zero: float) -> None:
    """Send every request at its time, and look at the workers meanwhile."""
    timeout = aiohttp.ClientTimeout(total=600)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:

        async def one(at: float, work_s: float, seed: int) -> None:
            await asyncio.sleep(zero + at - time.time())
            steps = max(round(work_s / _STEP_S), 1)
            body = {"prompt": "a seven", "num_inference_steps": steps, "seed": seed, "size": "64x64"}
            async with session.post(f"{url}/v1/images/generations", json=body) as answer:
                await answer.read()
                live.errors += answer.status != 200

        async def look() -> None:
            headers = {"authorization": f"Bearer {internal_token(folder)}"}
            while True:
                async with session.get(f"{url}/internal/snapshot", headers=headers) as answer:
                    snapshot = msgspec.json.decode(await answer.read(), type=Snapshot)
                at = time.time() - zero
                live.uptime_s = live.uptime_s or snapshot.uptime_s - at
                serving = sum(w.state == "ready" and w.slots > 0 for w in snapshot.workers)
                live.ready.append((at, serving))
                await asyncio.sleep(0.25)

        looking = asyncio.create_task(look())
        await asyncio.gather(*(one(at, work, n) for n, (at, work) in enumerate(zip(*live.traffic, strict=True))))
        await asyncio.sleep(2.0)
        looking.cancel()


def read_log(text: str, zero: float) -> tuple[Counts, dict[str, float]]:
    """How many workers were starting or ready, and when each was started, from what the controller logged."""
    counts, number, began = [], 0, {}
    for line in text.splitlines():
        found = _LINE.match(line)
        if not found:
            continue
        at = datetime.strptime(found[1], "%Y-%m-%d %H:%M:%S,%f").timestamp() - zero
        number += 1 if found[2] == "starting" else -1
        if found[2] == "starting":
            began[found[3]] = at
        counts.append((at, number))
    return counts, began


def run_live(scenario: Scenario, scaling: dict[str, Any], load_s: float) -> Live:
    live = Live(scenario.traffic["m"])
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
            zero = time.time() + 1.0
            asyncio.run(ask(url, Path(folder), live, zero))
            text = log.read_text()
    live.counts, began = read_log(text, zero)
    told = re.findall(r"worker (\S+) ready on \S+ after ([\d.]+) s", text)
    live.starts_s = [float(seconds) for name, seconds in told if name in began]
    return live


def at(counts: Counts, when: float) -> int:
    number = bisect_right(counts, (when, math.inf))
    return counts[number - 1][1] if number else 0


def within(one: Counts, other: Counts, span_s: float, tick_s: float) -> float:
    """Part of the time in which the first count is one that the second has, give or take 1, within a tick."""
    points = [0.25 * number for number in range(int(span_s / 0.25))]
    good = 0
    for when in points:
        near = {at(other, when + tick_s * step / 8) for step in range(-8, 9)}
        good += min(near) - 1 <= at(one, when) <= max(near) + 1
    return good / len(points)


def draw(file: Path, live: Live, simulated: Counts, speed: float, span_s: float, title: str) -> None:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (above, below) = pyplot.subplots(2, 1, figsize=(11, 6), sharex=True, layout="constrained")
    bins = [0.5 * number * span_s / 60 for number in range(121)]
    above.hist(list(live.traffic.times), bins=bins, weights=[1 / (bins[1])] * len(live.traffic.times), color="0.6")
    above.set_ylabel("requests/s")
    for counts, name, style in ((live.counts, "live", "C0-"), (simulated, "simulated", "C1--")):
        points = [(0.0, at(counts, 0.0)), *((t, n) for t, n in counts if 0 < t < span_s), (span_s, at(counts, span_s))]
        below.step([t for t, _ in points], [n for _, n in points], style, where="post", label=name)
    below.set(xlabel=f"seconds (an hour, {speed:g} times as fast)", ylabel="workers, starting or ready", ylim=(0, None))
    below.legend()
    figure.suptitle(title)
    figure.savefig(file, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", default="synthetic:onoff?rate=0.9&on=900&off=1500&hours=1&work=4")
    parser.add_argument("--speed", type=float, default=6.0)
    parser.add_argument("--policy", default="slo_work")
    parser.add_argument("--interval", type=float, default=30.0, help="seconds between decisions, before the speed-up")
    parser.add_argument("--load", type=float, default=40.0, help="seconds of loading, before the speed-up")
    parser.add_argument("--json", type=Path, required=True)
    parser.add_argument("--plot", type=Path, required=True)
    args = parser.parse_args()
    hour = synthetic_traffic(args.trace, 1)
    traffic = Traffic([t / args.speed for t in hour.times], scale_work(hour, 1 / args.speed).work)
    # As the live run rounds to whole steps, so does the simulation.
    traffic = traffic._replace(work=[max(round(work / _STEP_S), 1) * _STEP_S for work in traffic.work])
    span_s = 60 * math.ceil(max(hour.times) / 60) / args.speed
    scaling = settings(args.speed, args.policy, args.interval, args.load)
    scenario = Scenario(
        {"m": traffic}, {"m": WorkerProfile("m")}, {"m": Scaling.model_validate(scaling)}, _MOST, span_s
    )
    live = run_live(scenario, scaling, args.load / args.speed)
    simulated = simulate(scenario, live)
    tick_s = args.interval / args.speed
    shares = [within(live.counts, simulated, span_s, tick_s), within(simulated, live.counts, span_s, tick_s)]
    result = {
        "what": "part of the time in which the workers of one run are those of the other, +-1, within one tick",
        "live_as_simulated": shares[0],
        "simulated_as_live": shares[1],
        "requests": len(traffic.times),
        "errors": live.errors,
        "mean_workers": {"live": mean(live.counts, span_s), "simulated": mean(simulated, span_s)},
        "starts": {"live": len(live.starts_s), "took_s": live.starts_s},
        "options": {key: str(value) for key, value in vars(args).items()},
        "machine": machine(),
        "live": live.counts,
        "simulated": simulated,
    }
    args.json.write_text(json.dumps(result, indent=1) + "\n")
    title = f"{args.policy}: the same hour live and simulated ({100 * shares[0]:.1f} % within one tick and ±1)"
    draw(args.plot, live, simulated, args.speed, span_s, title)
    print(json.dumps({key: result[key] for key in list(result)[:6]}, indent=1))


def simulate(scenario: Scenario, live: Live) -> Counts:
    """The same hour. The balancer had counted for a while before the first request came, and so does the simulator."""
    lead_s = live.uptime_s
    traffic = Traffic([t + lead_s for t in live.traffic.times], live.traffic.work)
    service = WorkerProfile("m", cold_starts_s=tuple(live.starts_s) or (5.0,), drain_s=0.2)
    moved = replace(scenario, traffic={"m": traffic}, profiles={"m": service}, span_s=scenario.span_s + lead_s)
    station = run(moved.scalings["m"].policy, moved).models["m"]
    return [(when - lead_s, starting + ready) for when, starting, ready in station.history]


def mean(counts: Sequence[tuple[float, int]], span_s: float) -> float:
    points = [0.25 * number for number in range(int(span_s / 0.25))]
    return sum(at(list(counts), when) for when in points) / len(points)


if __name__ == "__main__":
    main()
