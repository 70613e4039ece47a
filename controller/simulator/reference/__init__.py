"""The autoscalers that others use, after their source and documentation, to compare with. Pure.

Each looks at its own interval at the requests and workers there are. What they do beside counting (which worker goes,
where one starts) is left to our plan, which does them no harm: it drains without loss and replaces the dead.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from controller.simulator.agents import Autoscaler
from controller.simulator.reference.hpa import Hpa
from controller.simulator.reference.kpa import Kpa
from controller.simulator.reference.lightning import Seed, Static
from controller.simulator.reference.ray_serve import Ray

#: By name: makes one for workers whose full batch has so many tasks, at most so many workers.
BASELINES: Mapping[str, Callable[[int, int], Autoscaler]] = {
    "ray": lambda _batch, _most: Ray(),
    "ray-0.7": lambda batch, _most: Ray(target_ongoing_requests=0.7 * batch),
    "kpa": lambda batch, _most: Kpa(container_concurrency=batch),
    "hpa": lambda batch, _most: Hpa(target=batch),
    "keda": lambda _batch, _most: Hpa(target=5.0, waiting_only=True),
    "seed": lambda batch, _most: Seed(max_batch_size=batch),
    "peak": lambda _batch, most: Static(most),
}

__all__ = ["BASELINES", "Hpa", "Kpa", "Ray", "Seed", "Static"]
