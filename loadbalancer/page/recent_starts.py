"""How many tasks of the last ten minutes waited longer than promised. Pure."""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

#: Age in seconds of what is compared with, and the least time between two entries.
_SPAN_S, _EVERY_S = 600.0, 10.0


class Starts(NamedTuple):
    """Tasks that were started or ended without a start, and those of them that had waited longer than promised."""

    started: int = 0
    late: int = 0


class RecentStarts:
    """The counters of one model ten minutes ago, or when they were first seen."""

    def __init__(self) -> None:
        self._entries: deque[tuple[float, Starts]] = deque()

    def update(self, now: float, totals: Starts) -> Starts:
        """Note the counters since the start, and return what was added in the last ten minutes."""
        entries = self._entries
        if not entries or now >= entries[-1][0] + _EVERY_S:
            entries.append((now, totals))
        while len(entries) > 1 and entries[1][0] <= now - _SPAN_S:
            entries.popleft()
        first = entries[0][1]
        return Starts(totals.started - first.started, totals.late - first.late)
