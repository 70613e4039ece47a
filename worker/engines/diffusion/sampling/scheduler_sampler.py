"""`SchedulerSampler`: wraps a diffusers scheduler object; works with any scheduler, one row at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch

from worker.engines.diffusion.sampling.plan import SamplingPlan
from worker.engines.diffusion.sampling.sampler import Sampler
from worker.engines.diffusion.sampling.schedulers import denoised_of, step_options
from worker.engines.diffusion.sampling.state_codec import check_tensors
from worker.engines.torch_device import to_device


class SchedulerSampler(Sampler):
    """Owns a scheduler, whose attributes hold the history."""

    def __init__(self, plan: SamplingPlan, generator: torch.Generator) -> None:
        super().__init__(plan, generator)
        self._scheduler = plan.scheduler()
        self._latents = torch.empty(0)
        #: Latents, output and the scheduler's own denoised estimate, if any, of the last step.
        self._last: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None] | None = None

    @property
    def latents(self) -> torch.Tensor:
        return self._latents

    @latents.setter
    def latents(self, latents: torch.Tensor) -> None:
        self._latents = latents

    @property
    def denoised(self) -> torch.Tensor | None:
        if self._last is None:
            return None
        latents, output, own = self._last
        return self._guess_from(latents, output) if own is None else own

    def model_input(self) -> torch.Tensor:
        return _scaled(self._scheduler, self._latents, self.timesteps[self.step])

    def advance(self, output: torch.Tensor) -> None:
        """Step with the model's output. Raises the scheduler's error, without having moved."""
        timestep = self.timesteps[self.step]
        step_output = self._scheduler.step(
            output, timestep, self._latents, **step_options(self._scheduler, self._generator)
        )
        self._last = self._latents, output, denoised_of(step_output)
        self._latents = step_output.prev_sample
        self.step += 1

    def _state(self) -> torch.Tensor:
        return self._latents

    def _set_state(self, latents: torch.Tensor) -> None:
        self._latents, self._last = latents, None

    def _history_tensors(self) -> dict[str, torch.Tensor]:
        # Some schedulers modify their tensors in place.
        return {name: tensor.clone() for name, tensor, _ in _state_tensors(self._scheduler)}

    def _restore_history(self, tensors: Mapping[str, torch.Tensor], step: int, device: torch.device) -> None:
        """Rebuild image-independent state by a run on zeros; the blob only provides image tensors."""
        scheduler = self._plan.scheduler()
        nothing = torch.zeros([1] * self._latents.ndim, dtype=self.dtype)
        options = step_options(scheduler, torch.Generator())
        for timestep in self.timesteps[:step]:
            _scaled(scheduler, nothing, timestep)
            scheduler.step(nothing, timestep, nothing, **options)
        held = list(_state_tensors(scheduler))
        check_tensors(tensors, {name: (self._latents.shape, tensor.dtype) for name, tensor, _ in held})
        for name, _, replace in held:
            replace(to_device(tensors[name], device))
        self._scheduler = scheduler


def _scaled(scheduler: Any, latents: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    if not hasattr(scheduler, "scale_model_input"):
        return latents
    scaled: torch.Tensor = scheduler.scale_model_input(latents, timestep)
    return scaled


def _state_tensors(scheduler: Any) -> Iterator[tuple[str, torch.Tensor, Callable[[torch.Tensor], None]]]:
    """Yield the scheduler's image tensors: name, tensor and setter."""
    for name, value in vars(scheduler).items():
        if isinstance(value, torch.Tensor) and value.ndim > 1:
            yield name, value, partial(setattr, scheduler, name)
        elif isinstance(value, list):
            for place, item in enumerate(value):
                if isinstance(item, torch.Tensor) and item.ndim > 1:
                    yield f"{name}.{place}", item, partial(value.__setitem__, place)
