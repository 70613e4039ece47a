"""Builds the engine of a model. Imports only that engine, because torch takes seconds."""

from __future__ import annotations

from configs.model_settings import Model
from configs.worker_packages import library_problem
from worker.engine import StepEngine, UnsupportedModel


def build(model: Model, device: str) -> StepEngine:
    """Return the engine for the configured model, not loaded yet.

    A pipeline class with an adapter in `families` runs in `DiffusionEngine`, any other in `GenericEngine`.
    """
    if model.engine == "sim" and model.task == "call":
        from worker.engines.sim_calls import SimCallEngine

        return SimCallEngine(model)
    if model.engine == "sim" and model.task == "text":
        from worker.engines.sim_text import SimTextEngine

        return SimTextEngine(model)
    if model.engine == "sim":
        from worker.engines.sim import SimEngine

        return SimEngine(model)
    if model.task == "call":
        from worker.engines.user.engine import UserEngine

        return UserEngine(model, device)
    if model.task == "text":
        return _language_model(model, device)
    from worker.engines.diffusion.loading import has_family, pipeline_class

    if has_family(pipeline_class(model)):
        from worker.engines.diffusion.engine import DiffusionEngine

        return DiffusionEngine(model, device)
    from worker.engines.diffusion.generic.engine import GenericEngine

    return GenericEngine(model, device)


def _language_model(model: Model, device: str) -> StepEngine:
    if problem := library_problem(model.engine):
        raise UnsupportedModel(problem)
    if model.engine == "vllm":
        from worker.engines.text_library.engine import LibraryEngine
        from worker.engines.vllm.vllm_library import VllmLibrary

        return LibraryEngine(model, VllmLibrary(model, device))
    if model.engine == "openvino":
        from worker.engines.openvino.openvino_library import OpenVinoLibrary
        from worker.engines.text_library.engine import LibraryEngine

        return LibraryEngine(model, OpenVinoLibrary(model, device))
    from worker.engines.text.engine import TextEngine

    return TextEngine(model, device)
