"""Simulate a fleet of 1000 GPUs and 20 models for a day, and measure the duration of a controller tick.

    python -m scripts.bench.autoscaling.fleet --json scripts/bench/results/fleet.json

Durations are CPU seconds of one core, because the machine may be busy. The result also holds the wall clock time.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

from configs.scaling import Scaling
from controller.simulator.agents import MusterAgent, Observe
from controller.simulator.cli import agent_for
from controller.simulator.model_sim import WorkerProfile
from controller.simulator.results import model_results, total_result
from controller.simulator.scenarios import Scenario, Traffic
from controller.simulator.synthetic import synthetic_traffic


def fleet(gpus: int, models: int, hours: float, work_s: float, policy: str) -> Scenario:
    """Return models with unequal rates and shifted daily cycles. They need half of the GPUs on average."""
    traffic, profiles, scalings = {}, {}, {}
    weights = [1 / (1 + number) ** 0.5 for number in range(models)]
    for number in range(models):
        name = f"m{number:02}"
        rate = 0.5 * gpus * weights[number] / sum(weights) / work_s
        daily = synthetic_traffic(f"synthetic:daily?rate={rate}&swing=0.7&hours={hours}&work={work_s}", number)
        shift = 3600.0 * (number * 24 / models)
        pairs = sorted(((one.at + shift) % (3600 * hours), one.work_s) for one in daily.requests)
        traffic[name] = Traffic([at for at, _ in pairs], [work for _, work in pairs])
        profiles[name] = WorkerProfile(name)
        scalings[name] = Scaling(min_workers=1, max_workers=gpus, policy=policy, slo={"max_wait_s": 30})
    return Scenario(traffic, profiles, scalings, gpus, 3600 * hours, poll_interval_s=5.0)


class TimedAgent:
    """A scaling agent that measures the CPU time of its ticks."""

    def __init__(self, agent: MusterAgent) -> None:
        self._agent = agent
        self.took_s: list[float] = []
        self.next_tick_at, self.on_worker_exit = agent.next_tick_at, agent.on_worker_exit
        self.desired_workers, self.is_urgent = agent.desired_workers, agent.is_urgent

    def tick(self, observe: Observe, now: float) -> Any:
        started = time.process_time()
        result = self._agent.tick(observe, now)
        self.took_s.append(time.process_time() - started)
        return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--work", type=float, default=18.0, help="seconds of a request")
    parser.add_argument("--policy", default="slo_work")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    scenario = fleet(args.gpus, args.models, args.hours, args.work, args.policy)
    muster, targets = agent_for(args.policy, scenario)
    assert isinstance(muster, MusterAgent)
    agent = TimedAgent(muster)
    # Exclude the requests from garbage collection, which would distort the tick times.
    gc.collect()
    gc.freeze()
    cpu_started, wall_started = time.process_time(), time.perf_counter()
    simulated = scenario.run(agent, targets)
    cpu_s, wall_s = time.process_time() - cpu_started, time.perf_counter() - wall_started
    row = total_result(args.policy, model_results(args.policy, simulated))
    result = {
        "what": f"{args.gpus} GPUs, {args.models} models, {args.hours:g} h, {row.requests} requests of {args.work:g} s",
        "where": f"{platform.machine()}, Python {platform.python_version()}",
        "simulated_in_cpu_s": round(cpu_s, 1),
        "on_the_clock_s": round(wall_s, 1),
        "looks": len(agent.took_s),
        "look_ms": {
            "median": round(1000 * statistics.median(agent.took_s), 2),
            "p99": round(1000 * sorted(agent.took_s)[int(0.99 * len(agent.took_s))], 2),
            "most": round(1000 * max(agent.took_s), 2),
        },
        "workers": max(model.ready for model in simulated.models.values()),
        "total": row.as_json(),
    }
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
