"""How full are the batches of tasks of one step, and how busy is the accelerator?

    python -m scripts.bench.serving.one_step --json scripts/bench/results/one_step_sim.json

A step of b tasks takes 0.05 + 0.005 b seconds on the simulated accelerator, and a task is one step. Users send the next
request when the last one is answered. At best every batch is full and the accelerator never waits. `SchedulerService`
runs in this process, without HTTP; workers are processes of their own.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import operator
import tempfile
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadbalancer.scheduling.task import TaskCompleted, TaskEnded, TaskUpdate
from scripts.bench.serving.workloads import quantile
from scripts.harness.load import machine
from tests.support.in_process_service import InProcessService, in_process_service, inputs

T0_S, T1_S, BATCH = 0.05, 0.005, 12
#: Before the counts start.
_WARM_UP_S = 2.0


class User:
    """Sends the next task when the last one has ended."""

    def __init__(self, service: InProcessService, number: int) -> None:
        self._service = service
        self._seed = number * 1_000_000
        #: (end, seconds) of every task.
        self.done: list[tuple[float, float]] = []
        self.failed = 0
        self.stopped = False
        self.submit()

    def submit(self) -> None:
        self._seed += 1
        self._sent = time.perf_counter()
        self._service.scheduler.submit(
            "m", [inputs(self._seed, steps=1)], timeout_s=60, priority=0, listener=self._on_update
        )

    def _on_update(self, update: TaskUpdate) -> None:
        if isinstance(update, TaskCompleted):
            now = time.perf_counter()
            self.done.append((now, now - self._sent))
        elif isinstance(update, TaskEnded):
            self.failed += 1
        else:
            return
        if not self.stopped:  # not from within the listener: the scheduler is at work
            asyncio.get_running_loop().call_soon(self.submit)


async def measure(workers: int, users: int, seconds: float) -> dict[str, Any]:
    """Return the throughput, mean batch and idle share of so many workers, after a warm-up."""
    sim, sections = {"t0_s": T0_S, "t1_s": T1_S}, {"workers": {"heartbeat_s": 0.05, "lost_after_s": 10}}
    with tempfile.TemporaryDirectory(prefix="muster-one-step-") as folder:
        async with in_process_service(Path(folder), sections, max_batch_size=BATCH, sim=sim) as service:
            names = [f"w{number}" for number in range(workers)]
            await service.start(*names)
            everyone = [User(service, number) for number in range(users)]
            await asyncio.sleep(_WARM_UP_S)
            first = [found.counters for name in names if (found := service.worker(name))]
            start = time.perf_counter()
            await asyncio.sleep(seconds)
            last = [found.counters for name in names if (found := service.worker(name))]
            took = time.perf_counter() - start
            for user in everyone:
                user.stopped = True
            ends = [latency for user in everyone for end, latency in user.done if start <= end < start + took]
            failed = sum(user.failed for user in everyone)
    steps = sum(after.steps - before.steps for before, after in zip(first, last, strict=True))
    rows = sum(after.rows - before.rows for before, after in zip(first, last, strict=True))
    busy_s = sum(after.step_s - before.step_s for before, after in zip(first, last, strict=True))
    ideal = workers * BATCH / (T0_S + T1_S * BATCH)
    return {
        "workers": workers,
        "users": users,
        "seconds": took,
        "tasks_per_s": len(ends) / took,
        "ideal_per_s": ideal,
        "share_of_ideal": len(ends) / took / ideal,
        "mean_step_ms": 1000 * busy_s / max(steps, 1),
        "mean_batch": rows / max(steps, 1),
        "idle_share": 1 - busy_s / (workers * took),
        "p50_ms": 1000 * quantile(ends, 0.5),
        "p99_ms": 1000 * quantile(ends, 0.99),
        "failed": failed,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the table."""
    table = Table(title=f"tasks of one step of {T0_S:g} + {T1_S:g} b seconds, batches of up to {BATCH}")
    for column in ("workers", "users", "tasks/s", "of the ideal", "mean batch", "idle", "p50 ms", "p99 ms", "failed"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            str(row["workers"]),
            str(row["users"]),
            f"{row['tasks_per_s']:.1f}",
            f"{100 * row['share_of_ideal']:.1f} %",
            f"{row['mean_batch']:.2f}",
            f"{100 * row['idle_share']:.1f} %",
            f"{row['p50_ms']:.0f}",
            f"{row['p99_ms']:.0f}",
            str(row["failed"]),
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", default="1:64,4:256", help="workers:users, comma-separated")
    parser.add_argument("--seconds", type=float, default=15.0, help="length of one measurement")
    parser.add_argument("--rounds", type=int, default=3, help="the median counts")
    parser.add_argument("--json", type=Path, help="file for the results")
    args = parser.parse_args()
    rows = []
    for load in args.loads.split(","):
        workers, users = map(int, load.split(":"))
        rounds = [asyncio.run(measure(workers, users, args.seconds)) for _ in range(args.rounds)]
        rounds.sort(key=operator.itemgetter("share_of_ideal"))
        shares = [each["share_of_ideal"] for each in rounds]
        rows.append(rounds[len(rounds) // 2] | {"share_of_ideal_by_round": shares})
    show(rows)
    if args.json is not None:
        result = {"command": "python -m scripts.bench.serving.one_step", "machine": machine(), "results": rows}
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
