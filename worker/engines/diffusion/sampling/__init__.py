"""Samplers by name, with the settings of a checkpoint's own scheduler."""

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
    """Return the named sampler, configured like the checkpoint's scheduler `shipped`, which is not changed.

    The sampler owns `generator`, a CPU generator, and draws later noise from it. Raises `TaskError` if the name, the
    steps or the strength do not fit this checkpoint.
    """
    try:
        plan = get_plan(name, shipped, setup)
    except TaskError:
        raise
    except Exception as error:  # any error is due to the requested name and steps
        raise TaskError("invalid", f"scheduler '{name}' does not support {setup.steps} steps: {error}") from error
    return SchedulerSampler(plan, generator) if plan.recurrence is None else RecurrenceSampler(plan, generator)
