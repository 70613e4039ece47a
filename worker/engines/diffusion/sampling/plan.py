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

from worker.engines.diffusion.sampling.recurrence import derive
from worker.engines.diffusion.sampling.schedulers import Schedule, process_of, scheduler_like, set_up

#: A plan holds a few hundred kB at most.
_PLANS = 128


class Plan:
    """One scheduler class with its configuration and its steps."""

    def __init__(self, name: str, shipped: Any, schedule: Schedule) -> None:
        """Raises `TaskError`, and whatever the scheduler raises."""
        self._pattern = scheduler_like(name, shipped, schedule.options.get("mu"))
        self._begin = set_up(self._pattern, schedule)
        #: `(evaluations,)`: some solvers evaluate the model more than once for a step.
        self.timesteps: torch.Tensor = self._pattern.timesteps[self._begin :]
        #: Standard deviation of the noise to start from.
        self.noise_scale: float | torch.Tensor = getattr(self._pattern, "init_noise_sigma", 1.0)
        #: None where each request has to run a scheduler of its own.
        self.recurrence = derive(self.scheduler, self.timesteps)
        config = {key: value for key, value in self._pattern.config.items() if not key.startswith("_")}
        said = f"{diffusers.__version__} {type(self._pattern).__name__} {sorted(config.items())} {schedule}"
        #: Equal for equal plans, whoever made them.
        self.id = hashlib.sha256(said.encode()).hexdigest()
        self._levels: dict[tuple[int, torch.dtype], tuple[float, float]] = {}

    def scheduler(self) -> Any:
        """A scheduler of its own for one request, ready for the first of the timesteps."""
        return copy.deepcopy(self._pattern)

    def level(self, step: int, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
        """How much of a picture and how much noise make up what the model is to see at this evaluation."""
        if step == len(self.timesteps):
            return 1.0, 0.0
        if (step, dtype) not in self._levels:
            picture, noise = torch.tensor([[1, 0], [0, 1]], dtype=dtype)
            self._levels[step, dtype] = tuple(self._noised(picture, noise, step).tolist())
        return self._levels[step, dtype]

    def guess(self, step: int) -> tuple[float, float] | None:
        """Factors of the sample and of the model's output in the best guess at the final sample; None if unknown."""
        if self.recurrence is not None and (own := self.recurrence.steps[step].guess) is not None:
            return own
        process = process_of(self._pattern)
        if process == "edm":
            return None
        picture, noise = self.level(step)
        if process == "flow":
            return 1.0, -noise
        length = math.hypot(picture, noise)
        known = {
            "epsilon": (1 / picture, -noise / picture) if picture else None,
            "v_prediction": (picture / length**2, -noise / length),
            "sample": (0.0, 1.0),
        }
        return known.get(self._pattern.config.get("prediction_type", "epsilon"))

    def _noised(self, picture: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
        scheduler = copy.copy(self._pattern)
        if not hasattr(scheduler, "add_noise") and not hasattr(scheduler, "scale_noise"):
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
            scheduler.sigmas, scheduler.timesteps = self._pattern.sigmas, self._pattern.timesteps
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(self._begin + step)
        timesteps = self.timesteps[step : step + 1]
        noised: torch.Tensor
        if hasattr(scheduler, "scale_noise"):
            noised = scheduler.scale_noise(picture, timesteps, noise)
        else:
            noised = scheduler.add_noise(picture, noise, timesteps)
        return noised


@dataclass(frozen=True)
class _Wish:
    """What a plan is made from, and what tells it from others."""

    key: tuple[str, str, str]
    shipped: Any = field(compare=False)
    schedule: Schedule = field(compare=False)


def plan_for(name: str, shipped: Any, schedule: Schedule) -> Plan:
    """The plan for a sampler by name, set up like `shipped`. Raises `TaskError`, and whatever the scheduler raises."""
    like = f"{type(shipped).__name__} {sorted(shipped.config.items())}"
    return _make(_Wish((name, like, str(schedule)), shipped, schedule))


@functools.lru_cache(_PLANS)
def _make(wish: _Wish) -> Plan:
    return Plan(wish.key[0], wish.shipped, wish.schedule)
