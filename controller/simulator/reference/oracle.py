"""What somebody who knows the future would pay: the cheapest schedule of workers that was found. Pure.

Workers may come and go every ten seconds; each coming costs a cold start before it, as in a simulation. A search goes
through the day once, keeps the best schedules so far for each number of workers and backlog, and weighs GPU-seconds
against late requests; the weight is chosen so that just enough requests are in time. What it finds can be run in the
simulator, so that it is an upper bound of the optimum; that full batches are never idle is a lower one.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from controller.autoscaler.autoscaler import Thought
from controller.planning.plan import Plan
from controller.simulator.agents import Look
from controller.simulator.reference.queue_sim import Lane, State
from controller.simulator.results import Row, rows
from controller.simulator.scenarios import Scenario
from controller.simulator.simulator import Replayed, silent
from controller.types import Action, Drain, Exit, Stage, Start

_STAGE_S = 10.0
#: Schedules whose backlog takes more than so many times the longest wait are given up.
_FAR = 6.0
#: GPU-seconds that a late request may be worth: from about what one costs to where hardly any is late.
_WEIGHTS = (4.0, 100.0)


class Effort(NamedTuple):
    """How widely to search."""

    #: Schedules kept for each number of workers, by their backlog.
    kept: int = 4
    #: Most workers that may come, or go, at once.
    jump: int = 3
    #: How much dearer than the cheapest a schedule may be to be kept, in cold starts.
    slack: float = 5.0
    #: Weights tried.
    rounds: int = 6


class _Label(NamedTuple):
    """A schedule up to now: what it costs with its late requests, and where it leaves the queue."""

    score: float
    paid_s: float
    late: int
    state: State
    workers: int
    before: _Label | None


@dataclass(frozen=True, slots=True)
class Schedule:
    """How many workers serve in each stage, and what the search thinks of it."""

    workers: Sequence[int]
    paid_s: float
    late: int


class Search:
    """Schedules of one model, on its own."""

    def __init__(self, scenario: Scenario, effort: Effort | None = None) -> None:
        (name,) = scenario.traffic
        traffic, service, role = scenario.traffic[name], scenario.services[name], scenario.roles()[name]
        self._lane = Lane(*traffic, service.slow, role.scaling.slo.max_wait_s)
        self._start_s, self._leave_s = service.expected_start_s(), service.leave_s
        self._least, self._most = role.limits.min_workers, role.limits.max_workers
        self._first, self._span_s = role.first, scenario.span_s
        self._requests = len(traffic.times)
        self._effort = effort or Effort()

    def weighing(self, weight: float, tell: Callable[[float], None] = silent) -> Schedule:
        """The cheapest schedule found where a late request is worth so many GPU-seconds."""
        labels = [_Label(0.0, 0.0, 0, State(((),) * self._first), self._first, None)]
        stages = int(-(-self._span_s // _STAGE_S))
        for number in range(stages):
            labels = self._stage(labels, number * _STAGE_S, weight)
            if number % 100 == 0:
                tell(number / stages)
        best = min(labels, key=lambda label: label.score)
        counts, label = [], best
        while label.before is not None:
            counts.append(label.workers)
            label = label.before
        return Schedule(counts[::-1], best.paid_s, best.late)

    def _stage(self, labels: Sequence[_Label], at: float, weight: float) -> list[_Label]:
        """One stage on: every schedule with every number of workers, and of those the ones worth keeping."""
        found: dict[int, list[tuple[float, _Label]]] = {}
        until = at + _STAGE_S
        arrived = bisect_left(self._lane.times, until)
        for label in labels:
            lowest = max(label.workers - self._effort.jump, self._least, 1)
            highest = min(label.workers + self._effort.jump, self._most) if at >= self._start_s else label.workers
            for workers in range(lowest, highest + 1):
                state, late = self._lane.advance(self._lane.resized(label.state, workers), at, until)
                more, fewer = max(workers - label.workers, 0), max(label.workers - workers, 0)
                paid = workers * _STAGE_S + more * self._start_s + fewer * self._leave_s
                new = _Label(
                    label.score + paid + weight * late, label.paid_s + paid, label.late + late, state, workers, label
                )
                found.setdefault(workers, []).append((self._lane.left_s(state, arrived), new))
        return self._worth(found)

    def _worth(self, found: Mapping[int, Sequence[tuple[float, _Label]]]) -> list[_Label]:
        """For each number of workers the cheapest, and dearer ones as long as they leave clearly less to do."""
        best = min(label.score for labels in found.values() for _, label in labels)
        enough = best + self._effort.slack * max(self._start_s, _STAGE_S)
        apart_s = max(self._lane.sums[-1] / max(self._requests, 1) / 2, 0.1)
        far_s = _FAR * self._lane.max_wait_s
        kept = []
        for workers, all_labels in found.items():
            labels = [one for one in all_labels if one[0] <= far_s * (workers + 1)]
            left, number = float("inf"), 0
            for left_s, label in sorted(labels, key=lambda pair: pair[1].score):
                if label.score > enough or number == self._effort.kept:
                    break
                if left_s < left - apart_s:
                    kept.append(label)
                    left, number = left_s, number + 1
        # Where every queue is hopeless, the shortest of them goes on.
        return kept or [min((one for labels in found.values() for one in labels), key=lambda pair: pair[0])[1]]


class Foreseen:
    """A pilot that follows a schedule: whoever is to serve at a time is started before it."""

    def __init__(self, model: str, schedule: Schedule, start_s: float, slots: Sequence[str]) -> None:
        self._model = model
        self._counts = schedule.workers
        self._start_s = start_s
        self._slots = slots
        self._stage = -1
        self._wanted = schedule.workers[0]
        self._starts = sorted(
            number * _STAGE_S - start_s
            for number in range(1, len(self._counts))
            for _ in range(self._counts[number] - self._counts[number - 1])
        )

    def think(self, look: Look, now: float) -> Thought:
        """Start whose time has come; send away those who are too many for this stage, the least busy first."""
        seen = look(self._model)
        actions: list[Action] = []
        held = {replica.child.device for replica in seen.replicas}
        free = [slot for slot in self._slots if slot not in held]
        while self._starts and self._starts[0] <= now:
            self._starts.pop(0)
            actions.append(Start(self._model, free.pop(0) if free else self._slots[0], "foreseen"))
        stage = min(int(now // _STAGE_S), len(self._counts) - 1)
        if stage != self._stage:
            self._stage, self._wanted = stage, self._counts[stage]
            ready = sorted((r for r in seen.replicas if r.stage is Stage.READY), key=lambda r: r.load)
            due = self._counts[stage] - (self._counts[stage - 1] if stage else len(ready))
            actions += [Drain(replica.child.id, "foreseen") for replica in ready[: max(-due, 0)]]
        return Thought(Plan(actions, {}), [])

    def due_at(self) -> float:
        """The next stage, or the next start before it."""
        following = (self._stage + 1) * _STAGE_S
        return min([following, *self._starts[:1]])

    def stirs(self, waiting: Sequence[str], look: Look, now: float) -> bool:
        """All is foreseen."""
        del waiting, look, now
        return False

    def died(self, ended: Exit) -> None:
        """Nobody dies in a future that is known."""

    def wanted(self, model: str) -> int:
        """How many serve now."""
        del model
        return self._wanted


def follow(scenario: Scenario, schedule: Schedule) -> Replayed:
    """What comes of the schedule in the simulator."""
    (name,) = scenario.services
    roles = scenario.roles()
    start_s = scenario.services[name].expected_start_s()
    return scenario.run(Foreseen(name, schedule, start_s, roles[name].slots), roles)


def best_known(
    scenario: Scenario,
    in_slo: float = 0.99,
    effort: Effort | None = None,
    tell: Callable[[float], None] = silent,
) -> Row | None:
    """The cheapest schedule found with so many in time, as it runs in the simulator; None where none was found.

    `tell` hears how far the search is, from 0 to 1.
    """
    effort = effort or Effort()
    search, found = Search(scenario, effort), []
    low, high = _WEIGHTS
    for number in range(effort.rounds):
        weight = (low * high) ** 0.5
        (row,) = rows("best known", follow(scenario, search.weighing(weight)))
        if row.in_slo >= in_slo:
            found.append(row)
            high = weight
        else:
            low = weight
        tell((number + 1) / effort.rounds)
    return min(found, key=lambda row: row.gpu_hours, default=None)
