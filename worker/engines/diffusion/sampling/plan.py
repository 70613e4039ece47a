"""All about a run that does not depend on its pictures: timesteps, noise levels, and the scheduler as numbers.

Requests with equal settings share a plan. It costs 1 to 100 ms to make, so the last ones are kept.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import math
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

from worker.engines.diffusion.sampling.recurrence import derive_recurrence
from worker.engines.diffusion.sampling.schedulers import SchedulerSetup, configure_scheduler, process_of, scheduler_like

#: A plan holds a few hundred kB at most.
_PLANS = 128


class SamplingPlan:
    """One scheduler class with its configuration and its steps."""

    def __init__(self, name: str, shipped: Any, setup: SchedulerSetup) -> None:
        """Raises `TaskError`, and whatever the scheduler raises."""
        self._template = scheduler_like(name, shipped, setup.options.get("mu"))
        self._start_index = configure_scheduler(self._template, setup)
        #: `(evaluations,)`: some solvers evaluate the model more than once for a step.
        self.timesteps: torch.Tensor = self._template.timesteps[self._start_index :]
        #: Standard deviation of the noise to start from.
        self.noise_scale: float | torch.Tensor = getattr(self._template, "init_noise_sigma", 1.0)
        #: None where each request has to run a scheduler of its own.
        self.recurrence = derive_recurrence(self.scheduler, self.timesteps)
        config = {key: value for key, value in self._template.config.items() if not key.startswith("_")}
        description = f"{diffusers.__version__} {type(self._template).__name__} {sorted(config.items())} {setup}"
        #: Equal for equal plans, whoever made them.
        self.id = hashlib.sha256(description.encode()).hexdigest()
        self._levels: dict[tuple[int, torch.dtype], tuple[float, float]] = {}

    def scheduler(self) -> Any:
        """A scheduler of its own for one request, ready for the first of the timesteps."""
        return copy.deepcopy(self._template)

    def noise_level(self, step: int, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
        """How much of a picture and how much noise make up what the model is to see at this evaluation."""
        if step == len(self.timesteps):
            return 1.0, 0.0
        if (step, dtype) not in self._levels:
            picture, noise = torch.tensor([[1, 0], [0, 1]], dtype=dtype)
            self._levels[step, dtype] = tuple(self._add_noise(picture, noise, step).tolist())
        return self._levels[step, dtype]

    def denoised(self, step: int) -> tuple[float, float] | None:
        """Factors of the sample and of the model's output in the best guess at the final sample; None if unknown."""
        if self.recurrence is not None and (own := self.recurrence.steps[step].denoised) is not None:
            return own
        process = process_of(self._template)
        if process == "edm":
            return None
        picture, noise = self.noise_level(step)
        if process == "flow":
            return 1.0, -noise
        length = math.hypot(picture, noise)
        known = {
            "epsilon": (1 / picture, -noise / picture) if picture else None,
            "v_prediction": (picture / length**2, -noise / length),
            "sample": (0.0, 1.0),
        }
        return known.get(self._template.config.get("prediction_type", "epsilon"))

    def _add_noise(self, picture: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
        scheduler = copy.copy(self._template)
        if not hasattr(scheduler, "add_noise") and not hasattr(scheduler, "scale_noise"):
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
            scheduler.sigmas, scheduler.timesteps = self._template.sigmas, self._template.timesteps
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(self._start_index + step)
        timesteps = self.timesteps[step : step + 1]
        noised: torch.Tensor
        if hasattr(scheduler, "scale_noise"):
            noised = scheduler.scale_noise(picture, timesteps, noise)
        else:
            noised = scheduler.add_noise(picture, noise, timesteps)
        return noised


@dataclass(frozen=True)
class _PlanKey:
    """What a plan is made from, and what tells it from others."""

    key: tuple[str, str, str]
    shipped: Any = field(compare=False)
    setup: SchedulerSetup = field(compare=False)


def get_plan(name: str, shipped: Any, setup: SchedulerSetup) -> SamplingPlan:
    """The plan for a sampler by name, set up like `shipped`. Raises `TaskError`, and whatever the scheduler raises."""
    like = f"{type(shipped).__name__} {sorted(shipped.config.items())}"
    return _make(_PlanKey((name, like, str(setup)), shipped, setup))


@functools.lru_cache(_PLANS)
def _make(plan_key: _PlanKey) -> SamplingPlan:
    return SamplingPlan(plan_key.key[0], plan_key.shipped, plan_key.setup)
