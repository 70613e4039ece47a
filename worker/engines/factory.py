"""From a model's configuration to its engine. Imports an engine only when it is the one: torch takes seconds."""

from __future__ import annotations

from configs.settings import Model
from worker.engine import StepEngine


def build(model: Model, device: str) -> StepEngine:
    """The engine for the configured model, not loaded yet.

    A checkpoint whose pipeline class has an adapter of ours gets that; any other runs in the generic engine.
    """
    if model.engine == "sim":
        from worker.engines.sim import SimEngine

        return SimEngine(model)
    from worker.engines.diffusion.loading import has_family, pipeline_class

    if has_family(pipeline_class(model)):
        from worker.engines.diffusion.engine import DiffusionEngine

        return DiffusionEngine(model, device)
    from worker.engines.diffusion.generic.engine import GenericEngine

    return GenericEngine(model, device)
