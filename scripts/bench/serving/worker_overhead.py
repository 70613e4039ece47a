"""What does a task cost in the worker's process, if the model does nothing?

    python -m scripts.bench.serving.worker_overhead --json scripts/bench/results/worker_overhead_cpu.json

This process takes the balancer's place. It keeps a number of calls in flight, and answers each result with another call
for as long as the worker offers room. CPU time is that of the worker's process with all its threads. The last scenario
returns 1.5 MB for each call.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import yaml
import zmq
from rich.console import Console
from rich.table import Table

from scripts.bench.serving.workloads import quantile
from scripts.harness.load import machine
from wire.codec import BalancerEnvelope, decode_from_worker, encode
from wire.inputs import CallInputs, Part
from wire.messages import Ack, Assign, Assignment, Capacity, Failed, Finished, Heartbeat, Hello

ENGINE = """
RESULT = bytes({result_bytes})


class Engine:
    max_batch_size = {batch}

    def predict(self, items: list[bytes]) -> list[bytes]:
        return [RESULT] * len(items)
"""
_INPUTS = CallInputs((Part("application/octet-stream"),))
_WARM_UP_TASKS = 200


class Scenario(NamedTuple):
    """`users` calls are in flight."""

    name: str
    batch: int
    users: int
    result_bytes: int = 5


SCENARIOS = [
    Scenario("batches of 1", 1, 64),
    Scenario("batches of 16", 16, 64),
    Scenario("batches of 16", 16, 256),
    Scenario("1.5 MB results", 4, 16, 1_500_000),
]


class OneWorkerBalancer:
    """Assigns calls to one worker, as many as it offers room for."""

    def __init__(self, address: str, users: int) -> None:
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.RCVTIMEO, 60_000)
        self._socket.bind(address)
        self._queued = users
        self._room = self._made = 0
        self._sent_at: dict[str, float] = {}
        #: Messages and results since the last call of `clear`, and the seconds from assignment to result.
        self.counts: Counter[str] = Counter()
        self.latencies: list[float] = []

    def clear(self) -> None:
        self.counts.clear()
        self.latencies.clear()

    def exchange(self) -> None:
        """Wait for messages, handle all that have arrived, and answer them. Raises `zmq.Again` without one."""
        received = [self._socket.recv_multipart(copy=False)]
        while self._socket.poll(0):
            received.append(self._socket.recv_multipart(copy=False))
        now = time.perf_counter()
        replies: list[BalancerEnvelope] = []
        for _, *frames in received:
            self.counts["received"] += 1
            for message, _ in decode_from_worker([frame.buffer for frame in frames]):
                match message:
                    case Hello() | Heartbeat():
                        replies.append(BalancerEnvelope(Ack(1.0)))
                    case Capacity(slots, ahead):
                        self._room = slots + ahead
                    case Finished(task):
                        self._queued += 1
                        self.counts["finished"] += 1
                        self.latencies.append(now - self._sent_at.pop(task))
                    case Failed(message=text):
                        raise RuntimeError(text)
        count = min(self._queued, self._room - len(self._sent_at))
        if count > 0:
            replies.append(self._assign(count, now))
        if replies:
            self._socket.send_multipart([received[0][0].bytes, *encode(replies)])

    def _assign(self, count: int, now: float) -> BalancerEnvelope:
        self._queued -= count
        names = [f"t{self._made + number}" for number in range(count)]
        self._made += count
        self._sent_at |= dict.fromkeys(names, now)
        tasks = [Assignment(name, 1, _INPUTS, frames=1) for name in names]
        return BalancerEnvelope(Assign(tasks, self._queued), [b"hello"] * count)

    def close(self) -> None:
        self._context.destroy(linger=0)


def measure(scenario: Scenario, seconds: float) -> dict[str, Any]:
    """Return the rate, and the cost of a call in a worker process."""
    with tempfile.TemporaryDirectory(prefix="muster-worker-") as name:
        folder, address = Path(name), f"ipc://{name}/workers.sock"
        code = ENGINE.format(result_bytes=scenario.result_bytes, batch=scenario.batch)
        (folder / "noop.py").write_text(code)
        config = folder / "muster.yaml"
        config.write_text(yaml.safe_dump({"models": {"m": {"engine": f"{folder}/noop.py:Engine"}}}))
        balancer = OneWorkerBalancer(address, scenario.users)
        command = [sys.executable, "-m", "worker", "--config", str(config), "--data-dir", name, "--connect", address]
        process = subprocess.Popen([*command, "--id", "w", "--device", "cpu:0"])
        try:
            while balancer.counts["finished"] < _WARM_UP_TASKS:
                balancer.exchange()
            balancer.clear()
            worker = psutil.Process(process.pid)
            cpu_s, start = _cpu_s(worker), time.perf_counter()
            while time.perf_counter() - start < seconds:
                balancer.exchange()
            took, cpu_s = time.perf_counter() - start, _cpu_s(worker) - cpu_s
        finally:
            process.kill()
            process.wait()
            balancer.close()
    finished = balancer.counts["finished"]
    return {
        **scenario._asdict(),
        "tasks_per_s": finished / took,
        "cpu_us_per_task": 1e6 * cpu_s / finished,
        "megabytes_per_s": finished * scenario.result_bytes / took / 1e6,
        "tasks_per_message": finished / balancer.counts["received"],
        "p50_ms": 1000 * quantile(balancer.latencies, 0.5),
        "p99_ms": 1000 * quantile(balancer.latencies, 0.99),
    }


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def show(rows: Sequence[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title="one worker process, a model that does nothing")
    for column in ("scenario", "in flight", "tasks/s", "CPU µs/task", "MB/s", "tasks/message", "p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "scenario" else "right")
    for row in rows:
        table.add_row(
            row["name"],
            str(row["users"]),
            f"{row['tasks_per_s']:,.0f}",
            f"{row['cpu_us_per_task']:.1f}",
            f"{row['megabytes_per_s']:,.0f}" if row["result_bytes"] > 1000 else "",
            f"{row['tasks_per_message']:.1f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one measurement")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    rows = [measure(scenario, args.seconds) for scenario in SCENARIOS]
    show(rows)
    if args.json is not None:
        result = {"command": "python -m scripts.bench.serving.worker_overhead", "machine": machine(), "results": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
