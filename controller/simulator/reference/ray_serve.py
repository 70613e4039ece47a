"""Ray Serve's autoscaler, with its fields and defaults."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from controller.simulator.agents import Seen


@dataclass(slots=True)
class Ray:
    """`desired = requests / target_ongoing_requests`, averaged over the look-back, held for a delay."""

    target_ongoing_requests: float = 2.0
    look_back_period_s: float = 30.0
    upscale_delay_s: float = 30.0
    downscale_delay_s: float = 600.0
    #: None: the same as `downscale_delay_s`.
    downscale_to_zero_delay_s: float | None = None
    upscaling_factor: float = 1.0
    downscaling_factor: float = 1.0
    #: The controller's loop runs every 0.1 s; nothing here is decided by less than a second.
    interval_s: float = 1.0
    _seen: deque[tuple[float, int]] = field(default_factory=deque)
    _sum: int = 0
    _target: int | None = None
    #: On which side of the target the wish has been, and since when.
    _side: int = 0
    _since: float = 0.0

    def desired(self, seen: Seen, now: float) -> int:
        """The target, moved when the wish has been beyond it for long enough."""
        if self._target is None:
            self._target = seen.replicas
        total = self._mean(seen.total, now)
        if seen.ready == 0:
            if seen.total > 0:
                self._target = seen.clip(max(math.ceil(self.upscaling_factor), self._target))
            return self._target
        wish = seen.clip(self._wish(total, seen.ready))
        if wish == 0 and self._target > 1:
            wish = 1
        side = (wish > self._target) - (wish < self._target)
        if side != self._side:
            self._side, self._since = side, now
        if side and now - self._since >= self._delay(side, wish):
            self._target, self._side = wish, 0
        return self._target

    def _mean(self, total: int, now: float) -> float:
        self._seen.append((now, total))
        self._sum += total
        while self._seen[0][0] <= now - self.look_back_period_s:
            self._sum -= self._seen.popleft()[1]
        return self._sum / len(self._seen)

    def _wish(self, total: float, running: int) -> int:
        desired = total / self.target_ongoing_requests
        factor = self.upscaling_factor if desired > running else self.downscaling_factor
        wish = math.ceil(running + factor * (desired - running))
        # With a small factor, rounding up would never go down.
        return wish - 1 if desired < running and wish == running and factor < 1 else wish

    def _delay(self, side: int, wish: int) -> float:
        if side > 0:
            return self.upscale_delay_s
        if wish == 0 and self.downscale_to_zero_delay_s is not None:
            return self.downscale_to_zero_delay_s
        return self.downscale_delay_s
