"""Counts the requests that the HTTP server refuses, and logs them at a bounded rate."""

from __future__ import annotations

import logging
import time
from collections import Counter

log = logging.getLogger(__name__)

#: Seconds between two log lines with the same reason.
LOG_EVERY_S = 10.0


class RefusalCounter:
    """Refusals by reason. Each reason is logged at most once per `LOG_EVERY_S`, with the number since its last line."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._logged_at: dict[str, float] = {}
        self._unlogged: Counter[str] = Counter()

    def add(self, reason: str) -> None:
        """Count a refusal. `reason` is one of a few constants, never text of a client."""
        line = self.count(reason, time.monotonic())
        if line is not None:
            log.info("%s", line)

    def count(self, reason: str, now: float) -> str | None:
        """Count a refusal at `now` and return the line to log, if one is due."""
        self.counts[reason] += 1
        self._unlogged[reason] += 1
        last = self._logged_at.get(reason)
        if last is not None and now - last < LOG_EVERY_S:
            return None
        self._logged_at[reason] = now
        count = self._unlogged.pop(reason)
        return f"refused by the HTTP server: {reason}" + (f" ({count} times since the last line)" if count > 1 else "")
