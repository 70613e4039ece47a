#!/usr/bin/env python
"""The cost of a task in the balancer's scheduler, without HTTP and without a model.

    python -m scripts.bench.serving.dispatch --json scripts/bench/results/dispatch_cpu.json

(a) Tasks go through `SchedulerService`, from `submit` to the listener, and a simulated worker in another process
answers at once. Counted is CPU time of the event loop's thread and of the whole process (with ZeroMQ's thread), as
minimum and median over windows of a quarter of a second.
(b) 100 simulated workers with 1,000 queued tasks each: the time from freed slots to the next tasks, on the worker's
side, and of one event in the scheduler itself.
(c) Submitting, cancelling and expiring a task by the length of the queue, and the memory of a queued task.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from configs.scaling import Scaling
from configs.sections import Queue, Workers
from configs.settings import Settings
from loadbalancer.garbage_collection import GarbageCollection
from loadbalancer.scheduler_service import SchedulerService
from loadbalancer.scheduling.events import Effect, MessageReceived, SendMessage, TasksCancelled, TasksSubmitted, Tick
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import Task, TaskCompleted, TaskEnded, TaskUpdate
from scripts.bench.serving.workloads import quantile
from scripts.harness.load import machine
from wire.codec import WorkerEnvelope
from wire.inputs import NO_SHAPE, CallInputs, Part
from wire.messages import PROTOCOL, Assign, Capacity, Finished, Heartbeat, Hello, StepCurve

INPUTS = CallInputs((Part(),))
#: Its one part.
FRAMES = [b"{}"]
_TIMEOUT_S = 3600.0
#: Costs are taken per window: the lowest is that of an undisturbed machine.
_WINDOW_S = 0.25
_CLOCKS = (time.perf_counter, time.thread_time, time.process_time)


# ---- (a), (b): through the service and ZeroMQ


class TasksInFlight:
    """Submits one more task for each that ends, until it is stopped."""

    def __init__(self, service: SchedulerService) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._is_running = True
        self.done = 0
        self.failed = 0

    async def begin(self, count: int) -> None:
        """Bring so many tasks into flight."""
        for number in range(count):
            self._submit()
            if not number % 100:
                await asyncio.sleep(0)

    def stop(self) -> None:
        self._is_running = False

    def _submit(self) -> None:
        self._service.submit(
            "m", [INPUTS], timeout_s=_TIMEOUT_S, priority=0, listener=self._on_update, own_frames=[FRAMES]
        )

    def _on_update(self, update: TaskUpdate) -> None:
        if isinstance(update, TaskCompleted | TaskEnded):
            self.done += 1
            if self._is_running:
                self.failed += isinstance(update, TaskEnded)
                # As the next request of a connection: in a later turn of the loop.
                self._loop.call_soon(self._submit)


async def cost_windows(tasks: TasksInFlight, seconds: float) -> list[tuple[float, ...]]:
    """Return for each window with ended tasks their number, and the microseconds per task on each clock."""
    windows: list[tuple[float, ...]] = []
    for _ in range(round(seconds / _WINDOW_S)):
        done, starts = tasks.done, [clock() for clock in _CLOCKS]
        await asyncio.sleep(_WINDOW_S)
        count = tasks.done - done
        if count:
            costs = (1e6 * (clock() - start) / count for clock, start in zip(_CLOCKS, starts, strict=True))
            windows.append((count, *costs))
    return windows


async def through_service(
    *, workers: int, slots: int, step_s: float, users: int, queued: int, result_bytes: int, seconds: float
) -> dict[str, Any]:
    """Keep `queued + users` tasks in flight for so many seconds; return the costs per task and the workers' waits."""
    with tempfile.TemporaryDirectory(prefix="muster-dispatch-") as folder:
        address = f"ipc://{folder}/workers.sock"
        settings = Settings.model_validate(
            {"data_dir": folder, "models": {"m": {"engine": "sim"}}, "queue": {"max_tasks": users + queued + 64}}
        )
        service = SchedulerService(settings, address)
        await service.start()
        garbage_collection = GarbageCollection()
        garbage_collection.start()
        arguments = (address, workers, slots, step_s, result_bytes)
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "scripts.bench.serving.dispatch_workers", *map(str, arguments)),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            limit=1 << 28,
        )
        while sum(worker.slots > 0 for worker in service.snapshot().workers) < workers:
            await asyncio.sleep(0.02)
        tasks = TasksInFlight(service)
        await tasks.begin(users + queued)
        await asyncio.sleep(1.0)
        began = time.perf_counter()
        windows = await cost_windows(tasks, seconds)
        tasks.stop()
        delays = [delay for at, delay in json.loads((await child.communicate(b""))[0]) if at >= began]
        garbage_collection.stop()
        await service.stop()
    waits = delays and {f"p{share}": quantile(delays, share / 100) for share in (50, 99)} | {"max": max(delays)}
    counts, wall, thread, process = zip(*windows, strict=True)
    return {
        "tasks": sum(counts),
        "failed": tasks.failed,
        "tasks_per_s": 1e6 / statistics.median(wall),
        "loop_us": {"min": min(thread), "median": statistics.median(thread)},
        "process_us": {"min": min(process), "median": statistics.median(process)},
        "slot_refill_ms": waits or None,
    }


