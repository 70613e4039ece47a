"""Replays of the recent arrivals under other settings: what would have happened with a longer hold or more workers.

A replay is a simulated queue with simulated workers. It gets the arrivals of the real queue and follows the policy's
own rules, so its late requests and its cost tell whether a setting would have been better. All times are in seconds of
the balancer's uptime. Pure.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from controller.policies.arrivals import ReplayTask
from controller.policies.queueing import BacklogInputs, workers_to_clear

#: Seconds between two looks at the backlog of a replay.
_LOOK_S = 5.0
#: Tasks that a replay keeps in its queue; the oldest beyond are late and leave.
_MAX_WAITING = 3000


@dataclass(frozen=True, slots=True)
class Replay:
    """One setting, the state of its simulated queue, and its score."""

    #: Least time before a scale-down, and least number of workers.
    hold_s: float
    floor: int
    workers: int
    #: Heap of the times from which a place of a worker is free.
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
    #: Workers for the arrivals, without regard to the setting.
    by_rate: int
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
    """Return the replay at the end of the step."""
    run = _Run(replay, step)
    return run.finish()


class _Run:
    """The mutable state of one replay during one step."""

    def __init__(self, replay: Replay, step: ReplayStep) -> None:
        self.replay, self.step = replay, step
        self.slots, self.waiting = list(replay.slots), deque(replay.waiting)
        self.starting, self.wants = list(replay.starting), deque(replay.wants)
        self.workers, self.late, self.starts = replay.workers, 0, 0
        self.rule = step.plain_backlog if replay.floor else step.backlog

    def finish(self) -> Replay:
        """Run the step, then decide."""
        step, replay = self.step, self.replay
        now, first = step.start_s, 0
        while now < step.end_s:
            now, last = min(now + _LOOK_S, step.end_s), first
            while last < len(step.tasks) and step.tasks[last].at < now:
                last += 1
            self._serve(step.tasks[first:last], now)
            first = last
            if self.waiting and now < step.end_s and self.workers < step.max_workers and self._is_urgent(now):
                self._grow(self._by_backlog(now), now)
        self._decide(step.end_s)
        return Replay(
            replay.hold_s,
            replay.floor,
            self.workers,
            tuple(self.slots),
            tuple(self.waiting),
            tuple(self.starting),
            tuple(self.wants),
            replay.late * step.decay + self.late,
            replay.recent_late * step.recent_decay + self.late,
            self.late,
            replay.cost_s * step.decay + replay.workers * (step.end_s - step.start_s),
            replay.starts * step.decay + self.starts,
        )

    def _serve(self, tasks: Sequence[ReplayTask], now: float) -> None:
        """Add the tasks, and start those that find a free place until now, first in first out."""
        slots, waiting, slowdown, max_wait_s = self.slots, self.waiting, self.step.slowdown, self.rule.max_wait_s
        waiting.extend(tasks)
        while waiting and slots and slots[0] <= now:
            task = waiting.popleft()
            start = max(slots[0], task.at)
            heapq.heapreplace(slots, start + task.work_s * slowdown)
            if start - task.at > max_wait_s:
                self.late += task.tasks
        while len(waiting) > _MAX_WAITING:
            self.late += waiting.popleft().tasks
        self.starting = [ready for ready in self.starting if ready > now]

    def _work_s(self, now: float) -> float:
        """Return the work of waiting and running tasks."""
        busy = sum(free - now for free in self.slots if free > now)
        loading = self.step.batch * sum(ready - now for ready in self.starting)
        return sum(task.work_s for task in self.waiting) + max(busy - loading, 0.0) / self.step.slowdown

    def _is_urgent(self, now: float) -> bool:
        ready = self.workers - len(self.starting)
        wait_s, limit_s = now - self.waiting[0].at, self.rule.max_wait_s
        return wait_s > limit_s or self._work_s(now) > ready * self.rule.speed * limit_s

    def _by_backlog(self, now: float) -> int:
        if not self.waiting:
            return 0
        etas = [0.0] * (self.workers - len(self.starting)) + [ready - now for ready in self.starting]
        return workers_to_clear(self._work_s(now), now - self.waiting[0].at, etas, self.rule)

    def _grow(self, want: int, now: float) -> None:
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
                heapq.heappush(self.slots, ready)
        self.starts += max(want - self.workers, 0)
        self.workers = max(self.workers, want)

    def _decide(self, now: float) -> None:
        step = self.step
        want = max(step.by_rate, self._by_backlog(now), self.replay.floor, step.min_workers)
        self._grow(want, now)
        keep = max(self.wants[0][1], 1)
        if keep < self.workers and step.may_shrink:
            self._shrink(keep, now)

    def _shrink(self, keep: int, now: float) -> None:
        """Remove places, idle ones first. The rest of a task continues on the next free place."""
        for _ in range((self.workers - keep) * self.step.batch):
            free = heapq.heappop(self.slots)
            if free > now and self.slots:
                heapq.heapreplace(self.slots, max(self.slots[0], now) + free - now)
        self.workers = keep
        self.starting = self.starting[:keep]
