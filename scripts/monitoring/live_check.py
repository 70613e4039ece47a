#!/usr/bin/env python3
"""Ask every expression of the dashboards and alerts from a real Prometheus that reads a server under a short load.

    python -m scripts.monitoring.live_check [--seconds 45] [--plot FOLDER]

Starts Muster with simulated workers and `prometheus` (Debian: apt-get install prometheus), both on loopback. One worker
is killed by a request, and one model finds no device. Exit status 1: a panel has no data or an alert cannot be
evaluated; 2: `prometheus` is not installed. `--plot` draws the panels as PNG files, one per dashboard.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import yaml

from scripts.harness.instance import Instance
from scripts.harness.processes import ROOT, child_process, free_port, wait_until
from scripts.monitoring.grafana import PanelQuery, queries, without_variables

RULES = ROOT / "docs" / "deploy" / "monitoring" / "muster.rules.yml"
#: Panels that have no data without an incident that a short run does not make.
MAY_BE_EMPTY = frozenset(
    {
        "muster-tenants: Refused before the application",
        "muster-workers: Cache in use",
        "muster-workers: Tokens",
        "muster-workers: Prompts found in the cache",
    }
)
_SCRAPE_S = 1
#: Range of rates in the run: the scrape interval is short.
_RATE_RANGE = "15s"
_CONFIG: dict[str, Any] = {
    "devices": {"simulated": [{"memory": "24GiB", "count": 5}]},
    "jobs": {"max_file_bytes": 64 << 20},
    "queue": {"max_tasks": 24},
    "models": {
        "picture": {
            "engine": "sim",
            "gpu_memory": "1GiB",
            "sim": {"t0_s": 0.02},
            "scaling": {"max_workers": 2, "slo": {"max_wait_s": 3}},
        },
        "words": {
            "engine": "sim",
            "gpu_memory": "1GiB",
            "sim": {"task": "text", "t0_s": 0.01},
            "scaling": {"max_workers": 1},
        },
        "echo": {"engine": "sim", "gpu_memory": "1GiB", "sim": {"task": "call"}, "scaling": {"max_workers": 1}},
        # It wants more workers than there are devices.
        "blocked": {"engine": "sim", "gpu_memory": "16GiB", "scaling": {"min_workers": 6, "max_workers": 6}},
    },
}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m scripts.monitoring.live_check", description=__doc__)
    parser.add_argument("--seconds", type=float, default=45.0, help="duration of the load (default 45)")
    parser.add_argument("--plot", type=Path, help="folder for pictures of the panels")
    args = parser.parse_args(argv)
    if shutil.which("prometheus") is None:
        print("skipped: prometheus is not installed (Debian: apt-get install prometheus)", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="muster-monitoring-") as folder:
        instance = Instance(Path(folder) / "data", _CONFIG)
        try:
            instance.until(instance.is_ready, "a ready server")
            with _prometheus(Path(folder), instance.port) as url:
                started = time.time()
                asyncio.run(_load(instance.url, args.seconds, random.Random(1)))
                time.sleep(2 * _SCRAPE_S)
                wrong = [*_empty_panels(url), *_broken_rules(url)]
                if args.plot is not None:
                    from scripts.monitoring.plot import draw  # matplotlib is needed for pictures only

                    draw(url, started, time.time(), _RATE_RANGE, args.plot)
        finally:
            instance.end()
    print("\n".join(wrong) if wrong else f"{len(list(queries()))} expressions have data")
    return 1 if wrong else 0


@contextmanager
def _prometheus(folder: Path, port: int) -> Iterator[str]:
    """Run Prometheus with the alerts; yield its address."""
    config = folder / "prometheus.yml"
    scrape = {"job_name": "muster", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
    interval = {"scrape_interval": f"{_SCRAPE_S}s", "evaluation_interval": f"{_SCRAPE_S}s"}
    config.write_text(yaml.safe_dump({"global": interval, "rule_files": [str(RULES)], "scrape_configs": [scrape]}))
    address = f"127.0.0.1:{free_port()}"
    storage = f"--storage.tsdb.path={folder / 'prometheus'}"
    command = ["prometheus", f"--config.file={config}", storage, f"--web.listen-address={address}"]
    with (folder / "prometheus.log").open("wb") as log, child_process(command, stdout=log, stderr=log):
        wait_until(lambda: _answers(f"http://{address}/-/ready"), "Prometheus")
        yield f"http://{address}"


def _answers(url: str) -> bool:
    try:
        return httpx.get(url).is_success
    except httpx.TransportError:
        return False


async def _load(url: str, seconds: float, rng: random.Random) -> None:
    """Send requests of every kind for so long, some of which fail; the last are answered when this returns."""
    bodies: list[tuple[str, dict[str, Any], float]] = [
        ("/v1/images/generations", {"model": "picture", "prompt": "a", "n": 2}, 6.0),
        ("/v1/images/generations", {"model": "picture", "prompt": "a", "stream": True, "partial_images": 2}, 2.0),
        ("/v1/images/generations", {"model": "picture", "prompt": "a", "n": 0}, 0.3),
        ("/v1/completions", {"model": "words", "prompt": "a b c", "max_tokens": 12}, 3.0),
        ("/v1/models/echo:predict", {"instances": [1, 2]}, 3.0),
        ("/v1/jobs", {"path": "/v1/images/generations", "body": {"model": "picture", "prompt": "a"}}, 0.5),
    ]
    burst = [bodies[0][:2]] * 40
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=httpx.Limits(max_connections=200)) as client:
        running: list[asyncio.Task[Any]] = []
        ends, kills, bursts = time.monotonic() + seconds, [seconds / 2], [seconds * 2 / 3]
        while (left_s := ends - time.monotonic()) > 0:
            path, body, _ = rng.choices(bodies, [weight for *_, weight in bodies])[0]
            running.append(asyncio.create_task(client.post(path, json=body)))
            if kills and left_s < kills[0]:
                kills.pop()
                crash = {"model": "picture", "prompt": "sim:crash"}
                running.append(asyncio.create_task(client.post("/v1/images/generations", json=crash)))
            if bursts and left_s < bursts[0]:
                bursts.pop()
                running += [asyncio.create_task(client.post(path, json=body)) for path, body in burst]
            await asyncio.sleep(rng.expovariate(sum(weight for *_, weight in bodies)))
        await asyncio.wait(running, timeout=30)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


def expression(query: PanelQuery) -> str:
    """Return the expression with the ranges of a short run."""
    return without_variables(query.expr.replace("$__rate_interval", _RATE_RANGE))


def _empty_panels(url: str) -> Iterator[str]:
    for query in queries():
        answer = httpx.get(f"{url}/api/v1/query", params={"query": expression(query)}, timeout=30).json()
        if answer["status"] != "success":
            yield f"{query.place}: {answer['error']}: {query.expr}"
        elif not _numbers(answer["data"]["result"]) and query.place not in MAY_BE_EMPTY:
            yield f"{query.place}: no data: {query.expr}"


def _numbers(result: list[Any]) -> list[str]:
    return [series["value"][1] for series in result if series["value"][1] != "NaN"]


def _broken_rules(url: str) -> Iterator[str]:
    groups = httpx.get(f"{url}/api/v1/rules", timeout=30).json()["data"]["groups"]
    for rule in (rule for group in groups for rule in group["rules"]):
        if rule["health"] != "ok":
            yield f"{rule['name']}: {rule.get('lastError', rule['health'])}"
        elif rule["alerts"]:
            states = {alert["state"] for alert in rule["alerts"]}
            print(f"alert {rule['name']}: {', '.join(sorted(states))}")


if __name__ == "__main__":
    sys.exit(main())
