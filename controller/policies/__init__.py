"""How many workers a model should have. Each policy is a pure function of an observation, its memory and the time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from configs.schema import Scaling
from controller.policies import queue_depth
from controller.replica import Decision, Limits, Observation

#: Takes and gives back its own memory, of whatever type; None at the first call.
Policy = Callable[[Observation, Scaling, Limits, Any, float], tuple[Decision, Any]]

#: By the name that the configuration gives.
POLICIES: Mapping[str, Policy] = {"queue_depth": queue_depth.decide}
