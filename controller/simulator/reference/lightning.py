"""The autoscaler of Lightning's diffusion example, and a fixed number of workers."""

from __future__ import annotations

from dataclasses import dataclass

from controller.simulator.agents import SimObservation


@dataclass(slots=True)
class LightningAutoscaler:
    """Adds or removes one worker by pending requests per worker. As in the original, starting workers count twice."""

    max_batch_size: float = 4.0
    interval_s: float = 30.0
    counts_twice: bool = True

    def desired(self, observation: SimObservation, now: float) -> int:
        """Add a worker at a full batch per worker, remove one below a quarter of it."""
        del now
        workers = observation.replicas + (observation.starting if self.counts_twice else 0)
        pending = observation.total / workers if workers else float(observation.total > 0) * self.max_batch_size
        step = (pending >= self.max_batch_size) - (pending < 0.25 * self.max_batch_size)
        return observation.clip(observation.replicas + step)


@dataclass(slots=True)
class FixedWorkers:
    """A fixed number of workers."""

    workers: int
    interval_s: float = 60.0

    def desired(self, observation: SimObservation, now: float) -> int:
        del now
        return observation.clip(self.workers)
