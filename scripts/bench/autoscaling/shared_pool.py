"""Simulate three models on two shared GPUs while the load moves from model to model.

    python -m scripts.bench.autoscaling.shared_pool --json pool.json --plot pool.png

The simulator uses the planner of the live server. Each model has at least one worker. A GPU of 24 GiB holds two workers
of 10 GiB of different models, so one slot is left. The planner gives it to the model where it saves the most waiting.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import random
from pathlib import Path

import matplotlib as mpl
from rich.console import Console
from rich.table import Table

from configs.scaling import Scaling
from controller.planning.device_pool import DevicePool
from controller.policies import POLICIES
from controller.simulator.agents import MusterAgent
from controller.simulator.model_sim import WorkerProfile
from controller.simulator.scenarios import Scenario, Traffic
from controller.simulator.simulator import SimulationResult
from controller.types import Device

GIB = 2**30
MODELS = ("a", "b", "c")
HOURS = 12.0
#: Requests per second at a model's peak, seconds of work of each, and the wait that is allowed.
PEAK, WORK_S, MAX_WAIT_S = 0.3, 4.5, 10.0


def traffic(number: int, seed: int) -> Traffic:
    """Return Poisson arrivals of one model. The peak of the rate is at a different time for each model."""
    rng = random.Random(seed * 10 + number)
    times, at, span_s = [], 0.0, HOURS * 3600
    while (at := at + rng.expovariate(PEAK)) < span_s:
        phase = 2 * math.pi * (2 * at / span_s - number / len(MODELS))
        if rng.random() < 0.05 + 0.95 * max(math.cos(phase), 0.0) ** 2:
            times.append(at)
    return Traffic(times, [WORK_S * rng.uniform(0.5, 1.5) for _ in times])


def simulate(policy: str, seed: int) -> tuple[SimulationResult, int]:
    """Return the result of one run, and the number of workers that made room for another model."""
    scaling = Scaling(policy=policy, min_workers=1, max_workers=2, slo={"max_wait_s": MAX_WAIT_S})
    scenario = Scenario(
        traffic={name: traffic(number, seed) for number, name in enumerate(MODELS)},
        profiles={name: WorkerProfile(name, cold_starts_s=(40.0,)) for name in MODELS},
        scalings=dict.fromkeys(MODELS, scaling),
        gpus=2,
        span_s=HOURS * 3600,
        seed=seed,
    )
    targets = scenario.targets()
    agent = MusterAgent(targets, dict.fromkeys(MODELS, POLICIES[policy]))
    agent.autoscaler.pool = DevicePool(Device(f"cuda:{number}", 24 * GIB) for number in range(scenario.gpus))
    for model in agent.autoscaler.models.values():
        model.gpu_memory = 10 * GIB
    return scenario.run(agent, targets, sample_s=60.0), agent.autoscaler.swaps


def draw_plot(result: SimulationResult, file: Path) -> None:
    """Draw the arrivals, workers and oldest wait of each model."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(3, 1, figsize=(9, 6), sharex=True, layout="constrained")
    for name, samples in result.samples.items():
        hours = [sample.at / 3600 for sample in samples]
        arrived = [0, *(later.arrived - earlier.arrived for earlier, later in itertools.pairwise(samples))]
        smooth = [sum(arrived[max(n - 9, 0) : n + 1]) / min(n + 1, 10) for n in range(len(arrived))]
        axes[0].plot(hours, smooth, label=name)
        axes[1].step(hours, [sample.ready for sample in samples], where="post", label=name)
        axes[2].plot(hours, [sample.oldest_wait_s for sample in samples], label=name)
    for row, title in zip(axes, ("requests a minute", "ready workers", "longest wait, s"), strict=True):
        row.set_ylabel(title)
        row.grid(alpha=0.3)
    axes[1].set_ylim(-0.1, 2.3)
    axes[0].legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    axes[2].set_xlabel("hours")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=[name for name in POLICIES if name != "schedule"], default="slo_work")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw a plot")
    args = parser.parse_args()
    result, swaps = simulate(args.policy, args.seed)
    table = Table("model", "requests", "in SLO %", "cold starts", "least ready", title=f"{HOURS:g} h, {swaps} swaps")
    found = {}
    for name, model in result.models.items():
        waits = list(model.waits)
        found[name] = {
            "requests": len(waits),
            "in_slo_percent": round(100 * sum(wait <= MAX_WAIT_S for wait in waits) / len(waits), 2),
            "cold_starts": model.starts,
            "least_ready": min(sample.ready for sample in result.samples[name]),
        }
        table.add_row(name, *map(str, found[name].values()))
    Console().print(table)
    if args.json:
        setup = {"policy": args.policy, "seed": args.seed, "hours": HOURS, "gpus": 2, "swaps": swaps}
        args.json.write_text(json.dumps({"setup": setup, "models": found}, indent=2) + "\n")
    if args.plot:
        draw_plot(result, args.plot)


if __name__ == "__main__":
    main()
