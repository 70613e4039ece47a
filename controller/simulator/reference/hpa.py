"""Kubernetes' horizontal pod autoscaler on an external metric, as KEDA sets it up too."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, field

from controller.simulator.agents import Seen


@dataclass(slots=True)
class Hpa:
    """`ceil(metric / target)` workers, at once upwards, downwards the most that was wanted within five minutes."""

    #: Requests per worker.
    target: float = 1.0
    #: Count queued requests only, as most scalers on queues do.
    waiting_only: bool = False
    tolerance: float = 0.1
    down_stabilization_s: float = 300.0
    #: Within 15 s at most so many times more, or so many, whichever is more.
    up_factor: float = 1.0
    up_pods: int = 4
    interval_s: float = 15.0
    _wishes: deque[tuple[float, int]] = field(default_factory=deque)

    def desired(self, seen: Seen, now: float) -> int:
        """As its replica calculator and stabilization have it."""
        metric = seen.queued if self.waiting_only else seen.total
        replicas = seen.replicas
        ratio = metric / (self.target * replicas) if replicas else math.inf
        wish = replicas if abs(1 - ratio) <= self.tolerance else math.ceil(metric / self.target)
        wish = seen.clip(wish)
        self._wishes.append((now, wish))
        while self._wishes[0][0] < now - self.down_stabilization_s:
            self._wishes.popleft()
        held = max(wish for _, wish in self._wishes)
        wish = max(wish, min(held, replicas))
        return seen.clip(min(wish, max(replicas * (1 + self.up_factor), replicas + self.up_pods)))
