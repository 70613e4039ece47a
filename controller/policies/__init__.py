"""How many workers a model should have. Each policy is a pure function of an observation, its memory and the time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from configs.scaling import Scaling
from controller.policies import custom, ongoing_requests, queue_depth, schedule, slo_work, static
from controller.policies.custom import PolicyImportError
from controller.types import Decision, Observation, WorkerLimits

#: Takes and gives back its own memory, of whatever type; None at the first call.
Policy = Callable[[Observation, Scaling, WorkerLimits, Any, float], tuple[Decision, Any]]

#: By the name that the configuration gives.
POLICIES: Mapping[str, Policy] = {
    "slo_work": slo_work.decide,
    "queue_depth": queue_depth.decide,
    "ongoing_requests": ongoing_requests.decide,
    "schedule": schedule.decide,
    "static": static.decide,
}

#: What those that remember something remember; each offers `moved`. The others start afresh.
MEMORY_TYPES: Mapping[str, type[Any]] = {
    "slo_work": slo_work.SloWorkMemory,
    "queue_depth": queue_depth.QueueDepthMemory,
    "ongoing_requests": ongoing_requests.OngoingRequestsMemory,
}


def find(name: str) -> Policy:
    """The policy by its name or import path. Raises `CannotImport`."""
    return POLICIES[name] if name in POLICIES else custom.load(name)


__all__ = ["MEMORY_TYPES", "POLICIES", "Policy", "PolicyImportError", "find"]