# ---- (b), (c): the scheduler alone


def task(number: int, owners: int, timeout_s: float = _TIMEOUT_S, now: float = 0.0) -> Task:
    owner = f"o{number % owners}"
    return Task(
        f"{number:032x}-000", "m", INPUTS, now, now + timeout_s, owner=owner, steps=INPUTS.steps, sources=FRAMES
    )


def scheduler(workers: int, slots: int, max_tasks: int) -> Scheduler:
    """Return a scheduler of workers that are connected and measured."""
    made = Scheduler({"m": Scaling()}, Queue(max_tasks=max_tasks), Workers())
    curve = StepCurve(NO_SHAPE, slots, [(1, 1e-6), (slots + 1, 1e-6)])
    for number in range(workers):
        name = f"w{number:03}"
        for message in (
            Hello(PROTOCOL, name, "m", "sim:0", number + 1),
            Capacity(slots),
            Heartbeat(0, 1e-6, 1.0, curves=[curve]),
        ):
            made.handle(MessageReceived(name, WorkerEnvelope(message)), 0.0)
    made.handle(Tick(), 0.0)
    return made


def assigned(effects: Sequence[Effect]) -> Iterator[tuple[str, str, int]]:
    """Yield worker, task and attempt of each assignment."""
    for effect in effects:
        if isinstance(effect, SendMessage) and isinstance(effect.message, Assign):
            for each in effect.message.tasks:
                yield effect.worker, each.task, each.attempt


def timed_us(action: Callable[..., Any], *arguments: object) -> float:
    start = time.perf_counter()
    action(*arguments)
    return 1e6 * (time.perf_counter() - start)


def dispatch_event(workers: int, slots: int, queued: int, owners: int, events: int) -> dict[str, float]:
    """Return microseconds of `Finished` with the next assignment, at full workers and a queue of constant length."""
    core = scheduler(workers, slots, queued + workers * slots + 1)
    held = [
        each
        for number in range(queued + workers * slots)
        for each in assigned(core.handle(TasksSubmitted([task(number, owners)]), 0.0))
    ]
    number, times, chance = queued + workers * slots, [], random.Random(1)
    for turn in range(events):
        now = 1e-4 * turn
        place = chance.randrange(len(held))
        worker, name, attempt = held[place]
        received = MessageReceived(worker, WorkerEnvelope(Finished(name, attempt, (Part(),)), [b"{}"]))
        start = time.perf_counter()
        effects = core.handle(received, now)
        times.append(1e6 * (time.perf_counter() - start))
        [held[place]] = assigned(effects)
        number += 1
        core.handle(TasksSubmitted([task(number, owners, now=now)]), now)
    return {"p50": quantile(times, 0.5), "p99": quantile(times, 0.99), "max": max(times)}


def bytes_per_task(owners: int, count: int = 10_000) -> float:
    """Return the allocated bytes of a queued task, its inputs apart, which are shared here."""
    core = scheduler(1, 1, 2 * count)
    tracemalloc.start()
    try:
        for number in range(count):
            core.handle(TasksSubmitted([task(number, owners)]), 0.0)
        return tracemalloc.get_traced_memory()[0] / count
    finally:
        tracemalloc.stop()


