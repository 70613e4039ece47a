"""Measure the planning time of a large fleet: 1000 workers of 20 models on 1000 GPUs, in six cases.

    python -m scripts.bench.autoscaling.planner_latency --json results.json

- `steady`: every model has the desired number of workers.
- `short`: the models desire 10 % more workers than the GPUs hold.
- `swap`: half of the models are idle, and the other half need their GPUs.
- `empty`: no worker runs yet, and all must be placed.
- `shared`: GPUs of 80 GiB, and workers of 8 to 27 GiB; a GPU takes one worker of each model.
- `rack`: a tenth of the machines cannot be reached, and their workers start again where GPUs are free.

The GPUs are in machines of 8. Each model has its weights on half of the machines.

The times are CPU times, which other programs do not affect: the planner is single-threaded and does no I/O.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from configs.devices import machine_of, on_machine
from configs.scaling import Scaling
from controller.planning.allocation import waiting_saved
from controller.planning.plan import ModelDemand, Plan, make_plan
from controller.types import CrashBackoff, Decision, Device, Observation, Queue, Replica, Stage, WorkerLimits
from host.types import WorkerProcess
from scripts.harness.load import machine

GIB = 2**30
NOW = 1e5
CASES = ("steady", "short", "swap", "empty", "shared", "rack")
_PER_MACHINE = 8
_LIMITS = WorkerLimits(1, 1000, 600, 60, 10)


def fleet(case: str, gpus: int, models: int) -> tuple[list[ModelDemand], dict[str, Device]]:
    """Return the demands of the models, and the GPUs."""
    names = [on_machine(f"box{n // _PER_MACHINE:03}", f"cuda:{n % _PER_MACHINE}") for n in range(gpus)]
    boxes = list(dict.fromkeys(map(machine_of, names)))
    silent = set(boxes[: len(boxes) // 10]) if case == "rack" else set()
    devices = {name: Device(name, 80 * GIB, "silent" if machine_of(name) in silent else "") for name in names}
    slots, each = names, gpus // models * (8 if case == "rack" else 10) // 10
    demands = []
    for number in range(models):
        name = f"model-{number}"
        own = [] if case == "empty" else slots[number * each : (number + 1) * each]
        replicas = [
            Replica(WorkerProcess(f"{name}-{place}", name, device, place, 0.0, None, 40.0), Stage.READY, load=place % 3)
            for place, device in enumerate(own)
            if machine_of(device) not in silent
        ]
        idle = case == "swap" and number % 2 == 0
        work_s = 0.0 if idle else 400.0 * each
        arrivals = 0 if idle else each * 15
        queue = Queue(0 if idle else each * 3, each, 4, 2.0, work_s, 5.0, arrivals, arrivals * 10, uptime_s=1e5)
        desired = each + (each // 10 + 1 if case == "short" or (case == "swap" and not idle) else 0)
        if case == "shared":
            desired = each * 2
        need = 80 * GIB if case != "shared" else (8 + number) * GIB
        observation = Observation(name, queue, replicas)
        decision = Decision(desired, "benchmark")
        weights = (frozenset(boxes[number % 2 :: 2]),)
        demands.append(
            ModelDemand(
                observation, decision, _LIMITS, CrashBackoff(), slots, need, scaling=Scaling(), preferred=weights
            )
        )
    return demands, devices


def measure(case: str, gpus: int, models: int, rounds: int) -> tuple[list[float], Plan]:
    """Return the CPU seconds of each round, and the plan."""
    demands, devices = fleet(case, gpus, models)
    cpu_s = []
    for _ in range(rounds):
        waiting_saved.cache_clear()  # in a live server the loads differ at every tick
        started = time.process_time()
        plan = make_plan(demands, NOW, devices)
        cpu_s.append(time.process_time() - started)
    return cpu_s, plan


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    args = parser.parse_args()
    table = Table("case", "starts", "drains", "swaps", "median ms", "longest ms", title=f"{args.gpus} GPUs")
    found = {}
    for case in CASES:
        cpu_s, plan = measure(case, args.gpus, args.models, args.rounds)
        kinds = [type(action).__name__ for action in plan.actions]
        found[case] = {
            "starts": kinds.count("Start"),
            "drains": kinds.count("Drain"),
            "swaps": len(plan.swaps),
            "median_ms": round(statistics.median(cpu_s) * 1000, 2),
            "longest_ms": round(max(cpu_s) * 1000, 2),
        }
        table.add_row(case, *map(str, found[case].values()))
    Console().print(table)
    if args.json:
        setup = {"gpus": args.gpus, "models": args.models, "rounds": args.rounds, "machine": machine()}
        args.json.write_text(json.dumps({"setup": setup, "cases": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
