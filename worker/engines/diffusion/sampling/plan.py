"""`SamplingPlan`: the image-independent part of a sampling run, cached by settings.

A plan holds timesteps, noise levels and the recurrence. It takes 1 to 100 ms to build.
"""

from __future__ import annotations

import copy
import hashlib
import math
import threading
from collections.abc import Hashable
from typing import Any

import diffusers
import torch
from cachetools import LRUCache

from worker.engines.diffusion.sampling.recurrence import derive_recurrence
from worker.engines.diffusion.sampling.schedulers import SchedulerSetup, configure_scheduler, process_of, scheduler_like

#: A plan takes at most a few hundred kB.
_PLANS = 128


class SamplingPlan:
    """A scheduler class with its configuration and steps."""

    def __init__(self, name: str, shipped: Any, setup: SchedulerSetup) -> None:
        """Raises `TaskError`, and the scheduler's own errors."""
        self._template = scheduler_like(name, shipped, setup.options.get("mu"))
        self._start_index = configure_scheduler(self._template, setup)
        #: `(evaluations,)`; some solvers evaluate the model several times per step.
        self.timesteps: torch.Tensor = self._template.timesteps[self._start_index :]
        #: Standard deviation of the initial noise.
        self.noise_scale: float | torch.Tensor = getattr(self._template, "init_noise_sigma", 1.0)
        #: None if each request needs its own scheduler object.
        self.recurrence = derive_recurrence(self.scheduler, self.timesteps)
        config = {key: value for key, value in self._template.config.items() if not key.startswith("_")}
        description = f"{diffusers.__version__} {type(self._template).__name__} {sorted(config.items())} {setup}"
        #: Equal for equal plans, in every process.
        self.id = hashlib.sha256(description.encode()).hexdigest()
        self._levels: dict[tuple[int, torch.dtype], tuple[float, float]] = {}

    def scheduler(self) -> Any:
        """Return a scheduler for one request, ready for the first timestep."""
        return copy.deepcopy(self._template)

    def noise_level(self, step: int, dtype: torch.dtype = torch.float32) -> tuple[float, float]:
        """Return the factors of image and noise in the model's input at this evaluation."""
        if step == len(self.timesteps):
            return 1.0, 0.0
        if (step, dtype) not in self._levels:
            image, noise = torch.tensor([[1, 0], [0, 1]], dtype=dtype)
            self._levels[step, dtype] = tuple(self._add_noise(image, noise, step).tolist())
        return self._levels[step, dtype]

    def denoised(self, step: int) -> tuple[float, float] | None:
        """Return the factors of sample and output in the denoised estimate; None if unknown."""
        if self.recurrence is not None and (own := self.recurrence.steps[step].denoised) is not None:
            return own
        process = process_of(self._template)
        if process == "edm":
            return None
        image_factor, noise = self.noise_level(step)
        if process == "flow":
            return 1.0, -noise
        length = math.hypot(image_factor, noise)
        known = {
            "epsilon": (1 / image_factor, -noise / image_factor) if image_factor else None,
            "v_prediction": (image_factor / length**2, -noise / length),
            "sample": (0.0, 1.0),
        }
        return known.get(self._template.config.get("prediction_type", "epsilon"))

    def _add_noise(self, image: torch.Tensor, noise: torch.Tensor, step: int) -> torch.Tensor:
        scheduler = copy.copy(self._template)
        if not hasattr(scheduler, "add_noise") and not hasattr(scheduler, "scale_noise"):
            scheduler = diffusers.FlowMatchEulerDiscreteScheduler()
            scheduler.sigmas, scheduler.timesteps = self._template.sigmas, self._template.timesteps
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(self._start_index + step)
        timesteps = self.timesteps[step : step + 1]
        noised: torch.Tensor
        if hasattr(scheduler, "scale_noise"):
            noised = scheduler.scale_noise(image, timesteps, noise)
        else:
            noised = scheduler.add_noise(image, noise, timesteps)
        return noised


_plans: LRUCache[Hashable, SamplingPlan] = LRUCache(_PLANS)
_plans_lock = threading.Lock()


def get_plan(name: str, shipped: Any, setup: SchedulerSetup) -> SamplingPlan:
    """Return the plan of a sampler, set up like `shipped`. Raises `TaskError`, and the scheduler's own errors.

    Callable from any thread.
    """
    key = _key(name, shipped, setup)
    with _plans_lock:
        plan = _plans.get(key)
    if plan is None:
        plan = SamplingPlan(name, shipped, setup)
        with _plans_lock:
            plan = _plans.setdefault(key, plan)
    return plan


def has_plan(name: str, shipped: Any, setup: SchedulerSetup) -> bool:
    """Return true if `get_plan` takes no time."""
    with _plans_lock:
        return _key(name, shipped, setup) in _plans


def _key(name: str, shipped: Any, setup: SchedulerSetup) -> Hashable:
    return name, f"{type(shipped).__name__} {sorted(shipped.config.items())}", str(setup)
