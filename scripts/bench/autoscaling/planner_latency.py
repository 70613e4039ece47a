"""How long the plan of a large fleet takes: 1000 workers of 20 models on 1000 GPUs, by what is asked of it.

    python -m scripts.bench.autoscaling.planner_latency --json results.json

`steady`: as many workers as are wanted. `short`: every model wants a tenth more than the GPUs hold. `swap`: half of the
models have nothing to do, the other half want their places. `empty`: nothing runs yet, and all must be placed.
`shared`: GPUs of 80 GiB, workers of 8 to 27 GiB, of one model one to a GPU. What is measured is processor time, which
other programs do not lengthen: the plan runs in one thread and waits for nothing.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from configs.scaling import Scaling
from controller.planning.allocation import load_of, waiting_saved
from controller.planning.plan import ModelDemand, Plan, make_plan
from controller.types import (
    CrashBackoff,
    Decision,
    Device,
    Observation,
    Queue,
    Replica,
    Stage,
    WorkerLimits,
    WorkerProcess,
)
from scripts.harness.load import machine

GIB = 2**30
NOW = 1e5
CASES = ("steady", "short", "swap", "empty", "shared")
_LIMITS = WorkerLimits(1, 1000, 600, 60, 10)


def fleet(case: str, gpus: int, models: int) -> tuple[list[ModelDemand], dict[str, Device]]:
    """What is wanted of so many GPUs, and the GPUs."""
    devices = {f"cuda:{n}": Device(f"cuda:{n}", 80 * GIB) for n in range(gpus)}
    slots, each = list(devices), gpus // models
    wanted = []
    for number in range(models):
        name = f"model-{number}"
        own = [] if case == "empty" else slots[number * each : (number + 1) * each]
        replicas = [
            Replica(WorkerProcess(f"{name}-{place}", name, device, place, 0.0, None, 40.0), Stage.READY, load=place % 3)
            for place, device in enumerate(own)
        ]
        idle = case == "swap" and number % 2 == 0
        work_s = 0.0 if idle else 400.0 * each
        arrivals = 0 if idle else each * 15
        queue = Queue(0 if idle else each * 3, each, 4, 2.0, work_s, 5.0, arrivals, arrivals * 10, uptime_s=1e5)
        desired = each + (each // 10 + 1 if case == "short" or (case == "swap" and not idle) else 0)
        if case == "shared":
            desired = each * 2
        need = 80 * GIB if case != "shared" else (8 + number) * GIB
        seen = Observation(name, queue, replicas)
        decision = Decision(desired, "as the benchmark says")
        load = load_of(queue, Scaling())
        wanted.append(ModelDemand(seen, decision, _LIMITS, CrashBackoff(), slots, need, load=load))
    return wanted, devices


def measure(case: str, gpus: int, models: int, rounds: int) -> tuple[list[float], Plan]:
    """Seconds of a processor for each round, and what was planned."""
    wanted, devices = fleet(case, gpus, models)
    taken = []
    for _ in range(rounds):
        waiting_saved.cache_clear()  # loads are others at every look
        began = time.process_time()
        plan = make_plan(wanted, NOW, devices)
        taken.append(time.process_time() - began)
    return taken, plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was measured")
    given = parser.parse_args()
    table = Table("case", "starts", "drains", "swaps", "median ms", "longest ms", title=f"{given.gpus} GPUs")
    found = {}
    for case in CASES:
        taken, plan = measure(case, given.gpus, given.models, given.rounds)
        kinds = [type(action).__name__ for action in plan.actions]
        found[case] = {
            "starts": kinds.count("Start"),
            "drains": kinds.count("Drain"),
            "swaps": len(plan.swaps),
            "median_ms": round(statistics.median(taken) * 1000, 2),
            "longest_ms": round(max(taken) * 1000, 2),
        }
        table.add_row(case, *map(str, found[case].values()))
    Console().print(table)
    if given.json:
        setup = {"gpus": given.gpus, "models": given.models, "rounds": given.rounds, "machine": machine()}
        given.json.write_text(json.dumps({"setup": setup, "cases": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
