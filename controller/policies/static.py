"""Policy `static`: a fixed number of workers, `initial_workers` or else `min_workers`."""

from __future__ import annotations

from configs.scaling import Scaling
from controller.types import Decision, Observation, WorkerLimits


def decide(
    observation: Observation, scaling: Scaling, limits: WorkerLimits, memory: None, now: float
) -> tuple[Decision, None]:
    """Return the configured number, whatever the observation."""
    del observation, memory, now
    number = limits.min_workers if scaling.initial_workers is None else scaling.initial_workers
    number = min(max(number, limits.min_workers), limits.max_workers)
    return Decision(number, f"static at {number}"), None
