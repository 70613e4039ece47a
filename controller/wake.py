"""When to decide: at each tick, and at once where waiting for the tick would be felt. Pure."""

from __future__ import annotations

from configs.schema import Scaling
from controller.replica import Limits, Observation


def wake(seen: Observation, scaling: Scaling, limits: Limits, due_at: float, now: float) -> str:
    """Why to decide now; empty where there is no reason."""
    del seen, scaling, limits
    return "tick" if now >= due_at else ""
