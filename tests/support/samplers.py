"""Shared fixtures of sampler tests: shipped schedulers and a model without weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch

from configs.samplers import Process, sampler_names
from worker.engines.diffusion.sampling.batched_step import advance
from worker.engines.diffusion.sampling.plan import get_plan
from worker.engines.diffusion.sampling.sampler import RecurrenceSampler, Sampler
from worker.engines.diffusion.sampling.scheduler_sampler import SchedulerSampler
from worker.engines.diffusion.sampling.schedulers import SchedulerSetup

SHAPE = (1, 4, 4, 6)


def shipped(process: Process = "noise", **config: Any) -> Any:
    """Return the scheduler that Stable Diffusion 1.x, Stable Diffusion 3 or an EDM checkpoint ships."""
    if process == "flow":
        return diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, **config)
    if process == "edm":
        return diffusers.EDMDPMSolverMultistepScheduler(**config)
    return diffusers.PNDMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        skip_prk_steps=True,
        set_alpha_to_one=False,
        steps_offset=1,
        **config,
    )


CHECKPOINTS: list[tuple[Process, dict[str, Any]]] = [
    ("noise", {}),
    ("noise", {"prediction_type": "v_prediction"}),
    ("flow", {}),
    ("edm", {}),
]
#: Every sampler on every process that it supports, by name and shipped scheduler. Other sigma schedules are tested for
#: one prediction type only.
EVERY = [
    pytest.param(name, shipped(process, **config), id="-".join([name, process, *map(str, config.values())]))
    for process, config in CHECKPOINTS
    for name in sampler_names(process)
    if not config or not name.endswith(("_karras", "_exponential", "_beta"))
]

#: One sampler of each kind: one-step, multistep, with noise, and with two evaluations per step.
SOME = ["default", "ddim", "ddpm", "euler_ancestral", "dpmpp_3m", "unipc", "heun", "kdpm2_ancestral", "lms", "sasolver"]

#: Creates a sampler of one of the two classes.
Make = Callable[[str, Any, SchedulerSetup, torch.Generator], Sampler]


def by_recurrence(name: str, like: Any, schedule: SchedulerSetup, generator: torch.Generator) -> RecurrenceSampler:
    return RecurrenceSampler(get_plan(name, like, schedule), generator)


def by_scheduler(name: str, like: Any, schedule: SchedulerSetup, generator: torch.Generator) -> SchedulerSampler:
    return SchedulerSampler(get_plan(name, like, schedule), generator)


both = pytest.mark.parametrize("make", [by_recurrence, by_scheduler])


def random_tensor(seed: int, shape: tuple[int, ...] = SHAPE, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def started_sampler(make: Make, name: str, like: Any, steps: int = 8, seed: int = 0, **schedule: Any) -> Sampler:
    """Return a sampler that started from the noise of its seed."""
    generator = torch.Generator().manual_seed(seed)
    sampler = make(name, like, SchedulerSetup(steps, **schedule), generator)
    sampler.start(torch.randn(SHAPE, generator=generator))
    return sampler


def model(recorded: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
    """A smooth, nonlinear model whose output depends on the timestep."""
    return torch.sin(0.5 * recorded + float(timestep) / 300) + 0.1 * recorded


#: Maps model input and timestep to the model's output.
Model = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def step(*samplers: Sampler, reproducible: bool = False, by: Model = model) -> None:
    """Run one forward pass and one step of all samplers."""
    outputs = [by(sampler.model_input(), sampler.timesteps[sampler.step]) for sampler in samplers]
    advance(samplers, outputs, reproducible)


def run_to_end(sampler: Sampler, by: Model = model) -> list[torch.Tensor]:
    """Return the latents after each remaining step."""
    recorded = []
    while sampler.step < sampler.steps:
        step(sampler, by=by)
        assert sampler.failure is None, sampler.failure
        recorded.append(sampler.latents)
    return recorded


def pipeline_latents(scheduler: Any, timesteps: torch.Tensor, latents: torch.Tensor, seed: int) -> list[torch.Tensor]:
    """Return the latents after each step of diffusers' pipeline loop, with the noise of `started_sampler`."""
    generator = torch.Generator().manual_seed(seed)
    torch.randn(SHAPE, generator=generator)
    known = inspect.signature(scheduler.step).parameters
    options = {key: value for key, value in {"generator": generator, "eta": 0.0}.items() if key in known}
    recorded = []
    for timestep in timesteps:
        scaled = latents
        if hasattr(scheduler, "scale_model_input"):
            scaled = scheduler.scale_model_input(latents, timestep)
        latents = scheduler.step(model(scaled, timestep), timestep, latents, **options, return_dict=False)[0]
        recorded.append(latents)
    return recorded
