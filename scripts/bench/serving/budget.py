#!/usr/bin/env python
"""Where the CPU time of a request goes: a call of a user's engine that does nothing, from the socket and back.

    python -m scripts.bench.serving.budget --rounds 3 --json scripts/bench/results/budget.json

Starts a balancer with a sampling profiler and one worker, and sends calls with wrk on 64 connections. The CPU time of
each thread is what the kernel says, without the profiler. The samples only divide that of the balancer's main thread
between the stages: a sample belongs to the innermost function that has a stage. Medians over the rounds.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from signal import SIGUSR2
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from scripts.bench.serving.peers_lib import wrk
from scripts.bench.serving.peers_lib.deployment import Measurement
from scripts.harness.balancer import Server, running
from scripts.harness.load import machine
from scripts.harness.processes import PATIENCE_S, wait_until

_ENGINE = """
class NoOp:
    def predict(self, items: list[float]) -> list[float]:
        return items
"""
_BODY = b'{"instances": [1.5]}'
_HEADERS = {"content-type": "application/json"}
_WARM_UP_S = 2.0

#: Stages of the balancer by prefixes of files and functions. The first that matches counts.
STAGES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (
        "reply",
        (
            "loadbalancer/http_server/exchange.py:Exchange.respond",
            "loadbalancer/http_server/exchange.py:Exchange._encode_head",
            "loadbalancer/http_server/exchange.py:Exchange.continue_call",
            "loadbalancer/http_server/exchange.py:Exchange._complete",
            "loadbalancer/http_server/responses.py:",
            "loadbalancer/api/hot_calls.py:HotCall._",
            "loadbalancer/api/frame_response.py:",
            "loadbalancer/api/calls.py:_response",
            "loadbalancer/api/calls.py:_json_response",
            "loadbalancer/generation/deferred_callbacks.py:",
            "loadbalancer/schema/call_results.py:",
            "loadbalancer/metrics/",
        ),
    ),
    ("accept and parse", ("loadbalancer/http_server/",)),
    (
        "access",
        (
            "loadbalancer/access/",
            "loadbalancer/api/request_head.py:",
            "loadbalancer/api/request_recorder.py:",
            "loadbalancer/context/",
            "loadbalancer/api/hot",
            "loadbalancer/api/middle",
        ),
    ),
    (
        "admission",
        ("loadbalancer/scheduling/admission_control.py:", "loadbalancer/generation/in_flight.py:ResponseMemory."),
    ),
    ("scheduling", ("loadbalancer/scheduling/", "loadbalancer/scheduler_service.py:", "loadbalancer/generation/in_fl")),
    ("encode and decode", ("wire/",)),
    ("ZeroMQ", ("loadbalancer/transport/",)),
    ("validation", ("loadbalancer/api/", "loadbalancer/generation/", "loadbalancer/schema/", "configs/")),
)
#: What has no function of this repository: the event loop and the sockets of HTTP.
_LOOP = "event loop and sockets"


@dataclass(frozen=True)
class Round:
    """One measurement: what wrk has seen, and microseconds of CPU time per request by stage."""

    load: Measurement
    cpu_us: dict[str, float]
    #: Samples by innermost function, and of all.
    functions: Counter[str]


def stage_of(stack: Sequence[str]) -> str:
    """Return the stage of a sample, whose innermost function is first."""
    for function in stack:
        for stage, prefixes in STAGES:
            if function.startswith(prefixes):
                return stage
    return _LOOP


def thread_times(pid: int) -> dict[int, float]:
    """Return the CPU seconds of each thread of a process."""
    return {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(pid).threads()}


def measure_round(server: Server, url: str, connections: int, seconds: float) -> Round:
    pids = server.pids
    balancer = pids.pop("loadbalancer")
    workers = list(pids.values())
    before = {pid: thread_times(pid) for pid in (balancer, *workers)}
    load = wrk.run(url, _BODY, _HEADERS, connections, seconds)
    after = {pid: thread_times(pid) for pid in before}
    used = {pid: {tid: after[pid][tid] - before[pid].get(tid, 0.0) for tid in after[pid]} for pid in before}
    count = max(load.answered, 1)
    stages, functions = _samples(server, url, connections, seconds)
    main_us = 1e6 * used[balancer].pop(balancer) / count
    total = sum(stages.values())
    cpu_us = {stage: main_us * number / total for stage, number in stages.items()}
    cpu_us["balancer: other threads"] = 1e6 * sum(used[balancer].values()) / count
    cpu_us["worker: loop"] = 1e6 * sum(used[pid].pop(pid) for pid in workers) / count
    cpu_us["worker: other threads"] = 1e6 * sum(sum(used[pid].values()) for pid in workers) / count
    return Round(load, cpu_us, functions)


def _samples(server: Server, url: str, connections: int, seconds: float) -> tuple[Counter[str], Counter[str]]:
    """Return the samples by stage and by innermost function, under the same load."""
    found, process = server.data_dir / "samples.json", psutil.Process(server.balancer.pid)
    process.send_signal(SIGUSR2)
    wrk.run(url, _BODY, _HEADERS, connections, seconds)
    process.send_signal(SIGUSR2)
    wait_until(found.exists, "the samples")
    stages: Counter[str] = Counter()
    functions: Counter[str] = Counter()
    for stack, number in json.loads(found.read_text()):
        stages[stage_of(stack)] += number
        functions[stack[0] if stack else _LOOP] += number
    found.unlink()
    return stages, functions


@contextlib.contextmanager
def serving(folder: Path) -> Iterator[tuple[Server, str]]:
    """Start a balancer with the profiler and a worker; yield them with the address of the calls."""
    engine = folder / "no_op.py"
    engine.write_text(_ENGINE)
    model: dict[str, Any] = {"engine": f"{engine}:NoOp", "max_batch_size": 16}
    program = "scripts.bench.serving.sampled_balancer"
    with running(folder / "data", {"noop": model}, 1, program=program) as server:
        url = f"{server.base_url}/v1/models/noop:predict"
        httpx.post(url, content=_BODY, headers=_HEADERS, timeout=PATIENCE_S).raise_for_status()
        yield server, url


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement, and again with the profiler")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--list", type=int, default=0, metavar="N", help="print the N functions with most samples")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    if not wrk.is_installed():
        print("wrk is not installed", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="muster-budget-") as folder, serving(Path(folder)) as (server, url):
        wrk.run(url, _BODY, _HEADERS, args.connections, _WARM_UP_S)
        rounds = [measure_round(server, url, args.connections, args.seconds) for _ in range(args.rounds)]
    names = dict.fromkeys(name for one in rounds for name in one.cpu_us)
    medians = {name: statistics.median(one.cpu_us.get(name, 0.0) for one in rounds) for name in names}
    order = [*(stage for stage, _ in STAGES), _LOOP]
    medians = {name: medians[name] for name in sorted(medians, key=lambda each: (each not in order, each))}
    table = Table("stage", "CPU µs per request")
    for name, value in medians.items():
        table.add_row(name, f"{value:.1f}")
    table.add_row("all", f"{sum(medians.values()):.1f}")
    console = Console()
    console.print(table)
    per_s = statistics.median(one.load.per_s for one in rounds)
    p99 = statistics.median(one.load.p99_ms for one in rounds)
    errors = sum(one.load.errors for one in rounds)
    functions = sum((one.functions for one in rounds), Counter[str]())
    for name, number in functions.most_common(args.list):
        console.print(f"{100 * number / functions.total():5.1f} %  {stage_of([name])}: {name}", highlight=False)
    console.print(f"{per_s:.0f} requests/s, p99 {p99:.1f} ms, {errors} errors")
    if args.json:
        command = " ".join(("python -m scripts.bench.serving.budget", *sys.argv[1:]))
        content = {"command": command, "machine": machine(), "requests_per_s": per_s, "p99_ms": p99}
        args.json.write_text(json.dumps(content | {"errors": errors, "cpu_us": medians}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
