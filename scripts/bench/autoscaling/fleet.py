"""Simulate a fleet of 20 models for a day, and measure the duration of a controller tick.

    python -m scripts.bench.autoscaling.fleet --json scripts/bench/results/fleet.json
    python -m scripts.bench.autoscaling.fleet --machines 64 --json scripts/bench/results/fleet_machines.json

The first has 1000 GPUs that do not fail. The second has 64 machines of 8 GPUs, in racks of 8 machines behind one switch
each; machines and switches fail. A failed machine ends its workers. The workers behind a failed switch go on, and are
there again after the repair. A task continues from its last checkpoint on another worker, when the failure is noticed.

Durations are CPU seconds of one core, because the machine may be busy. The result also holds the wall clock time.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import statistics
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from configs.scaling import Scaling
from controller.planning.machines import Machine
from controller.simulator.agents import MusterAgent, Observe
from controller.simulator.cli import agent_for
from controller.simulator.machines import SimMachine, SimSwitch
from controller.simulator.model_sim import WorkerProfile
from controller.simulator.results import model_results, total_result
from controller.simulator.scenarios import Scenario, Traffic
from controller.simulator.simulator import SimulationResult
from controller.simulator.synthetic import synthetic_traffic

#: GPUs of a machine, and machines behind a switch.
_PER_MACHINE, _PER_SWITCH = 8, 8


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


def with_machines(scenario: Scenario, machines: int, machine_life_s: float, switch_life_s: float) -> Scenario:
    """Return the scenario on machines of 8 GPUs, of which 8 are behind each switch."""
    names = [f"box{number:02}" for number in range(machines)]
    racks = [names[first : first + _PER_SWITCH] for first in range(0, machines, _PER_SWITCH)]
    return replace(
        scenario,
        gpus=machines * _PER_MACHINE,
        machines=[SimMachine(name, _PER_MACHINE, machine_life_s, repair_s=900.0) for name in names],
        switches=[SimSwitch(f"rack{number}", rack, switch_life_s) for number, rack in enumerate(racks)],
    )


class UnawareAgent(MusterAgent):
    """The autoscaler without the reports of machines: it plans on machines that cannot be reached."""

    def observe_machines(self, machines: Sequence[Machine]) -> None:
        del machines


class TimedAgent:
    """A scaling agent that measures the CPU time of its ticks, and counts their actions.

    The garbage collector visits the simulator's tasks too, of which a server has none. So its time counts separately.
    """

    def __init__(self, agent: MusterAgent) -> None:
        self._agent = agent
        self.took_s: list[float] = []
        #: Time of the garbage collector within a tick, and the time at which it began.
        self.collecting_s: list[float] = []
        self._collection_began, self._ticks = 0.0, False
        gc.callbacks.append(self._count_collection)
        self.decisions = 0
        self.actions: Counter[str] = Counter()
        self.observe_machines = agent.observe_machines
        self.next_tick_at, self.on_worker_exit = agent.next_tick_at, agent.on_worker_exit
        self.desired_workers, self.is_urgent = agent.desired_workers, agent.is_urgent

    def tick(self, observe: Observe, now: float) -> Any:
        self.collecting_s.append(0.0)
        self._ticks, started = True, time.process_time()
        result = self._agent.tick(observe, now)
        self._ticks = False
        self.took_s.append(time.process_time() - started - self.collecting_s[-1])
        self.decisions += len(result.decided)
        self.actions.update(type(action).__name__.lower() for action in result.plan.actions)
        return result

    def _count_collection(self, phase: str, info: Any) -> None:
        del info
        if phase == "start":
            self._collection_began = time.process_time()
        elif self._ticks:
            self.collecting_s[-1] += time.process_time() - self._collection_began


def failures_result(scenario: Scenario, simulated: SimulationResult) -> dict[str, Any]:
    """Return the failures of the scenario, and the work that was done twice because of them."""
    failures = scenario.failures()
    models = simulated.models.values()
    repeated_s, work_s = sum(model.repeated_s for model in models), sum(sum(model.work) for model in models)
    return {
        "machines": sum(not failure.is_cut for failure in failures),
        "switches": sum(failure.is_cut for failure in failures),
        "workers_ended": sum(model.crashes for model in models),
        "repeated_work_s": round(repeated_s),
        "repeated_share": round(repeated_s / work_s, 6),
    }


def simulate(scenario: Scenario, policy: str, agent_type: type[MusterAgent]) -> dict[str, Any]:
    """Simulate the scenario; return its measurements."""
    muster, targets = agent_for(policy, scenario)
    assert isinstance(muster, MusterAgent)
    if agent_type is not MusterAgent:
        muster = agent_type(targets, {name: model.policy for name, model in muster.autoscaler.models.items()})
    agent = TimedAgent(muster)
    # Exclude the requests from garbage collection, which would distort the tick times.
    gc.collect()
    gc.freeze()
    cpu_started, wall_started = time.process_time(), time.perf_counter()
    simulated = scenario.run(agent, targets)
    cpu_s, wall_s = time.process_time() - cpu_started, time.perf_counter() - wall_started
    row = total_result(policy, model_results(policy, simulated))
    return {
        "simulated_in_cpu_s": round(cpu_s, 1),
        "on_the_clock_s": round(wall_s, 1),
        "ticks": len(agent.took_s),
        "decisions": agent.decisions,
        "actions": dict(sorted(agent.actions.items())),
        "tick_ms": {
            "median": round(1000 * statistics.median(agent.took_s), 2),
            "p99": round(1000 * sorted(agent.took_s)[int(0.99 * len(agent.took_s))], 2),
            "max": round(1000 * max(agent.took_s), 2),
            "max_of_the_garbage_collector": round(1000 * max(agent.collecting_s), 2),
        },
        "workers": max(model.ready for model in simulated.models.values()),
        "failures": failures_result(scenario, simulated),
        "total": row.as_json(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gpus", type=int, default=1000)
    parser.add_argument("--machines", type=int, default=0, help="machines of 8 GPUs that fail, in place of --gpus")
    parser.add_argument("--machine-life", type=float, default=2.0, help="mean days between failures of a machine")
    parser.add_argument("--switch-life", type=float, default=1.0, help="mean days between failures of a switch")
    parser.add_argument("--models", type=int, default=20)
    parser.add_argument("--hours", type=float, default=24.0)
    parser.add_argument("--work", type=float, default=18.0, help="seconds of a request")
    parser.add_argument("--policy", default="slo_work")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    gpus = args.machines * _PER_MACHINE or args.gpus
    scenario = fleet(gpus, args.models, args.hours, args.work, args.policy)
    requests = sum(len(traffic.times) for traffic in scenario.traffic.values())
    result: dict[str, Any] = {
        "what": f"{gpus} GPUs, {args.models} models, {args.hours:g} h, {requests} requests of {args.work:g} s",
        "where": f"{platform.machine()}, Python {platform.python_version()}",
    }
    if args.machines:
        failing = with_machines(scenario, args.machines, 86400 * args.machine_life, 86400 * args.switch_life)
        result["machines"] = f"{args.machines} of {_PER_MACHINE} GPUs, {_PER_SWITCH} behind each switch"
        result["without_failures"] = simulate(
            with_machines(scenario, args.machines, 1e12, 1e12), args.policy, MusterAgent
        )
        result["with_failures"] = simulate(failing, args.policy, MusterAgent)
        result["unaware"] = simulate(failing, args.policy, UnawareAgent)
    else:
        result |= simulate(scenario, args.policy, MusterAgent)
    print(json.dumps(result, indent=1))
    if args.json:
        args.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
