"""One request's sampler: a diffusers scheduler object of its own, which holds that request's history and no other's.

The schedule stays on the CPU. diffusers reads single numbers out of it at every step, and each of those would make a
GPU wait; a number on the CPU multiplies a tensor on the GPU without waiting.
"""

from __future__ import annotations

import inspect
from typing import Any

import diffusers
import torch

from configs.schedulers import MODEL_DEFAULT, SAMPLERS
from worker.engine import TaskError


class Sampling:
    """The schedule of one request and the state of its solver."""

    def __init__(self, scheduler: Any, steps: int, generator: torch.Generator) -> None:
        """`scheduler` belongs to this object from now on. Raises whatever it raises for step counts it refuses."""
        scheduler.set_timesteps(steps, device="cpu")
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(
                0
            )  # otherwise its place is looked up by value, which is slow and can be ambiguous
        self._scheduler = scheduler
        #: `(evaluations,)`: some solvers evaluate the model more than once for a step.
        self.timesteps: torch.Tensor = scheduler.timesteps
        accepted = inspect.signature(scheduler.step).parameters
        offered = {"generator": generator, "eta": 0.0}
        self._options = {name: value for name, value in offered.items() if name in accepted}

    @property
    def noise_scale(self) -> float | torch.Tensor:
        """Standard deviation of the noise to start from."""
        scale: float | torch.Tensor = self._scheduler.init_noise_sigma
        return scale

    def scaled(self, latents: torch.Tensor, step: int) -> torch.Tensor:
        """What the model is to see of the latents. May be asked again for the same step."""
        scaled: torch.Tensor = self._scheduler.scale_model_input(latents, self.timesteps[step])
        return scaled

    def advance(self, output: torch.Tensor, step: int, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The latents after the step, and the best guess at the final ones: the same where the solver makes none."""
        moved = self._scheduler.step(output, self.timesteps[step], latents, **self._options)
        guess = moved.get("pred_original_sample", moved.get("denoised"))
        return moved.prev_sample, moved.prev_sample if guess is None else guess


def start_sampling(name: str, shipped: Any, steps: int, generator: torch.Generator) -> Sampling:
    """The sampler that a request names, set up like the checkpoint's own scheduler `shipped`.

    Raises `TaskError` where this checkpoint or this number of steps does not go with it.
    """
    try:
        return Sampling(_build(name, shipped), steps, generator)
    except TaskError:
        raise
    except Exception as error:  # whatever a scheduler trips over, it was this request's name and steps
        raise TaskError("invalid", f"scheduler '{name}' cannot do {steps} steps: {error}") from error


def _build(name: str, shipped: Any) -> Any:
    if name == MODEL_DEFAULT:
        return type(shipped).from_config(shipped.config)
    sampler = SAMPLERS[name]
    cls = getattr(diffusers, sampler.cls)
    known = inspect.signature(cls.__init__).parameters
    predicts = shipped.config.get("prediction_type", "epsilon")
    if predicts != "epsilon" and "prediction_type" not in known:
        raise TaskError("invalid", f"scheduler '{name}' cannot be used with this model: it does not know '{predicts}'")
    options = dict(sampler.options)
    if "clip_sample" in known and "clip_sample" not in shipped.config:
        options["clip_sample"] = False  # their default cuts pictures to [-1, 1], which would spoil latents
    return cls.from_config(shipped.config, **options)