def by_length(length: int, owners: int, samples: int) -> dict[str, float]:
    """Return microseconds of each operation at this length of the queue, and the bytes of a queued task."""
    core = scheduler(1, 1, 2 * length + samples)
    number = 0
    for number in range(length):
        core.handle(TasksSubmitted([task(number, owners)]), 0.0)
    result: dict[str, float] = {"bytes_per_task": bytes_per_task(owners)}
    numbers = range(number + 1, number + 1 + samples)
    events = [TasksSubmitted([task(each, owners, timeout_s=50.0 if each % 2 else _TIMEOUT_S)]) for each in numbers]
    submits = [timed_us(core.handle, event, 1.0) for event in events]
    names = [event.tasks[0].id for event in events if event.tasks[0].deadline > 1000.0]
    names += random.Random(1).sample(sorted(core.tasks), samples // 2)
    random.Random(1).shuffle(names)
    cancels = [timed_us(core.handle, TasksCancelled([name], "left"), 2.0) for name in names]
    for name, times in (("submit", submits), ("cancel", cancels)):
        result |= {f"{name}_us": sum(times) / len(times), f"{name}_p99_us": quantile(times, 0.99)}
    before = len(core.tasks)
    for _ in range(3):  # the first ones pay for what only the clock does
        core.handle(Tick(), 3.0)
    idle_us = timed_us(core.handle, Tick(), 3.0)
    expiry_us = timed_us(core.handle, Tick(), 60.0)
    result |= {"tick_us": idle_us, "expire_us": (expiry_us - idle_us) / max(before - len(core.tasks), 1)}
    result["snapshot_us"] = timed_us(lambda: core.snapshot(now=61.0, wall_time=0.0, uptime_s=1.0))
    return result


# ---- program


def run(seconds: float, console: Console) -> dict[str, Any]:
    """Run everything; return the results."""
    results: dict[str, Any] = {"machine": machine(), "service": {}, "lengths": {}}
    table = Table(title="through SchedulerService and ZeroMQ")
    for column in ("scenario", "tasks/s", "loop us", "process us", "refill p50 ms", "p99 ms"):
        table.add_column(column, justify="left" if column == "scenario" else "right")
    scenarios: dict[str, dict[str, Any]] = {
        "1 worker, batch 1, 1 user": {"slots": 1, "users": 1},
        "1 worker, batch 1, 64 users": {"slots": 1, "users": 64},
        "1 worker, batch 16, 64 users": {"slots": 16, "users": 64},
        "1 worker, batch 16, 16 users, 1.5 MB": {"slots": 16, "users": 16, "result_bytes": 1_500_000},
        "100 workers x 4, 100,000 queued, steps of 0.25 s": {
            "workers": 100,
            "slots": 4,
            "users": 400,
            "queued": 100_000,
            "step_s": 0.25,
        },
    }
    for name, options in scenarios.items():
        defaults: dict[str, Any] = {"workers": 1, "step_s": 0.0, "queued": 0, "result_bytes": 100, "seconds": seconds}
        with console.status(name):
            row = results["service"][name] = uvloop.run(through_service(**(defaults | options)))
        cells = [f"{row['tasks_per_s']:.0f}"]
        cells += [f"{row[key]['min']:.0f} ({row[key]['median']:.0f})" for key in ("loop_us", "process_us")]
        waits = row["slot_refill_ms"]
        table.add_row(name, *cells, *((f"{waits['p50']:.2f}", f"{waits['p99']:.2f}") if waits else ("", "")))
    console.print(table)
    table = Table(title="the scheduler alone, microseconds by length of the queue")
    for length, owners in ((1_000, 1), (10_000, 1), (100_000, 1), (100_000, 1000)):
        with console.status(f"{length} queued"):
            row = by_length(length, owners, samples=2000)
            event = dispatch_event(100, 4, length, owners, events=5000)
            row |= {f"dispatch_{share}_us": event[share] for share in ("p50", "p99")}
        results["lengths"][f"{length} tasks, {owners} owners"] = row
        if not table.columns:
            for column in ("queue", *row):
                table.add_column(column, justify="right")
        table.add_row(f"{length} of {owners}", *(f"{value:.1f}" for value in row.values()))
    console.print(table)
    return results


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=5.0, help="duration of each scenario")
    parser.add_argument("--json", type=Path, help="write the results here")
    args = parser.parse_args()
    results = run(args.seconds, Console(width=150))
    if args.json:
        command = shlex.join(["python", "-m", "scripts.bench.serving.dispatch", *sys.argv[1:]])
        args.json.write_text(json.dumps({"command": command, **results}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
