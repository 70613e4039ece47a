"""Reference autoscalers for comparison, after their source code and documentation.

Each decides at its own interval from counts of requests and workers. Muster's planner places and drains the workers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from controller.simulator.agents import ReferenceAutoscaler
from controller.simulator.reference.hpa import Hpa
from controller.simulator.reference.kpa import Kpa
from controller.simulator.reference.lightning import FixedWorkers, LightningAutoscaler
from controller.simulator.reference.ray_serve import RayServe

#: Factories by name. The arguments are the tasks in a full batch and the maximum number of workers.
BASELINES: Mapping[str, Callable[[int, int], ReferenceAutoscaler]] = {
    "ray": lambda _batch, _max_workers: RayServe(),
    "ray-0.7": lambda batch, _max_workers: RayServe(target_ongoing_requests=0.7 * batch),
    "kpa": lambda batch, _max_workers: Kpa(container_concurrency=batch),
    "hpa": lambda batch, _max_workers: Hpa(target=batch),
    "keda": lambda _batch, _max_workers: Hpa(target=5.0, queued_only=True),
    "lightning": lambda batch, _max_workers: LightningAutoscaler(max_batch_size=batch),
    "peak": lambda _batch, max_workers: FixedWorkers(max_workers),
}

__all__ = ["BASELINES", "FixedWorkers", "Hpa", "Kpa", "LightningAutoscaler", "RayServe"]
