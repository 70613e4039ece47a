#!/usr/bin/env python
"""What metrics, traces and the access log cost, to one percent: they are switched while one balancer serves.

    python -m scripts.bench.serving.paired_observability --json scripts/bench/results/paired_observability_cpu.json

Processes that run the same code differ by several percent, so `observability` cannot tell one percent. Here a single
balancer serves calls that do nothing, with wrk on 64 connections. It measures pairs of windows, one with the hooks and
one without, in random order: `switched_balancer`. A result is the median over all pairs of the ratio of the CPU time
per request. Its interval holds the median of 95 % of bootstrap samples. The CPU time of the event loop's thread is
what limits the throughput; that of the process also has threads that write.

`metrics`: what the default costs, against hooks that do nothing. `traces`: each request has a trace, which a collector
on this machine receives, against none. `access`: the access log in JSON, against none.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import msgspec
from rich.console import Console
from rich.table import Table

from scripts.bench.serving.observability import BODY, HEADERS, collector, serving
from scripts.bench.serving.peers_lib import wrk
from scripts.bench.serving.switched_balancer import VARIABLE, SwitchName, SwitchPlan, Window
from scripts.harness.load import machine
from scripts.harness.processes import PATIENCE_S, wait_until

_PROGRAM = "scripts.bench.serving.switched_balancer"
_LOAD_S = 20.0
_SAMPLES = 2000
#: Windows with fewer requests lie between two runs of wrk.
_MIN_REQUESTS = 50


def ratios(windows: Sequence[Window], *, of_process: bool = False) -> list[float]:
    """Return CPU time per request with the hooks, divided by that without them, of each pair."""

    def cost(window: Window) -> float:
        return (window.process_s if of_process else window.loop_s) / window.requests

    found = []
    for pair in zip(windows[::2], windows[1::2], strict=True):
        on, off = sorted(pair, key=lambda window: not window.is_on)
        if min(on.requests, off.requests) >= _MIN_REQUESTS:
            found.append(cost(on) / cost(off))
    return found


def median_interval(values: Sequence[float], seed: int = 1) -> tuple[float, float, float]:
    """Return the median, and the bounds of its interval of 95 %, by bootstrap."""
    generator = random.Random(seed)
    medians = [statistics.median(generator.choices(values, k=len(values))) for _ in range(_SAMPLES)]
    percentiles = statistics.quantiles(medians, n=40, method="inclusive")
    return statistics.median(values), percentiles[0], percentiles[-1]


def summary(windows: Sequence[Window]) -> dict[str, Any]:
    """Return microseconds per request, and what the hooks cost in percent, with the interval."""
    result: dict[str, Any] = {"pairs": len(ratios(windows))}
    for key, of_process in (("loop", False), ("process", True)):
        cost = [100 * (value - 1) for value in median_interval(ratios(windows, of_process=of_process))]
        result[f"{key}_cost_percent"] = dict(zip(("median", "from", "to"), cost, strict=True))
    for name, on in (("on", True), ("off", False)):
        own = [each for each in windows if each.is_on is on and each.requests >= _MIN_REQUESTS]
        result[f"loop_us_{name}"] = statistics.median(1e6 * each.loop_s / each.requests for each in own)
    return result


def measure(folder: Path, plan: SwitchPlan, connections: int) -> list[Window]:
    """Serve calls until the balancer has measured all windows; return them."""
    environment = {VARIABLE: msgspec.json.encode(plan).decode()}
    settings = {"logging": {"format": "json", "access": True}} if plan.switch == "access" else {}
    done = threading.Event()
    with collector() as url:
        if plan.switch == "traces":
            environment["OTEL_EXPORTER_OTLP_ENDPOINT"] = url
        with serving(
            folder / plan.switch, plan.switch, environment=environment, settings=settings, program=_PROGRAM
        ) as server:
            address = f"{server.base_url}/v1/models/noop:predict"

            def load() -> None:
                while not done.is_set():
                    wrk.run(address, BODY, HEADERS, connections, _LOAD_S)

            thread = threading.Thread(target=load)
            thread.start()
            try:
                wait_until(Path(plan.out).exists, "the windows", 4 * plan.pairs * plan.window_s + PATIENCE_S)
            finally:
                done.set()
                thread.join()
    return msgspec.json.decode(Path(plan.out).read_bytes(), type=list[Window])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--switches", nargs="+", choices=get_args(SwitchName), default=get_args(SwitchName))
    parser.add_argument("--pairs", type=int, default=250, help="of windows, for each switch")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each window")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    if not wrk.is_installed():
        print("wrk is not installed", file=sys.stderr)
        return 2
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="muster-observability-") as folder:
        for switch in args.switches:
            plan = SwitchPlan(switch, args.pairs, args.seconds, f"{folder}/{switch}.json")
            results[switch] = summary(measure(Path(folder), plan, args.connections))
    table = Table("switch", "loop µs without", "with", "cost (95 %)", "cost of the process (95 %)", "pairs")
    for name, found in results.items():
        costs = [
            f"{cost['median']:.1f} % ({cost['from']:.1f} to {cost['to']:.1f})"
            for cost in (found["loop_cost_percent"], found["process_cost_percent"])
        ]
        times = f"{found['loop_us_off']:.1f}", f"{found['loop_us_on']:.1f}"
        table.add_row(name, *times, *costs, str(found["pairs"]))
    Console().print(table)
    if args.json:
        command = " ".join(("python -m scripts.bench.serving.paired_observability", *sys.argv[1:]))
        args.json.write_text(
            json.dumps({"command": command, "machine": machine(), "switches": results}, indent=1) + "\n"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
