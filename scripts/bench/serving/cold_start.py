"""Cold start against start from standby, through the complete server.

    python -m scripts.bench.serving.cold_start --rounds 5 --json results.json

Two servers of one worker each run in parallel; one of them keeps a standby worker. In turn, each server's worker is
stopped, and a request waits for its successor. Compare the ratios within a round. Without a GPU, these are CPU numbers
of the small built-in model. Larger weights take longer to read, and a standby does not save the first use of a GPU.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import statistics
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import msgspec
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from configs.paths import children_dir, internal_token
from scripts.harness.instance import serving
from scripts.harness.load import machine
from wire.snapshot import Snapshot, WorkerStats

PARTS = ("spawn_s", "import_s", "load_s", "device_s", "warm_up_s")
WAYS = {"from nothing": 0, "from standby": 1}
_TIMEOUT_S = 300.0
_BODY = {"model": "digits", "prompt": "a handwritten seven", "seed": 1, "num_inference_steps": 4}


@dataclass
class BenchServer:
    """One of the two servers."""

    folder: Path
    standby: int
    url: str = ""
    #: Measurements by round: start-up phases, their sum, the client's wait, and the machine's load.
    rounds: list[dict[str, float]] = field(default_factory=list)

    def workers(self) -> list[WorkerStats]:
        """Return the workers that accept requests."""
        headers = {"authorization": f"Bearer {internal_token(self.folder)}"}
        answer = httpx.get(f"{self.url}/internal/snapshot", headers=headers, timeout=30)
        found = msgspec.json.decode(answer.raise_for_status().content, type=Snapshot).workers
        return [worker for worker in found if worker.state == "ready" and worker.slots]

    def rest(self) -> WorkerStats:
        """Wait for a worker and, if configured, a standby."""
        ends = time.monotonic() + _TIMEOUT_S
        while time.monotonic() < ends:
            spares = list(children_dir(self.folder).glob("*.ready"))
            workers = self.workers()
            waiting = [file for file in spares if file.stem not in {worker.worker for worker in workers}]
            if len(workers) == 1 and len(waiting) == self.standby:
                return workers[0]
            time.sleep(0.1)
        raise RuntimeError(f"not at rest after {_TIMEOUT_S:g} s")

    def one(self) -> None:
        """Stop the worker and wait for an image from the next one."""
        before = self.rest()
        os.kill(before.pid, signal.SIGTERM)
        while any(worker.worker == before.worker for worker in self.workers()):
            time.sleep(0.01)
        asked = time.perf_counter()
        answer = httpx.post(f"{self.url}/v1/images/generations", json=_BODY, timeout=_TIMEOUT_S)
        waited = time.perf_counter() - asked
        answer.raise_for_status()
        start = self.rest().start
        assert start.standby == bool(self.standby), "it did not start as it was to"
        parts = {part: getattr(start, part) for part in PARTS}
        others = {"load_average": os.getloadavg()[0]}
        self.rounds.append(parts | {"start_s": start.total_s, "request_s": waited} | others)


def config(standby: int) -> dict[str, Any]:
    """Return a configuration with one worker of the built-in model."""
    scaling = {"min_workers": 1, "max_workers": 1, "standby": standby, "interval_s": 3600}
    defaults = {"size": "64x64", "steps": 20, "guidance_scale": 3.0, "scheduler": "ddim"}
    return {"models": {"digits": {"defaults": defaults, "limits": {"min_side": 32}, "scaling": scaling}}}


def measure(rounds: int) -> dict[str, list[dict[str, float]]]:
    """Measure both servers in turn, `rounds` times, without the first start of each."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack, Progress() as progress:
        places = {way: BenchServer(Path(folder) / str(standby), standby) for way, standby in WAYS.items()}
        bar = progress.add_task("starting two servers", total=rounds * len(places))
        for place in places.values():
            place.url = stack.enter_context(serving(place.folder, config(place.standby)))
            place.rest()
        for number in range(rounds):
            for way, place in places.items():
                progress.update(bar, description=f"round {number + 1}: {way}")
                place.one()
                progress.advance(bar)
        return {way: place.rounds for way, place in places.items()}


def ratios(rounds: dict[str, list[dict[str, float]]], what: str) -> list[float]:
    """Return the ratios of cold start to standby, by round."""
    cold, standby = (rounds[way] for way in WAYS)
    return [one[what] / other[what] for one, other in zip(cold, standby, strict=True)]


def show(rounds: dict[str, list[dict[str, float]]]) -> None:
    """Print medians, minima and maxima."""
    table = Table("seconds", *WAYS, title="medians (least to most)")
    for what in (*PARTS, "start_s", "request_s", "load_average"):
        cells = [[one[what] for one in rounds[way]] for way in WAYS]
        table.add_row(what, *(f"{statistics.median(c):.2f} ({min(c):.2f} to {max(c):.2f})" for c in cells))
    console = Console()
    console.print(table)
    for what in ("start_s", "request_s"):
        found = ratios(rounds, what)
        console.print(f"{what}: {statistics.median(found):.1f}x as long ({min(found):.1f} to {max(found):.1f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="starts of each kind")
    parser.add_argument("--json", type=Path, help="write every figure here")
    args = parser.parse_args()
    rounds = measure(args.rounds)
    show(rounds)
    if args.json:
        found = {what: ratios(rounds, what) for what in ("start_s", "request_s")}
        args.json.write_text(json.dumps({"machine": machine(), "seen": rounds, "ratios": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
