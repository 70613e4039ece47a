"""The cheapest schedule of workers that a search finds when it knows all future requests.

The number of workers may change every ten seconds; each added worker costs a cold start. The search processes the
trace once. For each number of workers and backlog it retains the best schedules, by GPU-seconds plus a cost of late
requests. That cost is chosen so that the goal is just met. The schedule runs in the simulator, so it is an upper bound
of the optimum; full batches without idle time are a lower bound.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from controller.autoscaler.autoscaler import TickResult
from controller.planning.plan import Plan
from controller.simulator.agents import Observe, ScalingAgent
from controller.simulator.reference.queue_sim import QueueSim, QueueState
from controller.simulator.results import PolicyResult, model_results
from controller.simulator.scenarios import Scenario
from controller.simulator.simulator import SimulationResult, ignore_progress
from controller.types import Action, Drain, Exit, Stage, Start

_STAGE_S = 10.0
#: Schedules with a backlog beyond this multiple of the maximum wait are discarded.
_MAX_BACKLOG = 6.0
#: Range of the cost of a late request in GPU-seconds: from about its work to almost no late requests.
_LATE_COSTS_S = (4.0, 100.0)


class SearchEffort(NamedTuple):
    """Effort of the search."""

    #: Schedules retained for each number of workers, by their backlog.
    max_schedules: int = 4
    #: Largest change of the number of workers in a stage.
    max_change: int = 3
    #: Largest extra cost of a retained schedule over the cheapest one, in cold starts.
    slack: float = 5.0
    #: Late costs to try.
    rounds: int = 6


class _Label(NamedTuple):
    """A partial schedule: its cost with that of late requests, and the resulting queue."""

    score: float
    paid_s: float
    late: int
    state: QueueState
    workers: int
    previous: _Label | None


@dataclass(frozen=True, slots=True)
class WorkerSchedule:
    """The number of workers in each stage, with the expected cost and late requests."""

    workers: Sequence[int]
    paid_s: float
    late: int


class ScheduleSearch:
    """Search for the cheapest schedule of a single model."""

    def __init__(self, scenario: Scenario, effort: SearchEffort | None = None) -> None:
        (name,) = scenario.traffic
        traffic, profile, target = scenario.traffic[name], scenario.profiles[name], scenario.targets()[name]
        self._queue = QueueSim(*traffic, profile.slowdowns, target.scaling.slo.max_wait_s)
        self._start_s, self._leave_s = profile.expected_start_s(), profile.drain_s
        self._min_workers, self._max_workers = target.limits.min_workers, target.limits.max_workers
        self._initial_workers, self._span_s = target.initial_workers, scenario.span_s
        self._requests = len(traffic.times)
        self._effort = effort or SearchEffort()

    def cheapest(self, late_cost_s: float, on_progress: Callable[[float], None] = ignore_progress) -> WorkerSchedule:
        """Return the cheapest schedule if a late request costs `late_cost_s` GPU-seconds."""
        labels = [_Label(0.0, 0.0, 0, QueueState(((),) * self._initial_workers), self._initial_workers, None)]
        stages = int(-(-self._span_s // _STAGE_S))
        for number in range(stages):
            labels = self._stage(labels, number * _STAGE_S, late_cost_s)
            if number % 100 == 0:
                on_progress(number / stages)
        best = min(labels, key=lambda label: label.score)
        counts, label = [], best
        while label.previous is not None:
            counts.append(label.workers)
            label = label.previous
        return WorkerSchedule(counts[::-1], best.paid_s, best.late)

    def _stage(self, labels: Sequence[_Label], at: float, late_cost_s: float) -> list[_Label]:
        """Extend every schedule by one stage with every allowed number of workers, and prune."""
        by_workers: dict[int, list[tuple[float, _Label]]] = {}
        until = at + _STAGE_S
        arrived = bisect_left(self._queue.times, until)
        for label in labels:
            lowest = max(label.workers - self._effort.max_change, self._min_workers, 1)
            highest = (
                min(label.workers + self._effort.max_change, self._max_workers)
                if at >= self._start_s
                else label.workers
            )
            for workers in range(lowest, highest + 1):
                state, late = self._queue.advance(self._queue.resize(label.state, workers), at, until)
                more, fewer = max(workers - label.workers, 0), max(label.workers - workers, 0)
                paid = workers * _STAGE_S + more * self._start_s + fewer * self._leave_s
                new = _Label(
                    label.score + paid + late_cost_s * late,
                    label.paid_s + paid,
                    label.late + late,
                    state,
                    workers,
                    label,
                )
                by_workers.setdefault(workers, []).append((self._queue.remaining_s(state, arrived), new))
        return self._prune(by_workers)

    def _prune(self, by_workers: Mapping[int, Sequence[tuple[float, _Label]]]) -> list[_Label]:
        """Retain for each number of workers the cheapest schedule, and more expensive ones with a smaller backlog."""
        best = min(label.score for labels in by_workers.values() for _, label in labels)
        max_score = best + self._effort.slack * max(self._start_s, _STAGE_S)
        min_gap_s = max(self._queue.sums[-1] / max(self._requests, 1) / 2, 0.1)
        max_backlog_s = _MAX_BACKLOG * self._queue.max_wait_s
        retained = []
        for workers, all_labels in by_workers.items():
            labels = [one for one in all_labels if one[0] <= max_backlog_s * (workers + 1)]
            backlog_s, number = float("inf"), 0
            for remaining_s, label in sorted(labels, key=lambda pair: pair[1].score):
                if label.score > max_score or number == self._effort.max_schedules:
                    break
                if remaining_s < backlog_s - min_gap_s:
                    retained.append(label)
                    backlog_s, number = remaining_s, number + 1
        # If every backlog is too large, the smallest one is retained.
        return retained or [min((one for labels in by_workers.values() for one in labels), key=lambda pair: pair[0])[1]]


class ScheduleAgent(ScalingAgent):
    """Follows a schedule: it starts each worker one start time before its stage."""

    def __init__(self, model: str, schedule: WorkerSchedule, start_s: float, slots: Sequence[str]) -> None:
        self._model = model
        self._counts = schedule.workers
        self._start_s = start_s
        self._slots = slots
        self._stage = -1
        self._desired = schedule.workers[0]
        self._starts = sorted(
            number * _STAGE_S - start_s
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
        stage = min(int(now // _STAGE_S), len(self._counts) - 1)
        if stage != self._stage:
            self._stage, self._desired = stage, self._counts[stage]
            ready = sorted((r for r in observed.replicas if r.stage is Stage.READY), key=lambda r: r.load)
            due = self._counts[stage] - (self._counts[stage - 1] if stage else len(ready))
            actions += [Drain(replica.process.id, "schedule") for replica in ready[: max(-due, 0)]]
        return TickResult(Plan(actions, {}), [])

    def next_tick_at(self) -> float:
        return min([(self._stage + 1) * _STAGE_S, *self._starts[:1]])

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


def best_schedule(
    scenario: Scenario,
    in_slo: float = 0.99,
    effort: SearchEffort | None = None,
    on_progress: Callable[[float], None] = ignore_progress,
) -> PolicyResult | None:
    """Return the simulated result of the cheapest schedule with a share `in_slo` in time; None if there is none.

    `on_progress` receives the progress of the search, from 0 to 1.
    """
    effort = effort or SearchEffort()
    search, results = ScheduleSearch(scenario, effort), []
    low, high = _LATE_COSTS_S
    for number in range(effort.rounds):
        late_cost_s = (low * high) ** 0.5
        (result,) = model_results("best known", simulate_schedule(scenario, search.cheapest(late_cost_s)))
        if result.in_slo >= in_slo:
            results.append(result)
            high = late_cost_s
        else:
            low = late_cost_s
        on_progress((number + 1) / effort.rounds)
    return min(results, key=lambda result: result.gpu_hours, default=None)
