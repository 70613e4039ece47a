"""Ray Serve's autoscaler, with its fields and defaults."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from controller.simulator.agents import SimObservation


@dataclass(slots=True)
class RayServe:
    """`desired = requests / target_ongoing_requests`, averaged over the look-back period and applied after a delay."""

    target_ongoing_requests: float = 2.0
    look_back_period_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    #: None: the same as `downscale_delay_s`.
    downscale_to_zero_delay_s: float | None = None
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0
    #: The original loop runs every 0.1 s; no setting here is shorter than a second.
    interval_s: float = 1.0
    _totals: deque[tuple[float, int]] = field(default_factory=deque)
    _sum: int = 0
    _target: int | None = None
    #: Direction in which the desired number has differed from the target, and since when.
    _direction: int = 0
    _direction_since: float = 0.0

    def desired(self, observation: SimObservation, now: float) -> int:
        """Change the target after the desired number has differed from it for the delay."""
        if self._target is None:
            self._target = observation.replicas
        mean_total = self._mean(observation.total, now)
        if observation.ready == 0:
            if observation.total > 0:
                self._target = observation.clip(max(math.ceil(self.upscaling_factor), self._target))
            return self._target
        desired = observation.clip(self._raw_desired(mean_total, observation.ready))
        if desired == 0 and self._target > 1:
            desired = 1
        direction = (desired > self._target) - (desired < self._target)
        if direction != self._direction:
            self._direction, self._direction_since = direction, now
        if direction and now - self._direction_since >= self._delay(direction, desired):
            self._target, self._direction = desired, 0
        return self._target

    def _mean(self, total: int, now: float) -> float:
        self._totals.append((now, total))
        self._sum += total
        while self._totals[0][0] <= now - self.look_back_period_s:
            self._sum -= self._totals.popleft()[1]
        return self._sum / len(self._totals)

    def _raw_desired(self, mean_total: float, running: int) -> int:
        exact = mean_total / self.target_ongoing_requests
        factor = self.upscaling_factor if exact > running else self.downscaling_factor
        desired = math.ceil(running + factor * (exact - running))
        # With a factor below 1, rounding up would prevent any scale-down.
        return desired - 1 if exact < running and desired == running and factor < 1 else desired

    def _delay(self, direction: int, desired: int) -> float:
        if direction > 0:
            return self.upscale_delay_s
        if desired == 0 and self.downscale_to_zero_delay_s is not None:
            return self.downscale_to_zero_delay_s
        return self.downscale_delay_s
