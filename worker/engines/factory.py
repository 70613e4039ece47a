"""From a model's configuration to its engine. Imports an engine only when it is the one: torch takes seconds."""

from __future__ import annotations

from configs.schema import Model
from worker.engine import StepEngine


def build(model: Model, device: str) -> StepEngine:
    """The engine that the configuration names, not loaded yet."""
    if model.engine == "sim":
        from worker.engines.sim import SimEngine

        return SimEngine(model)
    from worker.engines.diffusion.engine import DiffusionEngine

    return DiffusionEngine(model, device)
