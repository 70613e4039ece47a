"""Knative's pod autoscaler, with its defaults."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from controller.simulator.agents import SimObservation


@dataclass(slots=True)
class Kpa:
    """Mean concurrency over a stable and a panic window. In panic mode it only scales up."""

    container_concurrency: float = 1.0
    target_percentage: float = 70.0
    stable_window_s: float = 60.0
    panic_window_s: float = 6.0
    panic_threshold: float = 2.0
    max_scale_up_rate: float = 1000.0
    max_scale_down_rate: float = 2.0
    #: Scale-down uses the maximum of this window.
    scale_down_delay_s: float = 0.0
    interval_s: float = 2.0
    _totals: deque[tuple[float, int]] = field(default_factory=deque)
    _history: deque[tuple[float, int]] = field(default_factory=deque)
    #: Time at which the panic threshold was last reached in panic mode; None in stable mode.
    _panic_at: float | None = None
    _panic_max: int = 0

    def desired(self, observation: SimObservation, now: float) -> int:
        """Follow Knative's source code; `ready` is at least 1."""
        self._totals.append((now, observation.total))
        while self._totals[0][0] <= now - self.stable_window_s:
            self._totals.popleft()
        target = self.container_concurrency * self.target_percentage / 100
        ready = max(observation.ready, 1)
        stable = math.ceil(self._mean(now, self.stable_window_s) / target)
        panic = math.ceil(self._mean(now, self.panic_window_s) / target)
        lower, upper = math.floor(ready / self.max_scale_down_rate), math.ceil(self.max_scale_up_rate * ready)
        bounded, panic_bounded = (min(max(desired, lower), upper) for desired in (stable, panic))
        if panic / ready >= self.panic_threshold:
            if self._panic_at is None:
                self._panic_max = 0
            self._panic_at = now
        elif self._panic_at is not None and now - self._panic_at > self.stable_window_s:
            self._panic_at = None
        if self._panic_at is not None:
            self._panic_max = bounded = max(bounded, panic_bounded, self._panic_max)
        return observation.clip(self._delayed_max(bounded, now))

    def _mean(self, now: float, window_s: float) -> float:
        totals = [total for at, total in self._totals if at > now - window_s]
        return sum(totals) / len(totals)

    def _delayed_max(self, desired: int, now: float) -> int:
        self._history.append((now, desired))
        while self._history[0][0] < now - self.scale_down_delay_s:
            self._history.popleft()
        return max(desired for _, desired in self._history)
