"""A few seconds of one model's queue under a fixed number of workers, for those who try many schedules. Pure.

It follows the same rules as `machine`, on small immutable states that can be kept and continued from.
"""

from __future__ import annotations

import math
from bisect import insort
from collections.abc import Sequence
from heapq import heapify, heapreplace
from typing import NamedTuple

#: What each task of a worker still needs, in seconds of a worker of its own, the least first.
Server = tuple[float, ...]


class State(NamedTuple):
    """A queue and its workers at one moment."""

    servers: tuple[Server, ...]
    #: What tasks that were handed back still need.
    returned: tuple[float, ...] = ()
    #: The first request that no worker has taken.
    head: int = 0


class Lane:
    """The requests, and the workers' pace."""

    def __init__(
        self, times: Sequence[float], work: Sequence[float], slow: tuple[float, ...], max_wait_s: float
    ) -> None:
        self.times = [*times, math.inf]
        self.work = work
        self.slow = slow
        self.max_wait_s = max_wait_s
        self.sums = [0.0]
        for one in work:
            self.sums.append(self.sums[-1] + one)

    def left_s(self, state: State, arrived: int) -> float:
        """Work of what waits and runs, of the first so many requests."""
        running = sum(map(sum, state.servers)) + sum(state.returned)
        return running + self.sums[max(arrived, state.head)] - self.sums[state.head]

    def resized(self, state: State, workers: int) -> State:
        """With so many workers: the least busy go, and hand back what they have."""
        servers = state.servers
        if workers >= len(servers):
            return state._replace(servers=servers + ((),) * (workers - len(servers)))
        ordered = sorted(servers, key=lambda server: (len(server), sum(server)))
        leaving = len(servers) - workers
        back = tuple(left for server in ordered[:leaving] for left in server)
        return State(tuple(ordered[leaving:]), state.returned + back, state.head)

    def advance(self, state: State, since: float, until: float) -> tuple[State, int]:
        """What comes of the state, and how many requests are found to be late meanwhile: each is counted once."""
        step = self._alone if len(self.slow) == 1 else self._shared
        after, late = step(state, since, until)
        # Whoever still waits is late as soon as it has waited for too long.
        number = after.head
        while self.times[number] + self.max_wait_s < until:
            late += self.times[number] + self.max_wait_s >= since
            number += 1
        return after, late

    def _is_late(self, number: int, at: float, since: float) -> bool:
        due = self.times[number] + self.max_wait_s
        return since <= due < at

    def _alone(self, state: State, since: float, until: float) -> tuple[State, int]:
        """Workers that do one task at a time: only the moments at which they are free matter."""
        free = [since + server[0] if server else since for server in state.servers]
        heapify(free)
        returned, late, number, times, work = state.returned, 0, state.head, self.times, self.work
        while returned and free[0] < until:
            heapreplace(free, free[0] + returned[0])
            returned = returned[1:]
        while not returned:
            begin = max(times[number], free[0])
            if begin >= until:
                break
            late += self._is_late(number, begin, since)
            heapreplace(free, begin + work[number])
            number += 1
        servers = tuple((at - until,) if at > until else () for at in free)
        return State(servers, returned, number), late

    def _shared(self, state: State, since: float, until: float) -> tuple[State, int]:
        """Workers whose tasks slow each other down: from one arrival or end to the next."""
        slow, times, work, batch = self.slow, self.times, self.work, len(self.slow)
        ends = [list(server) for server in state.servers]
        done, at = [0.0] * len(ends), [since] * len(ends)
        following = [since + one[0] * slow[len(one) - 1] if one else math.inf for one in ends]
        returned, head, late = list(state.returned), state.head, 0
        tail, now = head, since
        while times[tail] < since:
            tail += 1
        while True:
            while returned or head < tail:
                sizes = [len(one) for one in ends]
                least = min(sizes)
                if least == batch:
                    break
                one = sizes.index(least)
                if least:
                    done[one] += (now - at[one]) / slow[least - 1]
                at[one] = now
                if returned:
                    left = returned.pop(0)
                else:
                    late += self._is_late(head, now, since)
                    left, head = work[head], head + 1
                insort(ends[one], done[one] + left)
                following[one] = now + (ends[one][0] - done[one]) * slow[least]
            soonest = min(following)
            now = min(soonest, times[tail])
            if now >= until:
                break
            if soonest <= times[tail]:
                one = following.index(soonest)
                done[one], at[one] = ends[one].pop(0), now
                rest = len(ends[one])
                following[one] = now + (ends[one][0] - done[one]) * slow[rest - 1] if rest else math.inf
            else:
                tail += 1
        servers = []
        for one, tasks in enumerate(ends):
            gone = done[one] + (until - at[one]) / slow[len(tasks) - 1] if tasks else 0.0
            servers.append(tuple(max(end - gone, 0.0) for end in tasks))
        return State(tuple(servers), tuple(returned), head), late
