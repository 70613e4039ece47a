#!/usr/bin/env python
"""What metrics, traces and the access log cost: calls of a user's engine that does nothing, with each of them in turn.

    python -m scripts.bench.serving.observability --rounds 6 --json scripts/bench/results/observability_cpu.json
    git worktree add /tmp/before REVISION
    python -m scripts.bench.serving.observability --baseline /tmp/before ...

One server per variant, with one worker each, all started before the first round. Only one is called at a time, with wrk
on 64 connections. In each round every variant is measured once, in an order that moves on from round to round, and
compared with `off` of the same round: by its throughput, and by the CPU time of its processes per request, which other
programs on the machine disturb less. The results are medians of these ratios.

`off`: the default. `unobserved`: the same code, whose hooks for metrics and traces do nothing. `scraped`: /metrics is
read each second. `traced`: each request has a trace, which a collector on this machine receives. `access`: the access
log in JSON. `baseline`: `off`, in another checkout of this repository. What `off` costs is the difference from
`unobserved`, which no other change of the code is part of.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from configs.paths import internal_token
from scripts.bench.serving.peers_lib import wrk
from scripts.harness.balancer import Server
from scripts.harness.load import machine
from scripts.harness.processes import PATIENCE_S, ROOT, child_process, free_port, launch, wait_until

_ENGINE = """
class NoOp:
    def predict(self, items: list[float]) -> list[float]:
        return items
