"""Sampler progress of one request, and its choice of scheduler."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from configs.samplers import MODEL_DEFAULT
from worker.engine import TaskError
from worker.engines.diffusion.sampling.schedulers import process_of, scheduler_like


class SamplerProgress:
    """Counts the sampler steps of one request and estimates their total."""

    def __init__(self, requested_steps: int) -> None:
        """`requested_steps` is the estimate until the schedulers are set up."""
        self.steps_taken = 0
        self._expected = requested_steps
        self._schedulers: list[Any] = []
        self._pipeline: Any = None

    def track(self, scheduler: Any) -> None:
        step = scheduler.step

        @functools.wraps(step)  # pipelines read its signature
        def counted(*args: Any, **kwargs: Any) -> Any:
            step_output = step(*args, **kwargs)
            self.steps_taken += 1
            return step_output

        scheduler.step = counted
        self._schedulers.append(scheduler)

    def set_pipeline(self, pipeline: Any) -> None:
        self._pipeline = pipeline

    @property
    def expected_steps(self) -> int:
        """Total sampler steps, from the pipeline's `_num_timesteps` or else from its schedulers."""
        noted = vars(self._pipeline).get("_num_timesteps") if self._pipeline is not None else None
        if isinstance(noted, int) and len(self._schedulers) == 1:
            self._expected = noted
        else:
            ready = [own for own in self._schedulers if getattr(own, "num_inference_steps", None) is not None]
            left = sum(len(own.timesteps) - (getattr(own, "begin_index", None) or 0) for own in ready)
            self._expected = left or self._expected
        return self._expected

    @property
    def is_complete(self) -> bool:
        return self.steps_taken >= self.expected_steps

    def close(self) -> None:
        """Drop the schedulers: their tensors would otherwise wait for the garbage collector."""
        _ = self.expected_steps
        for scheduler in self._schedulers:
            del scheduler.step
        self._schedulers = []
        self._pipeline = None


def scheduler_for(shipped: Any, name: str, pipeline: type) -> Any:
    """Return a new scheduler for a request; `shipped` is the pipeline's own, or None.

    Raises `TaskError` for an incompatible name.
    """
    if name == MODEL_DEFAULT:
        return None if shipped is None else scheduler_like(name, shipped)
    if shipped is None or process_of(shipped) != "noise" or not _supports_other_schedulers(pipeline):
        raise TaskError("invalid", f"this model supports only its own scheduler, not '{name}'")
    try:
        return scheduler_like(name, shipped)
    except TaskError:
        raise
    except Exception as error:  # any error is due to the requested name
        raise TaskError("invalid", f"scheduler '{name}' cannot be used with this model: {error}") from error


def _supports_other_schedulers(pipeline: type) -> bool:
    """Return true if the pipeline scales the initial noise and the model input.

    Some pipelines skip this because their own scheduler does not need it; other schedulers would get the wrong noise
    level.
    """
    code = source_code_of(pipeline)
    return "scale_model_input" in code and ("init_noise_sigma" in code or "add_noise" in code)


@functools.cache
def source_code_of(pipeline: type) -> str:
    return inspect.getsource(inspect.getmodule(pipeline) or pipeline)
