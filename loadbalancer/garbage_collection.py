"""When Python looks for garbage in cycles. A full search stops the balancer while it looks at every object it has.

With 100,000 waiting tasks that takes a fifth of a second. Python's own rule starts one each time the number of objects
has grown by a quarter, which is often while a queue grows.
"""

from __future__ import annotations

import asyncio
import gc
import time

#: New objects, less those that were deleted, after which the youngest are searched. Requests leave no garbage in
#: cycles: a burst of them is no reason to look for it. A search of the second generation takes a few milliseconds.
_YOUNG_OBJECTS = 2000
_YOUNG_SEARCHES = 10
_NEVER = 1 << 30
_CHECK_S = 10.0
#: Full searches take at most this part of the time.
_SHARE = 1e-3
#: Seconds by which a full search takes longer for each search of the second generation since the last one. Each adds
#: up to 20,000 objects; Python looks at five to ten in a microsecond.
_LONGER_S = 4e-3


def is_due(since_s: float, took_s: float, searches: int) -> bool:
    """Return whether to search everything now.

    The last full search was `since_s` ago and took `took_s`; `searches` of the second generation have followed it.
    """
    return since_s * _SHARE >= took_s + _LONGER_S * searches


class GarbageCollection:
    """Owns the settings of `gc` in this process while it runs."""

    def __init__(self) -> None:
        self._next: asyncio.TimerHandle | None = None
        self._last = (0.0, 0.0)

    def start(self) -> None:
        """Keep what has been built out of every search from now on, and search on a timer of the running loop."""
        gc.collect()
        gc.freeze()
        gc.set_threshold(_YOUNG_OBJECTS, _YOUNG_SEARCHES, _NEVER)
        self._last = (time.monotonic(), 0.0)
        self._schedule()

    def stop(self) -> None:
        if self._next is not None:
            self._next.cancel()

    def _schedule(self) -> None:
        self._next = asyncio.get_running_loop().call_later(_CHECK_S, self._check)

    def _check(self) -> None:
        started, (last_at, took_s) = time.monotonic(), self._last
        if is_due(started - last_at, took_s, gc.get_count()[2]):
            gc.collect()
            self._last = (started, time.monotonic() - started)
        self._schedule()
