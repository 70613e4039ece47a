"""Beam search of the cheapest schedule of workers when all future requests are known, for short requests.

The number of workers may change every ten seconds; each added worker costs a cold start. The search processes the
trace once. For each number of workers and backlog it retains the best schedules, by GPU-seconds plus a cost of late
requests. Requests that take minutes leave too little of the backlog's history in it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from controller.simulator.reference.queue_sim import QueueSim, QueueState
from controller.simulator.reference.schedule_agent import WorkerSchedule
from controller.simulator.scenarios import Scenario
from controller.simulator.simulator import ignore_progress

STAGE_S = 10.0
#: Schedules with a backlog beyond this multiple of the maximum wait are discarded.
_MAX_BACKLOG = 6.0


class SearchEffort(NamedTuple):
    """Effort of the search."""

    #: Schedules retained for each number of workers, by their backlog.
    max_schedules: int = 4
    #: Largest change of the number of workers in a stage.
    max_change: int = 3
    #: Largest extra cost of a retained schedule over the cheapest one, in cold starts.
    slack: float = 5.0


class _Label(NamedTuple):
    """A partial schedule: its cost with that of late requests, and the resulting queue."""

    score: float
    paid_s: float
    late: int
    state: QueueState
    workers: int
    previous: _Label | None


class BeamSearch:
    """Search for the cheapest schedule of a single model."""

    def __init__(self, scenario: Scenario, effort: SearchEffort | None = None) -> None:
        (name,) = scenario.traffic
        traffic, profile, target = scenario.traffic[name], scenario.profiles[name], scenario.targets()[name]
        self._queue = QueueSim(traffic.times, traffic.work, profile.slowdowns, target.scaling.slo.max_wait_s)
        self._start_s, self._leave_s = profile.expected_start_s(), profile.drain_s
        self._min_workers, self._max_workers = target.limits.min_workers, target.limits.max_workers
        self._initial_workers, self._span_s = target.initial_workers, scenario.span_s
        self._requests = len(traffic.times)
        self._effort = effort or SearchEffort()

    def cheapest(self, late_cost_s: float, on_progress: Callable[[float], None] = ignore_progress) -> WorkerSchedule:
        """Return the cheapest schedule if a late request costs `late_cost_s` GPU-seconds."""
        labels = [_Label(0.0, 0.0, 0, QueueState(((),) * self._initial_workers), self._initial_workers, None)]
        stages = int(-(-self._span_s // STAGE_S))
        for number in range(stages):
            labels = self._stage(labels, number * STAGE_S, late_cost_s)
            if number % 100 == 0:
                on_progress(number / stages)
        best = min(labels, key=lambda label: label.score)
        counts, label = [], best
        while label.previous is not None:
            counts.append(label.workers)
            label = label.previous
        return WorkerSchedule(counts[::-1], best.paid_s, best.late, STAGE_S)

    def _stage(self, labels: Sequence[_Label], at: float, late_cost_s: float) -> list[_Label]:
        """Extend every schedule by one stage with every allowed number of workers, and prune."""
        by_workers: dict[int, list[tuple[float, _Label]]] = {}
        until = at + STAGE_S
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
                paid = workers * STAGE_S + more * self._start_s + fewer * self._leave_s
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
        max_score = best + self._effort.slack * max(self._start_s, STAGE_S)
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
