"""Runs a given schedule of workers in the simulator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from controller.autoscaler.autoscaler import TickResult
from controller.planning.plan import Plan
from controller.simulator.agents import Observe, ScalingAgent
from controller.simulator.scenarios import Scenario
from controller.simulator.simulator import SimulationResult
from controller.types import Action, Drain, Stage, Start
from host.types import Exit


@dataclass(frozen=True, slots=True)
class WorkerSchedule:
    """The number of workers in each stage of `stage_s` seconds, with the expected cost and late requests."""

    workers: Sequence[int]
    paid_s: float
    late: int
    stage_s: float


class ScheduleAgent(ScalingAgent):
    """Follows a schedule: it starts each worker one start time before its stage."""

    def __init__(self, model: str, schedule: WorkerSchedule, start_s: float, slots: Sequence[str]) -> None:
        self._model = model
        self._counts = schedule.workers
        self._stage_s = schedule.stage_s
        self._start_s = start_s
        self._slots = slots
        self._stage = -1
        self._desired = schedule.workers[0]
        self._starts = sorted(
            number * schedule.stage_s - start_s
            for number in range(1, len(self._counts))
            for _ in range(self._counts[number] - self._counts[number - 1])
        )

    def tick(self, observe: Observe, now: float) -> TickResult:
        """Start the workers that are due, and drain surplus workers, the least busy first."""
        observed = observe(self._model)
        actions: list[Action] = []
        used = {replica.process.device for replica in observed.replicas}
        free = [slot for slot in self._slots if slot not in used]
        while self._starts and self._starts[0] <= now:
            self._starts.pop(0)
            actions.append(Start(self._model, free.pop(0) if free else self._slots[0], "schedule"))
        stage = min(int(now // self._stage_s), len(self._counts) - 1)
        if stage != self._stage:
            self._stage, self._desired = stage, self._counts[stage]
            ready = sorted((r for r in observed.replicas if r.stage is Stage.READY), key=lambda r: r.load)
            due = self._counts[stage] - (self._counts[stage - 1] if stage else len(ready))
            actions += [Drain(replica.process.id, "schedule") for replica in ready[: max(-due, 0)]]
        return TickResult(Plan(actions, {}), [])

    def next_tick_at(self) -> float:
        return min([(self._stage + 1) * self._stage_s, *self._starts[:1]])

    def on_worker_exit(self, ended: Exit) -> None:
        """Ignore exits: a schedule has no crashes."""

    def desired_workers(self, model: str) -> int:
        del model
        return self._desired


def simulate_schedule(scenario: Scenario, schedule: WorkerSchedule) -> SimulationResult:
    """Run the schedule in the simulator."""
    (name,) = scenario.profiles
    targets = scenario.targets()
    start_s = scenario.profiles[name].expected_start_s()
    return scenario.run(ScheduleAgent(name, schedule, start_s, targets[name].slots), targets)
