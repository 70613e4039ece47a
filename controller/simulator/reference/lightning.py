"""The autoscaler of Lightning's diffusion example, and no autoscaler at all."""

from __future__ import annotations

from dataclasses import dataclass

from controller.simulator.agents import Seen


@dataclass(slots=True)
class Seed:
    """One worker more or fewer by pending requests per worker. As in the original, starting workers count twice."""

    max_batch_size: float = 4.0
    interval_s: float = 30.0
    counts_twice: bool = True

    def desired(self, seen: Seen, now: float) -> int:
        """A full batch per worker adds one, less than a quarter removes one."""
        del now
        workers = seen.replicas + (seen.starting if self.counts_twice else 0)
        pending = seen.total / workers if workers else float(seen.total > 0) * self.max_batch_size
        step = (pending >= self.max_batch_size) - (pending < 0.25 * self.max_batch_size)
        return seen.clip(seen.replicas + step)


@dataclass(slots=True)
class Static:
    """Always so many."""

    workers: int
    interval_s: float = 60.0

    def desired(self, seen: Seen, now: float) -> int:
        """The number, within the bounds."""
        del now
        return seen.clip(self.workers)
