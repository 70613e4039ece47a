"""How many workers a model should have. Each policy is a pure function of an observation, its memory and the time."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from configs.schema import Scaling
from controller.policies import queue_depth
from controller.replica import Decision, Limits, Observation

Memory = queue_depth.Memory
Policy = Callable[[Observation, Scaling, Limits, Memory, float], tuple[Decision, Memory]]

#: By the name that the configuration gives.
POLICIES: Mapping[str, Policy] = {"queue_depth": queue_depth.decide}
