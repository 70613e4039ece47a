"""A fast simulation of one model's queue with a fixed number of workers, for schedule search.

It follows the rules of `SimCluster` on small immutable states, from which several schedules can continue.
"""

from __future__ import annotations

import itertools
import math
from bisect import insort
from collections.abc import Sequence
from heapq import heapify, heapreplace
from typing import NamedTuple

#: Remaining work of a worker's tasks in ascending order, in seconds on an otherwise idle worker.
RemainingWork = tuple[float, ...]


class QueueState(NamedTuple):
    """A queue and its workers at one time."""

    servers: tuple[RemainingWork, ...]
    #: Remaining work of preempted tasks.
    preempted: tuple[float, ...] = ()
    #: Number of the first request that no worker has taken.
    head: int = 0


class QueueSim:
    """The requests of one model, and the slowdowns of its workers by batch size."""

    def __init__(
        self, times: Sequence[float], work: Sequence[float], slowdowns: tuple[float, ...], max_wait_s: float
    ) -> None:
        self.times = [*times, math.inf]
        self.work = work
        self.slowdowns = slowdowns
        self.max_wait_s = max_wait_s
        self.sums = list(itertools.accumulate(work, initial=0.0))

    def remaining_s(self, state: QueueState, arrived: int) -> float:
        """Return the work of queued and running tasks among the first `arrived` requests."""
        running = sum(map(sum, state.servers)) + sum(state.preempted)
        return running + self.sums[max(arrived, state.head)] - self.sums[state.head]

    def resize(self, state: QueueState, workers: int) -> QueueState:
        """Change the number of workers. The least busy workers are removed, and their tasks preempted."""
        servers = state.servers
        if workers >= len(servers):
            return state._replace(servers=servers + ((),) * (workers - len(servers)))
        ordered = sorted(servers, key=lambda server: (len(server), sum(server)))
        leaving = len(servers) - workers
        tasks = tuple(remaining_s for server in ordered[:leaving] for remaining_s in server)
        return QueueState(tuple(ordered[leaving:]), state.preempted + tasks, state.head)

    def advance(self, state: QueueState, since: float, until: float) -> tuple[QueueState, int]:
        """Return the state at `until` and the number of requests that became late; each is counted once."""
        step = self._advance_single if len(self.slowdowns) == 1 else self._advance_batched
        result, late = step(state, since, until) if state.servers else (state, 0)
        # A queued request is late as soon as its wait exceeds the limit.
        number = result.head
        while self.times[number] + self.max_wait_s < until:
            late += self.times[number] + self.max_wait_s >= since
            number += 1
        return result, late

    def _is_late(self, number: int, at: float, since: float) -> bool:
        due = self.times[number] + self.max_wait_s
        return since <= due < at

    def _advance_single(self, state: QueueState, since: float, until: float) -> tuple[QueueState, int]:
        """Advance workers with a batch of one: only the times at which they become free matter."""
        free = [since + server[0] if server else since for server in state.servers]
        heapify(free)
        preempted, late, number, times, work = state.preempted, 0, state.head, self.times, self.work
        while preempted and free[0] < until:
            heapreplace(free, free[0] + preempted[0])
            preempted = preempted[1:]
        while not preempted:
            start_at = max(times[number], free[0])
            if start_at >= until:
                break
            late += self._is_late(number, start_at, since)
            heapreplace(free, start_at + work[number])
            number += 1
        servers = tuple((at - until,) if at > until else () for at in free)
        return QueueState(servers, preempted, number), late

    def _advance_batched(self, state: QueueState, since: float, until: float) -> tuple[QueueState, int]:
        """Advance workers with batches from one arrival or end to the next."""
        slowdowns, times, work, batch = self.slowdowns, self.times, self.work, len(self.slowdowns)
        ends = [list(server) for server in state.servers]
        done, at = [0.0] * len(ends), [since] * len(ends)
        next_ends = [since + tasks[0] * slowdowns[len(tasks) - 1] if tasks else math.inf for tasks in ends]
        preempted, head, late = list(state.preempted), state.head, 0
        tail, now = head, since
        while times[tail] < since:
            tail += 1
        while True:
            while preempted or head < tail:
                loads = [len(tasks) for tasks in ends]
                min_load = min(loads)
                if min_load == batch:
                    break
                index = loads.index(min_load)
                if min_load:
                    done[index] += (now - at[index]) / slowdowns[min_load - 1]
                at[index] = now
                if preempted:
                    remaining_s = preempted.pop(0)
                else:
                    late += self._is_late(head, now, since)
                    remaining_s, head = work[head], head + 1
                insort(ends[index], done[index] + remaining_s)
                next_ends[index] = now + (ends[index][0] - done[index]) * slowdowns[min_load]
            next_end = min(next_ends)
            now = min(next_end, times[tail])
            if now >= until:
                break
            if next_end <= times[tail]:
                index = next_ends.index(next_end)
                done[index], at[index] = ends[index].pop(0), now
                rest = len(ends[index])
                next_ends[index] = now + (ends[index][0] - done[index]) * slowdowns[rest - 1] if rest else math.inf
            else:
                tail += 1
        servers = []
        for index, tasks in enumerate(ends):
            work_done_s = done[index] + (until - at[index]) / slowdowns[len(tasks) - 1] if tasks else 0.0
            servers.append(tuple(max(end - work_done_s, 0.0) for end in tasks))
        return QueueState(tuple(servers), tuple(preempted), head), late
