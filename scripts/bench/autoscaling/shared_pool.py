"""Three models on two GPUs while the load moves from one to the next, in the simulator, which plans as the live server.

    python -m scripts.bench.autoscaling.shared_pool --json pool.json --plot pool.png

Each model has one worker at least. A GPU of 24 GiB holds two workers of 10 GiB, of different models, so that there is
one place more than the minimums need: it goes to whom it helps most.
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
    """Poisson arrivals whose rate has its peak at another time for each model, and is small between."""
    chance = random.Random(seed * 10 + number)
    times, at, span_s = [], 0.0, HOURS * 3600
    while (at := at + chance.expovariate(PEAK)) < span_s:
        phase = 2 * math.pi * (2 * at / span_s - number / len(MODELS))
        if chance.random() < 0.05 + 0.95 * max(math.cos(phase), 0.0) ** 2:
            times.append(at)
    return Traffic(times, [WORK_S * chance.uniform(0.5, 1.5) for _ in times])


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


def picture(ran: SimulationResult, file: Path) -> None:
    """Arrivals, workers and the longest wait of each model."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, model_results = plt.subplots(3, 1, figsize=(9, 6), sharex=True, layout="constrained")
    for name, samples in ran.samples.items():
        hours = [sample.at / 3600 for sample in samples]
        arrived = [0, *(later.arrived - one.arrived for one, later in itertools.pairwise(samples))]
        smooth = [sum(arrived[max(n - 9, 0) : n + 1]) / min(n + 1, 10) for n in range(len(arrived))]
        model_results[0].plot(hours, smooth, label=name)
        model_results[1].step(hours, [sample.ready for sample in samples], where="post", label=name)
        model_results[2].plot(hours, [sample.oldest_wait_s for sample in samples], label=name)
    for row, title in zip(model_results, ("requests a minute", "ready workers", "longest wait, s"), strict=True):
        row.set_ylabel(title)
        row.grid(alpha=0.3)
    model_results[1].set_ylim(-0.1, 2.3)
    model_results[0].legend(ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    model_results[2].set_xlabel("hours")
    figure.savefig(file, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--policy", choices=[name for name in POLICIES if name != "schedule"], default="slo_work")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what came of it")
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw it")
    given = parser.parse_args()
    ran, swaps = simulate(given.policy, given.seed)
    table = Table("model", "requests", "in SLO %", "cold starts", "least ready", title=f"{HOURS:g} h, {swaps} swaps")
    found = {}
    for name, station in ran.models.items():
        waits = list(station.waits)
        found[name] = {
            "requests": len(waits),
            "in_slo_percent": round(100 * sum(wait <= MAX_WAIT_S for wait in waits) / len(waits), 2),
            "cold_starts": station.starts,
            "least_ready": min(sample.ready for sample in ran.samples[name]),
        }
        table.add_row(name, *map(str, found[name].values()))
    Console().print(table)
    if given.json:
        setup = {"policy": given.policy, "seed": given.seed, "hours": HOURS, "gpus": 2, "swaps": swaps}
        given.json.write_text(json.dumps({"setup": setup, "models": found}, indent=2) + "\n")
    if given.plot:
        picture(ran, given.plot)


if __name__ == "__main__":
    main()
