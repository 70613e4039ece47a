"""Kubernetes' horizontal pod autoscaler on an external metric; KEDA configures the same one."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from controller.simulator.agents import SimObservation


@dataclass(slots=True)
class Hpa:
    """`ceil(metric / target)` workers. Scale-down uses the maximum of the stabilization window."""

    #: Requests per worker.
    target: float = 1.0
    #: Count queued requests only, as KEDA's queue scalers do.
    queued_only: bool = False
    tolerance: float = 0.1
    down_stabilization_s: float = 300.0
    #: Largest scale-up within one interval: a factor or a number of pods, whichever is larger.
    up_factor: float = 1.0
    up_pods: int = 4
    interval_s: float = 15.0
    _history: deque[tuple[float, int]] = field(default_factory=deque)

    def desired(self, observation: SimObservation, now: float) -> int:
        metric = observation.queued if self.queued_only else observation.total
        replicas = observation.replicas
        ratio = metric / (self.target * replicas) if replicas else math.inf
        desired = replicas if abs(1 - ratio) <= self.tolerance else math.ceil(metric / self.target)
        desired = observation.clip(desired)
        self._history.append((now, desired))
        while self._history[0][0] < now - self.down_stabilization_s:
            self._history.popleft()
        recent_max = max(desired for _, desired in self._history)
        desired = max(desired, min(recent_max, replicas))
        return observation.clip(min(desired, max(replicas * (1 + self.up_factor), replicas + self.up_pods)))
