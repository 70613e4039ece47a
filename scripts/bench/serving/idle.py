"""What a server costs that has nothing to do: seconds to its first answers, and memory by process.

    python -m scripts.bench.serving.idle --rounds 5 --json results.json

Each round starts `python -m loadbalancer` by itself, until its first answer. Then it starts `python -m controller` with
one simulated model, waits until it is ready and at rest, and reads `/proc/PID/smaps_rollup`. PSS counts a page that
several processes share in equal parts. Without the shared pages of libraries (`private_mb`) a process costs less.
`pair_mb` is what balancer and controller cost together where no other process shares a library with them: their
private pages, and of each file the pages of the process that has more of them.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml
from rich.console import Console
from rich.table import Table

from scripts.harness.balancer import sim
from scripts.harness.instance import Instance
from scripts.harness.load import machine
from scripts.harness.processes import free_port, launch, stop

#: After the worker is ready: the imports and threads of the start are done.
_REST_S = 3.0
#: A period over which the CPU time at rest is measured.
_IDLE_S = 5.0
_POLL_S = 0.005


def memory(pid: int) -> dict[str, float]:
    """Return the proportional and the private memory of the process in MB."""
    fields = dict(line.split()[:2] for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:])
    private = int(fields["Private_Clean:"]) + int(fields["Private_Dirty:"])
    return {"pss_mb": int(fields["Pss:"]) * 1024 / 1e6, "private_mb": private * 1024 / 1e6}


def file_pages(smaps: str) -> dict[str, float]:
    """Return the MB of each mapped file that no process has changed. `smaps`: the text of `/proc/PID/smaps`."""
    found: Counter[str] = Counter()
    file = ""
    for fields in map(str.split, smaps.splitlines()):
        if not fields[0].endswith(":"):
            file = fields[5] if len(fields) > 5 else ""
        elif file.startswith("/") and fields[0] in ("Rss:", "Anonymous:"):
            kilobytes = int(fields[1])
            found[file] += kilobytes if fields[0] == "Rss:" else -kilobytes
    return {name: size * 1024 / 1e6 for name, size in found.items()}


def pair_mb(private_mb: float, first: Mapping[str, float], second: Mapping[str, float]) -> float:
    """Return what two processes cost with these private pages and these pages of files."""
    return private_mb + sum(max(first.get(name, 0.0), second.get(name, 0.0)) for name in first.keys() | second.keys())


def cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return times.user + times.system


def succeeds(client: httpx.Client, path: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return client.get(path).is_success
    return False


def until(condition: Callable[[], bool]) -> float:
    """Wait for the condition at a short interval and return the time."""
    while not condition():
        time.sleep(_POLL_S)
    return time.monotonic()


def processes(instance: Instance) -> dict[str, psutil.Process]:
    """Return the processes of the server by kind."""
    found = {"controller": psutil.Process(instance.process.pid)}
    for record in instance.records().values():
        kind = "loadbalancer" if record.id == "loadbalancer" else "worker"
        found[kind] = psutil.Process(record.pid)
    return found


def measure_balancer(folder: Path) -> dict[str, float]:
    """Start a balancer by its own command. Return the seconds and the CPU seconds to its first answer."""
    folder.mkdir(parents=True)
    config, port = folder / "config.yaml", free_port()
    config.write_text(yaml.safe_dump({"models": {"m": sim()}}))
    with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=5) as client:
        started = time.monotonic()
        balancer = launch(
            "loadbalancer", folder, "--config", str(config), "--port", str(port), log="loadbalancer", threads=None
        )
        try:
            healthy_s = until(lambda: succeeds(client, "/healthz")) - started
            return {"healthz_s": healthy_s, "start_cpu_s": cpu_s(psutil.Process(balancer.pid))}
        finally:
            stop(balancer)


def measure(folder: Path) -> dict[str, Any]:
    """Measure a balancer's start. Then start a server, measure it at rest, and stop it."""
    alone = measure_balancer(folder / "alone")
    started = time.monotonic()
    instance = Instance(
        folder / "server", {"workers": {}, "models": {"m": sim(scaling={"min_workers": 1})}}, threads=None
    )
    try:
        with httpx.Client(base_url=instance.url, timeout=5) as client:  # one: its start takes longer than a request
            healthy_s = until(lambda: succeeds(client, "/healthz")) - started
            ready_s = until(lambda: succeeds(client, "/readyz")) - started
        time.sleep(_REST_S)
        running = processes(instance)
        start_cpu = {kind: cpu_s(process) for kind, process in running.items()}
        seen = {kind: memory(process.pid) for kind, process in running.items()}
        time.sleep(_IDLE_S)
        for kind, process in running.items():
            seen[kind] |= {
                "start_cpu_s": start_cpu[kind],
                "idle_cpu_ms_per_s": 1000 * (cpu_s(process) - start_cpu[kind]) / _IDLE_S,
                "threads": process.num_threads(),
            }
        pair = ("controller", "loadbalancer")
        files = [file_pages(Path(f"/proc/{running[kind].pid}/smaps").read_text()) for kind in pair]
        private = sum(seen[kind]["private_mb"] for kind in pair)
        result = {"healthz_s": healthy_s, "ready_s": ready_s, "balancer_alone": alone, "processes": seen}
        return result | {"pair_mb": pair_mb(private, *files)}
    finally:
        instance.end()


def medians(rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the median over the rounds of each number."""
    first = rounds[0]
    return {
        key: medians([each[key] for each in rounds])
        if isinstance(first[key], dict)
        else statistics.median(each[key] for each in rounds)
        for key in first
    }


def table(result: dict[str, Any]) -> Table:
    alone = result["balancer_alone"]
    title = f"/healthz after {result['healthz_s']:.2f} s, ready after {result['ready_s']:.2f} s; "
    title += f"the balancer's /healthz {alone['healthz_s']:.2f} s after its own command; "
    title += f"balancer and controller alone {result['pair_mb']:.1f} MB"
    shown = Table("process", "PSS MB", "private MB", "CPU s to start", "CPU ms/s at rest", "threads", title=title)
    for kind, seen in result["processes"].items():
        values = ("pss_mb", "private_mb", "start_cpu_s", "idle_cpu_ms_per_s")
        shown.add_row(kind, *(f"{seen[key]:.1f}" for key in values), f"{seen['threads']:.0f}")
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rounds = [measure(Path(folder) / str(number)) for number in range(args.rounds)]
    result = medians(rounds)
    Console().print(table(result))
    if args.json is not None:
        command = f"python -m scripts.bench.serving.idle --rounds {args.rounds}"
        seen = {"command": command, "machine": machine(), "median": result, "rounds": rounds}
        args.json.write_text(json.dumps(seen, indent=1) + "\n")


if __name__ == "__main__":
    main()
