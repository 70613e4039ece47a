"""Priorities and deadlines of requests, and the order in which they leave a queue."""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from typing import NamedTuple


class Urgency(NamedTuple):
    """How urgent a request is."""

    #: One step counts as `queue.priority_s` seconds of age.
    priority: int = 0
    #: Time from its arrival after which it leaves the queue unserved.
    deadline_s: float = math.inf


class UrgencyQueue:
    """The numbers of waiting requests, by age and priority as in the load balancer."""

    def __init__(self, urgencies: Sequence[Urgency], priority_s: float) -> None:
        self._urgencies = urgencies
        self._priority_s = priority_s
        self._heap: list[tuple[float, int]] = []
        #: Numbers in the order of their arrival, and those of them that wait.
        self._arrived: list[int] = []
        self._waiting: set[int] = set()
        self._first = 0

    def __contains__(self, number: int) -> bool:
        return number in self._waiting

    def push(self, number: int, now: float) -> float:
        """Add a request. Returns the time of its deadline."""
        priority, deadline_s = self._urgencies[number]
        heapq.heappush(self._heap, (now - priority * self._priority_s, number))
        self._arrived.append(number)
        self._waiting.add(number)
        return now + deadline_s

    def pop(self) -> int:
        """Remove and return the next request. Raises `IndexError` if there is none."""
        while True:
            _, number = heapq.heappop(self._heap)
            if number in self._waiting:
                self._waiting.remove(number)
                return number

    def discard(self, number: int) -> None:
        """Remove a waiting request."""
        self._waiting.discard(number)

    def oldest(self) -> int | None:
        """Return the request that has waited for the longest time."""
        while self._first < len(self._arrived) and self._arrived[self._first] not in self._waiting:
            self._first += 1
        return self._arrived[self._first] if self._first < len(self._arrived) else None
