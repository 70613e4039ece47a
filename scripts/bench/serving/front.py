#!/usr/bin/env python
"""What a request costs in the HTTP front, layer by layer, against a bare ASGI application on uvicorn.

    python -m scripts.bench.serving.front --rounds 5 --json scripts/bench/results/front.json

Every layer answers at once with the same 15 bytes. All layers are measured in turn in each round, with wrk and 64
connections; ratios are within a round. CPU time is that of the server's process, so other programs on the machine
disturb it less than the rate. `framework` is a route through FastAPI that answers at once, `hot` is `/healthz`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import socket
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvicorn
import uvloop
from rich.console import Console
from rich.table import Table
from starlette.types import ASGIApp, Receive, Scope, Send

from configs.sections import Access, Server
from loadbalancer.access.access_control import AccessControl
from loadbalancer.access.api_keys import Authenticator
from loadbalancer.api.body_budget import BodyBudget
from loadbalancer.api.middleware import ApiMiddleware
from loadbalancer.http_server.server import HttpConfig, HttpServer, set_socket_limits
from loadbalancer.metrics.prometheus import Metrics
from scripts.bench.serving.peers_lib import wrk
from scripts.bench.serving.peers_lib.deployment import Measurement
from scripts.harness.balancer import running, sim
from scripts.harness.load import machine
from scripts.harness.processes import free_port, wait_until
from wire.snapshot import Snapshot

_LAYERS = {
    "bare": "bare ASGI on uvicorn",
    "server": "the same on this HTTP server",
    "middleware": "the same inside the middleware",
    "hot": "/healthz of the balancer, a hot route",
    "framework": "/v1/models of the balancer, through FastAPI",
}
_OWN = ("bare", "server", "middleware")
_BODY = b'{"status":"ok"}'
_HEADERS = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(_BODY))]


class NoKeys:
    """API keys are off."""

    ring = None


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """The bare application."""
    del scope, receive
    await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
    await send({"type": "http.response.body", "body": _BODY})


def serve(layer: str, port: int) -> None:
    """Serve one of the layers that need no balancer, until the process is ended."""
    if layer == "bare":
        uvicorn.run(answer, port=port, log_level="error", access_log=False, http="httptools", loop="uvloop")
        return
    app: ASGIApp = answer
    metrics = Metrics(lambda: Snapshot(0.0, 1.0, [], []), lambda _: [])
    if layer == "middleware":
        control = AccessControl(Access(), Authenticator("t" * 43, loopback=True), NoKeys())
        app = ApiMiddleware(answer, answer, Access(), control, metrics, BodyBudget(1 << 20, 1 << 20, metrics.refusals))
    config = HttpConfig(app, Server(), 4096, metrics.refusals, lifespan="off", log_config=None, access_log=False)
    listener = socket.create_server(("127.0.0.1", port), backlog=2048)
    set_socket_limits(listener, 30.0)
    uvloop.run(HttpServer(config).serve(sockets=[listener]))


@contextlib.contextmanager
def _served(layer: str) -> Iterator[tuple[str, int]]:
    """Start a layer of its own; yield its address and process id."""
    port = free_port()
    child = subprocess.Popen([sys.executable, "-m", "scripts.bench.serving.front", "--serve", layer, str(port)])
    try:
        wait_until(lambda: _is_up(port), f"the layer {layer}")
        yield f"http://127.0.0.1:{port}/healthz", child.pid
    finally:
        child.kill()
        child.wait()


def _is_up(port: int) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/healthz").is_success
    return False


@dataclass(frozen=True)
class LayerResult:
    """What wrk has seen, and the CPU time of the server's process per request."""

    load: Measurement
    cpu_us: float


def measure(rounds: int, seconds: float, connections: int) -> dict[str, list[LayerResult]]:
    results: dict[str, list[LayerResult]] = {layer: [] for layer in _LAYERS}
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="muster-front-"))
        balancer = stack.enter_context(running(Path(folder), {"sim": sim()}, 0))
        targets = {layer: stack.enter_context(_served(layer)) for layer in _OWN}
        targets["hot"] = f"{balancer.base_url}/healthz", balancer.pids["loadbalancer"]
        targets["framework"] = f"{balancer.base_url}/v1/models", balancer.pids["loadbalancer"]
        for _ in range(rounds):
            for layer, (url, pid) in targets.items():
                before = _cpu_s(pid)
                load = wrk.run(url, b"", {}, connections, seconds)
                results[layer].append(LayerResult(load, 1e6 * (_cpu_s(pid) - before) / max(load.answered, 1)))
    return results


def _cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def summary(results: dict[str, list[LayerResult]]) -> list[dict[str, Any]]:
    """Return a row per layer: medians, and the ratio to the bare application within each round."""
    rows = []
    for layer, own in results.items():
        ratios = [one.load.per_s / bare.load.per_s for one, bare in zip(own, results["bare"], strict=True)]
        rows.append(
            {
                "layer": layer,
                "requests_per_s": statistics.median(one.load.per_s for one in own),
                "ratio": statistics.median(ratios),
                "cpu_us": statistics.median(one.cpu_us for one in own),
                "p99_ms": statistics.median(one.load.p99_ms for one in own),
                "errors": sum(one.load.errors for one in own),
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each measurement")
    parser.add_argument("--connections", type=int, default=64)
    parser.add_argument("--json", type=Path, help="write the results to this file")
    parser.add_argument("--serve", nargs=2, metavar=("LAYER", "PORT"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve[0], int(args.serve[1]))
        return 0
    if not wrk.is_installed():
        print("wrk is not installed", file=sys.stderr)
        return 2
    results = measure(args.rounds, args.seconds, args.connections)
    rows = summary(results)
    table = Table("layer", "requests/s", "of bare", "CPU µs per request", "p99 ms", "errors")
    for row in rows:
        numbers = f"{row['requests_per_s']:.0f}", f"{row['ratio']:.2f}", f"{row['cpu_us']:.0f}", f"{row['p99_ms']:.1f}"
        table.add_row(_LAYERS[row["layer"]], *numbers, str(row["errors"]))
    Console().print(table)
    if args.json:
        rounds = {layer: [asdict(one) for one in own] for layer, own in results.items()}
        content = {
            "command": " ".join(("python -m scripts.bench.serving.front", *sys.argv[1:])),
            "machine": machine(),
            "layers": rows,
            "rounds": rounds,
        }
        args.json.write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
