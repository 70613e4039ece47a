"""From the name of a sampler to one that is ready to run: the way in for everything that draws step by step."""

from __future__ import annotations

from typing import Any

import torch

from worker.engine import TaskError
from worker.engines.diffusion.sampling.plan import get_plan
from worker.engines.diffusion.sampling.sampler import RecurrenceSampler, Sampler
from worker.engines.diffusion.sampling.scheduler_sampler import SchedulerSampler
from worker.engines.diffusion.sampling.schedulers import SchedulerSetup

__all__ = ["Sampler", "SchedulerSetup", "start_sampler"]


def start_sampler(name: str, shipped: Any, setup: SchedulerSetup, generator: torch.Generator) -> Sampler:
    """The sampler that a request names, set up like the checkpoint's own scheduler `shipped`, which is not changed.

    `generator` is of the CPU and belongs to the sampler from now on: noise of later steps is drawn from it.
    Raises `TaskError` where this checkpoint, these steps or this strength do not go with it.
    """
    try:
        plan = get_plan(name, shipped, setup)
    except TaskError:
        raise
    except Exception as error:  # whatever a scheduler trips over, it was this request's name and steps
        raise TaskError("invalid", f"scheduler '{name}' cannot do {setup.steps} steps: {error}") from error
    return SchedulerSampler(plan, generator) if plan.recurrence is None else RecurrenceSampler(plan, generator)
