"""Knative's pod autoscaler, with its defaults."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from controller.simulator.agents import Seen


@dataclass(slots=True)
class Kpa:
    """Mean concurrency over a stable and a short window; while the short one is twice too high, only upwards."""

    container_concurrency: float = 1.0
    target_percentage: float = 70.0
    stable_window_s: float = 60.0
    panic_window_s: float = 6.0
    panic_threshold: float = 2.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    #: No fewer than the most that was wanted in this time.
    scale_down_delay_s: float = 0.0
    interval_s: float = 2.0
    _seen: deque[tuple[float, int]] = field(default_factory=deque)
    _wishes: deque[tuple[float, int]] = field(default_factory=deque)
    #: Since when the short window was last too high, while that counts; None else.
    _panic_at: float | None = None
    _most: int = 0

    def desired(self, seen: Seen, now: float) -> int:
        """As its source has it; `ready` are the pods that serve, one at least."""
        self._seen.append((now, seen.total))
        while self._seen[0][0] <= now - self.stable_window_s:
            self._seen.popleft()
        target = self.container_concurrency * self.target_percentage / 100
        ready = max(seen.ready, 1)
        stable = math.ceil(self._mean(now, self.stable_window_s) / target)
        panic = math.ceil(self._mean(now, self.panic_window_s) / target)
        lowest, highest = math.floor(ready / self.max_scale_down_rate), math.ceil(self.max_scale_up_rate * ready)
        bounded, hurried = (min(max(wish, lowest), highest) for wish in (stable, panic))
        if panic / ready >= self.panic_threshold:
            if self._panic_at is None:
                self._most = 0
            self._panic_at = now
        elif self._panic_at is not None and now - self._panic_at > self.stable_window_s:
            self._panic_at = None
        if self._panic_at is not None:
            self._most = bounded = max(bounded, hurried, self._most)
        return seen.clip(self._held(bounded, now))

    def _mean(self, now: float, window_s: float) -> float:
        totals = [total for at, total in self._seen if at > now - window_s]
        return sum(totals) / len(totals)

    def _held(self, wish: int, now: float) -> int:
        self._wishes.append((now, wish))
        while self._wishes[0][0] < now - self.scale_down_delay_s:
            self._wishes.popleft()
        return max(wish for _, wish in self._wishes)
