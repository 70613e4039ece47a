"""Replays of the recent arrivals under other settings: what would have happened with a longer hold or more workers.

A replay is a simulated queue with simulated workers. It gets the arrivals of the real queue and follows the policy's
own rules, so its late requests and its cost tell whether a setting would have been better. All times are in seconds of
the balancer's uptime. Pure.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from controller.policies.queueing import BacklogInputs, workers_to_clear
from wire.snapshot import ArrivalBucket

#: Seconds between two looks at the backlog of a replay.
_LOOK_S = 5.0
#: Tasks that a replay keeps in its queue; the oldest beyond are late and leave.
_MAX_WAITING = 3000
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


@dataclass(frozen=True, slots=True)
class Replay:
    """One setting, the state of its simulated queue, and its score."""

    #: Least time before a scale-down, and least number of workers.
    hold_s: float
    floor: int
    workers: int
    #: The times from which the places of workers are free; those of idle ones are past.
    slots: tuple[float, ...] = ()
    waiting: tuple[ReplayTask, ...] = ()
    #: Times at which starting workers are ready.
    starting: tuple[float, ...] = ()
    #: Wanted numbers with their times. Each is larger than all later ones.
    wants: tuple[tuple[float, int], ...] = ()
    #: Late tasks of hours and of the last hour, decayed; those since the last decision.
    late: float = 0.0
    recent_late: float = 0.0
    new_late: int = 0
    #: Worker seconds and starts, decayed.
    cost_s: float = 0.0
    starts: float = 0.0


class ReplayStep(NamedTuple):
    """What all replays share between two decisions."""

    start_s: float
    end_s: float
    tasks: Sequence[ReplayTask]
    #: Workers for the arrivals, without regard to the setting, and the number down to which workers are removed.
    by_rate: int
    to_keep: int
    batch: int
    slowdown: float
    min_workers: int
    max_workers: int
    #: The backlog rule with the rate of a possible step, and with the plain rate for settings with a floor.
    backlog: BacklogInputs
    plain_backlog: BacklogInputs
    #: Factors of the decayed sums.
    decay: float
    recent_decay: float
    #: Whether workers may go.
    may_shrink: bool


def begin(hold_s: float, floor: int, workers: int, batch: int, now: float) -> Replay:
    """Return a replay with ready workers and an empty queue."""
    return Replay(hold_s, floor, workers, slots=(now,) * (workers * batch))


def advance(replay: Replay, step: ReplayStep) -> Replay:
    """Return the replay at the end of the step, after the decision there."""
    run, now, first = _Run(replay, step), step.start_s, 0
    while now < step.end_s:
        now, last = min(now + _LOOK_S, step.end_s), first
        while last < len(step.tasks) and step.tasks[last].at < now:
            last += 1
        run.serve(step.tasks[first:last], now)
        first = last
        if run.waiting and now < step.end_s and run.workers < step.max_workers and run.is_urgent(now):
            run.grow(run.by_backlog(now), now)
    by_rate = max(step.by_rate, min(step.to_keep, run.workers))
    run.grow(max(by_rate, run.by_backlog(step.end_s), replay.floor, step.min_workers), step.end_s)
    keep = max(run.wants[0][1], 1)
    if keep < run.workers and step.may_shrink:
        run.shrink(keep, step.end_s)
    return Replay(
        replay.hold_s,
        replay.floor,
        run.workers,
        (*run.busy, *(step.end_s,) * run.idle),
        tuple(run.waiting),
        tuple(run.starting),
        tuple(run.wants),
        replay.late * step.decay + run.late,
        replay.recent_late * step.recent_decay + run.late,
        run.late,
        replay.cost_s * step.decay + replay.workers * (step.end_s - step.start_s),
        replay.starts * step.decay + run.starts,
    )


class _Run:
    """The mutable state of one replay during one step."""

    def __init__(self, replay: Replay, step: ReplayStep) -> None:
        self.replay, self.step = replay, step
        #: Heap of the times at which a place ends its task, or its worker is ready; and the number of other places.
        self.busy = [free for free in replay.slots if free > step.start_s]
        heapq.heapify(self.busy)
        self.idle = len(replay.slots) - len(self.busy)
        self.waiting = deque(replay.waiting)
        self.starting, self.wants = list(replay.starting), deque(replay.wants)
        self.workers, self.late, self.starts = replay.workers, 0, 0
        self.rule = step.plain_backlog if replay.floor else step.backlog
        more = self.workers * step.batch - len(replay.slots)  # not 0 where another full batch was measured
        self.idle += max(more, 0)
        self._remove_places(max(-more, 0), step.start_s)

    def serve(self, tasks: Sequence[ReplayTask], now: float) -> None:
        """Add the tasks, and start those that find a free place until now, first in first out."""
        busy, waiting, max_wait_s = self.busy, self.waiting, self.rule.max_wait_s
        waiting.extend(tasks)
        while waiting:
            task = waiting[0]
            self._release(task.at)
            if self.idle:
                start = task.at
                self.idle -= 1
            elif busy and busy[0] <= now:
                start = heapq.heappop(busy)
            else:
                break
            waiting.popleft()
            heapq.heappush(busy, start + task.work_s * self._slowdown(start))
            if start - task.at > max_wait_s:
                self.late += task.tasks
        while len(waiting) > _MAX_WAITING:
            self.late += waiting.popleft().tasks
        self.starting = [ready for ready in self.starting if ready > now]

    def _release(self, now: float) -> None:
        while self.busy and self.busy[0] <= now:
            heapq.heappop(self.busy)
            self.idle += 1

    def _slowdown(self, now: float) -> float:
        """Return how many times longer one more task takes in the batches as they are now; see `late_fraction`."""
        batch, full = self.step.batch, self.step.slowdown
        if batch == 1:
            return full
        loading = sum(ready > now for ready in self.starting)
        on_each = (len(self.busy) + 1 - loading * batch) / max(self.workers - loading, 1)
        return 1 + (full - 1) * max(on_each - 1, 0.0) / (batch - 1)

    def _work_s(self, now: float) -> float:
        """Return the work of waiting and running tasks; a running one counts for at most `drain_s`."""
        most_s = self.rule.drain_s
        busy = sum(min(free - now, most_s) for free in self.busy if free > now)
        loading = self.step.batch * sum(min(ready - now, most_s) for ready in self.starting)
        return sum(task.work_s for task in self.waiting) + max(busy - loading, 0.0) / self.step.slowdown

    def is_urgent(self, now: float) -> bool:
        ready = self.workers - len(self.starting)
        wait_s, limit_s = now - self.waiting[0].at, self.rule.max_wait_s
        return wait_s > limit_s or self._work_s(now) > ready * self.rule.speed * limit_s

    def by_backlog(self, now: float) -> int:
        if not self.waiting:
            return 0
        etas = [0.0] * (self.workers - len(self.starting)) + [ready - now for ready in self.starting]
        return workers_to_clear(self._work_s(now), now - self.waiting[0].at, etas, self.rule)

    def grow(self, want: int, now: float) -> None:
        want = min(want, self.step.max_workers)
        while self.wants and self.wants[-1][1] <= want:
            self.wants.pop()
        self.wants.append((now, want))
        while self.wants[0][0] <= now - max(self.replay.hold_s, self.rule.cold_start_s):
            self.wants.popleft()
        for _ in range(want - self.workers):
            ready = now + self.rule.cold_start_s
            self.starting.append(ready)
            for _ in range(self.step.batch):
                heapq.heappush(self.busy, ready)
        self.starts += max(want - self.workers, 0)
        self.workers = max(self.workers, want)

    def shrink(self, keep: int, now: float) -> None:
        """Remove workers down to this number."""
        self._remove_places((self.workers - keep) * self.step.batch, now)
        self.workers = keep
        self.starting = self.starting[:keep]

    def _remove_places(self, count: int, now: float) -> None:
        """Remove places, idle ones first. The rest of a task continues on the next free place."""
        self._release(now)
        still = max(count - self.idle, 0)
        self.idle -= count - still
        for _ in range(still):
            free = heapq.heappop(self.busy)
            if self.busy:
                heapq.heapreplace(self.busy, self.busy[0] + free - now)
