"""Scaling policies: the number of workers of a model. Each is a pure function of observation, state and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from configs.scaling import Scaling
from controller.policies import custom, ongoing_requests, queue_depth, schedule, slo_work, static
from controller.policies.custom import PolicyImportError
from controller.types import Decision, Observation, WorkerLimits

#: A policy takes and returns its state, which may be of any type; the state is None at the first call.
Policy = Callable[[Observation, Scaling, WorkerLimits, Any, float], tuple[Decision, Any]]

#: The policies by their names in the configuration.
POLICIES: Mapping[str, Policy] = {
    "slo_work": slo_work.decide,
    "queue_depth": queue_depth.decide,
    "ongoing_requests": ongoing_requests.decide,
    "schedule": schedule.decide,
    "static": static.decide,
}

#: State types of the policies whose state is saved. Each has a method `shifted`.
MEMORY_TYPES: Mapping[str, type[Any]] = {
    "slo_work": slo_work.SloWorkMemory,
    "queue_depth": queue_depth.QueueDepthMemory,
    "ongoing_requests": ongoing_requests.OngoingRequestsMemory,
}


def find(name: str) -> Policy:
    """Return the policy by its name or import path. Raises `PolicyImportError`."""
    return POLICIES[name] if name in POLICIES else custom.load(name)


__all__ = ["MEMORY_TYPES", "POLICIES", "Policy", "PolicyImportError", "find"]
