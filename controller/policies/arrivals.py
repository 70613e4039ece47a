"""The recent arrivals of a model: tasks for a replay, the variation of their work, and the rate of a step. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from controller.types import Queue
from wire.snapshot import ArrivalBucket

#: Windows in seconds in which a step of the rate may show first, and the margin in standard deviations.
_STEP_WINDOWS_S = (5.0, 15.0, 30.0)
_STEP_MARGIN = 2.0
#: Windows in seconds and margin in standard deviations of a step that no chance explains.
_SUDDEN_WINDOWS_S, _SUDDEN_MARGIN, _SUDDEN_TASKS = (15.0, 30.0), 8.0, 6
#: Least time in seconds that the usual rate is taken over.
_USUAL_S = 30.0
#: The variation covers about this many arrivals, and is that of exponential work until there are `_ENOUGH`.
_VARIATION_OVER, _ENOUGH = 1000.0, 20.0
#: Up to this many tasks per second are replayed one by one. More are merged, to `_MERGED` of the allowed wait each.
_SINGLE_TASKS, _MERGED = 8, 1 / 8


class ReplayTask(NamedTuple):
    """Some tasks that arrive together and run one after the other, with their total work in seconds."""

    at: float
    work_s: float
    tasks: int


def replay_tasks(buckets: Iterable[ArrivalBucket], mean_work_s: float, max_wait_s: float) -> list[ReplayTask]:
    """Return the arrivals as tasks. Unmeasured work counts as the mean. The largest task of a second stays alone."""
    tasks = []
    for second, count, measured_s, largest_s in buckets:
        at, work_s = second + 0.5, measured_s or count * mean_work_s
        if count == 1:
            tasks.append(ReplayTask(at, work_s, 1))
            continue
        largest_s = largest_s or mean_work_s
        each_s = max(work_s - largest_s, 0.0) / (count - 1)
        tasks.append(ReplayTask(at, largest_s, 1))
        merged = max(int(_MERGED * max_wait_s / max(each_s, 1e-9)), 1) if count > _SINGLE_TASKS else 1
        left = count - 1
        while left:
            tasks.append(ReplayTask(at, each_s * min(merged, left), min(merged, left)))
            left -= min(merged, left)
    return tasks


def step_rate(queue: Queue, rate: float) -> float:
    """Return `rate`, or more if the last seconds had more arrivals than chance explains. Arrivals per second."""
    ages = [(queue.uptime_s - bucket.second, bucket.tasks) for bucket in queue.recent_arrivals]
    for window_s in _STEP_WINDOWS_S:
        count = sum(count for age_s, count in ages if age_s <= window_s)
        rate = max(rate, (count - _STEP_MARGIN * math.sqrt(count)) / window_s)
    return rate


def sudden_rate(queue: Queue, rate_window_s: float) -> float:
    """Return the arrivals per second of the last seconds if they cannot be chance at the usual rate, else 0.

    The usual rate is that of the rest of the `rate_window_s` seconds over which `arrivals_long_window` counts.
    """
    found = 0.0
    for window_s in _SUDDEN_WINDOWS_S:
        count = sum(bucket.tasks for bucket in queue.recent_arrivals if queue.uptime_s - bucket.second <= window_s)
        rest_s = max(min(rate_window_s, queue.uptime_s) - window_s, _USUAL_S)
        usual = (max(queue.arrivals_long_window - count, 0) + 1) * window_s / rest_s
        if count >= _SUDDEN_TASKS and count > usual + _SUDDEN_MARGIN * math.sqrt(usual + 1):
            found = max(found, count / window_s)
    return found


@dataclass(frozen=True, slots=True)
class WorkVariation:
    """Decayed sums of the work of arrivals, for its coefficient of variation."""

    count: float = 0.0
    work_s: float = 0.0
    squares: float = 0.0

    @property
    def squared(self) -> float:
        """Return the squared coefficient of variation: 0 for constant, 1 for exponential work."""
        if self.count < _ENOUGH or self.work_s <= 0:
            return 1.0
        return max(self.squares * self.count / self.work_s**2 - 1, 0.0)

    def updated(self, buckets: Sequence[ArrivalBucket]) -> WorkVariation:
        """Return the sums with these arrivals. Those whose work was not measured do not count."""
        count, work_s, squares = self.count, self.work_s, self.squares
        for bucket in buckets:
            if bucket.work_s <= 0:
                continue
            rest_s, others = max(bucket.work_s - bucket.largest_s, 0.0), bucket.tasks - 1
            count, work_s = count + bucket.tasks, work_s + bucket.work_s
            squares += bucket.largest_s**2 + (rest_s**2 / others if others else 0.0)
        decay = min(_VARIATION_OVER / count, 1.0) if count else 1.0
        return WorkVariation(count * decay, work_s * decay, squares * decay)
