"""The samplers of one request: a pipeline's own, made anew, or the one that the request names in its place."""

from __future__ import annotations

import functools
import inspect
from typing import Any

from configs.samplers import MODEL_DEFAULT
from worker.engine import TaskError
from worker.engines.diffusion.sampling.schedulers import process_of, scheduler_like


class SamplerProgress:
    """How far the samplers of one request are, by what its pipeline asks of them."""

    def __init__(self, requested_steps: int) -> None:
        """`asked`: the steps that the request wants, which count until more is known."""
        #: Steps that the samplers have taken.
        self.steps_taken = 0
        self._expected = requested_steps
        self._schedulers: list[Any] = []
        self._pipeline: Any = None

    def track(self, scheduler: Any) -> None:
        """Count the steps of this scheduler from now on."""
        step = scheduler.step

        @functools.wraps(step)  # pipelines read its signature
        def counted(*args: Any, **kwargs: Any) -> Any:
            step_output = step(*args, **kwargs)
            self.steps_taken += 1
            return step_output

        scheduler.step = counted
        self._schedulers.append(scheduler)

    def set_pipeline(self, pipeline: Any) -> None:
        """The pipeline whose samplers these are."""
        self._pipeline = pipeline

    @property
    def expected_steps(self) -> int:
        """Steps in all: by what the pipeline notes, or else by what its samplers were set to."""
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
        """Whether the last step was taken."""
        return self.steps_taken >= self.expected_steps

    def close(self) -> None:
        """Let go of the samplers: their history of tensors would wait for the garbage collector."""
        _ = self.expected_steps
        for scheduler in self._schedulers:
            del scheduler.step
        self._schedulers = []
        self._pipeline = None


def scheduler_for(shipped: Any, name: str, pipeline: type) -> Any:
    """A scheduler for one request to a pipeline of this class, which has the `shipped` one or none.

    Raises `TaskError` for a name that does not go with them.
    """
    if name == MODEL_DEFAULT:
        return None if shipped is None else scheduler_like(name, shipped)
    if shipped is None or process_of(shipped) != "noise" or not _supports_other_schedulers(pipeline):
        raise TaskError("invalid", f"this model takes no other scheduler than its own, not '{name}'")
    try:
        return scheduler_like(name, shipped)
    except TaskError:
        raise
    except Exception as error:  # whatever it trips over, it was this request's name
        raise TaskError("invalid", f"scheduler '{name}' cannot be used with this model: {error}") from error


def _supports_other_schedulers(pipeline: type) -> bool:
    """Whether a pipeline of this class does what any sampler needs: scale the noise, and what the denoiser sees.

    Some do neither, since their own sampler asks for neither, and would make pictures of the wrong noise.
    """
    code = source_code_of(pipeline)
    return "scale_model_input" in code and ("init_noise_sigma" in code or "add_noise" in code)


@functools.cache
def source_code_of(pipeline: type) -> str:
    """The module that a class of pipelines stands in: what it makes use of is nowhere else to be found."""
    return inspect.getsource(inspect.getmodule(pipeline) or pipeline)