"""
BODY = b'{"instances": [1.5]}'
HEADERS = {"content-type": "application/json"}
_WARM_UP_S = 2.0
_SCRAPE_S = 1.0
OFF, UNOBSERVED = "off", "unobserved"
_UNOBSERVED_PROGRAM = "scripts.bench.serving.unobserved_balancer"


@dataclass(frozen=True)
class Variant:
    """A server, and what is done beside the calls."""

    name: str
    server: Server
    is_scraped: bool = False

    @property
    def url(self) -> str:
        return f"{self.server.base_url}/v1/models/noop:predict"

    def cpu_s(self) -> float:
        """CPU seconds of its processes and theirs so far."""
        own = [psutil.Process(pid) for pid in self.server.pids.values()]
        processes = {*own, *(child for process in own for child in process.children(recursive=True))}
        return sum(sum(process.cpu_times()[:2]) for process in processes)


@dataclass(frozen=True)
class Sample:
    """One measurement of a variant."""

    requests_per_s: float
    cpu_us: float
    errors: int


@contextlib.contextmanager
def serving(
    folder: Path,
    name: str,
    root: Path = ROOT,
    *,
    environment: Mapping[str, str],
    settings: Mapping[str, Any],
    program: str = "loadbalancer",
) -> Iterator[Server]:
    """Start a balancer with one worker, of the checkout in `root`."""
    folder.mkdir()
    (folder / "no_op.py").write_text(_ENGINE)
    models = {"noop": {"engine": f"{folder}/no_op.py:NoOp", "max_batch_size": 16}}
    config, port = folder / "config.yaml", free_port()
    config.write_text(yaml.safe_dump({"models": models, **settings}))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MUSTER_", "OTEL_"))}
    variables = kept | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", **environment}
    process: dict[str, Any] = {"cwd": root, "env": variables}
    options = ("--config", str(config))
    balancer = launch(program, folder, *options, "--port", str(port), log="loadbalancer", **process)
    server = Server(folder, config, port, balancer, models)
    try:
        wait_until(server.is_up, f"the balancer of {name}")
        own = ("--id", "noop-0", "--model", "noop", "--device", "cpu:0")
        server.workers["noop-0"] = launch("worker", folder, *options, *own, log="noop-0", **process)
        server.wait_for_workers("noop-0")
        yield server
    finally:
        server.end()


@contextlib.contextmanager
def collector() -> Iterator[str]:
    """Start a collector that forgets what it gets; yield its address."""
    port = free_port()
    command = [sys.executable, "-m", "scripts.bench.serving.trace_sink", str(port)]
    with child_process(command, cwd=ROOT):
        url = f"http://127.0.0.1:{port}"

        def answers() -> bool:
            with contextlib.suppress(httpx.TransportError):
                return httpx.get(url, timeout=PATIENCE_S).is_success
            return False

        wait_until(answers, "the collector")
        yield url


@contextlib.contextmanager
def scraping(server: Server) -> Iterator[None]:
    """Read the metrics each second, as Prometheus does."""
    ended = threading.Event()
    headers = {"authorization": f"Bearer {internal_token(server.data_dir)}"}

    def scrape() -> None:
        with httpx.Client(base_url=server.base_url, headers=headers, timeout=PATIENCE_S) as client:
            while not ended.wait(_SCRAPE_S):
                client.get("/metrics").raise_for_status()

    thread = threading.Thread(target=scrape)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def cost_of_off(rounds: list[dict[str, Sample]]) -> tuple[float, float]:
    """Return what `off` costs against `unobserved`, in percent: the throughput that it loses, and more CPU time."""
    pairs = [(one[OFF], one[UNOBSERVED]) for one in rounds]
    lost = statistics.median(100 * (1 - off.requests_per_s / bare.requests_per_s) for off, bare in pairs)
    return lost, statistics.median(100 * (off.cpu_us / bare.cpu_us - 1) for off, bare in pairs)


def measure(variant: Variant, connections: int, seconds: float) -> Sample:
    with scraping(variant.server) if variant.is_scraped else contextlib.nullcontext():
        wrk.run(variant.url, BODY, HEADERS, connections, 1.0)
        before = variant.cpu_s()
        load = wrk.run(variant.url, BODY, HEADERS, connections, seconds)
        used = variant.cpu_s() - before
    return Sample(load.per_s, 1e6 * used / max(load.answered, 1), load.errors)


def summary(rounds: list[dict[str, Sample]], name: str) -> dict[str, Any]:
    """Return the medians of a variant, absolute and compared with `off` in the same round."""
    samples, base = [one[name] for one in rounds], [one[OFF] for one in rounds]
    pairs = list(zip(samples, base, strict=True))
    slower = [100 * (1 - own.requests_per_s / off.requests_per_s) for own, off in pairs]
    dearer = [100 * (own.cpu_us / off.cpu_us - 1) for own, off in pairs]
    return {
        "requests_per_s": statistics.median(sample.requests_per_s for sample in samples),
        "cpu_us_per_request": statistics.median(sample.cpu_us for sample in samples),
        "throughput_lost_percent": statistics.median(slower),
        "throughput_lost_percent_by_round": slower,
        "cpu_more_percent": statistics.median(dearer),
        "cpu_more_percent_by_round": dearer,
        "errors": sum(sample.errors for sample in samples),
    }


@contextlib.contextmanager
def variants(folder: Path, baseline: Path | None) -> Iterator[list[Variant]]:
    with contextlib.ExitStack() as stack:
        url = stack.enter_context(collector())
        traced = {"OTEL_EXPORTER_OTLP_ENDPOINT": url}
        log = {"logging": {"format": "json", "access": True}}

        def start(
            name: str,
            root: Path = ROOT,
            *,
            program: str = "loadbalancer",
            scraped: bool = False,
            **given: Mapping[str, Any],
        ) -> Variant:
            environment, settings = given.get("environment", {}), given.get("settings", {})
            server = stack.enter_context(
                serving(folder / name, name, root, environment=environment, settings=settings, program=program)
            )
            return Variant(name, server, scraped)

        made = [start(OFF), start(UNOBSERVED, program=_UNOBSERVED_PROGRAM)]
        made += [start("scraped", scraped=True), start("traced", environment=traced)]
        made.append(start("access", settings=log))
        if baseline is not None:
            made.append(start("baseline", baseline.resolve()))
        for each in made:
            httpx.post(each.url, content=BODY, headers=HEADERS, timeout=PATIENCE_S).raise_for_status()
            wrk.run(each.url, BODY, HEADERS, 64, _WARM_UP_S)
        yield made


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=5.0, help="of each measurement")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--baseline", type=Path, metavar="FOLDER", help="another checkout, to compare with")
    parser.add_argument("--json", type=Path, help="write the results to this file")
    args = parser.parse_args()
    if not wrk.is_installed():
        print("wrk is not installed", file=sys.stderr)
        return 2
    rounds: list[dict[str, Sample]] = []
    with (
        tempfile.TemporaryDirectory(prefix="muster-observability-") as folder,
        variants(Path(folder), args.baseline) as made,
    ):
        for number in range(args.rounds):
            first = number % len(made)
            order = [*made[first:], *made[:first]]
            rounds.append({each.name: measure(each, args.connections, args.seconds) for each in order})
    results = {each.name: summary(rounds, each.name) for each in made}
    table = Table("variant", "requests/s", "CPU µs per request", "throughput lost", "more CPU time", "errors")
    for name, found in results.items():
        rates = f"{found['requests_per_s']:.0f}", f"{found['cpu_us_per_request']:.0f}"
        ratios = f"{found['throughput_lost_percent']:.1f} %", f"{found['cpu_more_percent']:.1f} %"
        table.add_row(name, *rates, *ratios, str(found["errors"]))
    console = Console()
    console.print(table)
    lost, more = cost_of_off(rounds)
    console.print(f"Metrics and traces that are off cost {lost:.1f} % of the throughput, {more:.1f} % more CPU time")
    if args.json:
        command = " ".join(("python -m scripts.bench.serving.observability", *sys.argv[1:]))
        content = {"command": command, "machine": machine(), "rounds": args.rounds, "variants": results}
        content["cost_of_off_percent"] = {"throughput": lost, "cpu": more}
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
