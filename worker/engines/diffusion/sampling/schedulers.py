"""diffusers schedulers for one request: created by name and set to the request's steps.

Schedules stay on the CPU. diffusers reads single numbers from them at every step, which would synchronize a GPU. A CPU
number multiplies a GPU tensor without waiting.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch

from configs.samplers import MODEL_DEFAULT, SAMPLERS, Process, sampler_names
from worker.engine import TaskError

#: These take a flow's `sigmas` as its pipelines pass them; the others compute the same ones.
_TAKES_SIGMAS = ("FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler")


@dataclass(frozen=True)
class SchedulerSetup:
    """The steps of a request."""

    steps: int
    #: Below 1, the first part of the schedule is skipped, as in image-to-image pipelines.
    strength: float = 1.0
    #: Keyword arguments of `set_timesteps` from the checkpoint's family (`mu`, `sigmas`).
    options: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        description = {
            name: getattr(value, "tolist", lambda value=value: value)() for name, value in self.options.items()
        }
        return f"steps={self.steps} strength={self.strength} {sorted(description.items())}"


def process_of(scheduler: Any) -> Process:
    """Return the diffusion process that a checkpoint with this scheduler was trained on."""
    name, config = type(scheduler).__name__, scheduler.config
    if name.startswith("EDM"):
        return "edm"
    flow = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    return "flow" if flow or name.startswith(("Flow", "LTXEuler")) else "noise"


def scheduler_like(name: str, shipped: Any, mu: float | None = None) -> Any:
    """Return the named scheduler, configured like the checkpoint's own.

    `mu` is the timestep shift for the image size, for checkpoints with dynamic shifting. Raises `TaskError` for an
    incompatible name, and the scheduler's own errors.
    """
    if name == MODEL_DEFAULT:
        return type(shipped).from_config(shipped.config)
    sampler, process = SAMPLERS[name], process_of(shipped)
    if process not in sampler.processes:
        raise TaskError(
            "invalid",
            f"scheduler '{name}' cannot be used with this model; allowed: {', '.join(sampler_names(process))}",
        )
    cls = getattr(diffusers, sampler.cls)
    known = inspect.signature(cls.__init__).parameters
    predicts = shipped.config.get("prediction_type", "epsilon")
    if process == "noise" and predicts != "epsilon" and "prediction_type" not in known:
        raise TaskError(
            "invalid",
            f"scheduler '{name}' cannot be used with this model: it does not support prediction type '{predicts}'",
        )
    options = dict(sampler.options)
    if "clip_sample" in known and "clip_sample" not in shipped.config:
        options["clip_sample"] = False  # the default clips to [-1, 1], which would damage latents
    if process == "flow":
        options |= _flow_options(sampler.cls, known, shipped.config, mu)
    return cls.from_config(shipped.config, **options)


def configure_scheduler(scheduler: Any, setup: SchedulerSetup) -> int:
    """Set the scheduler's steps and return the index of the first timestep.

    Raises `TaskError` if no step is left, and the scheduler's own errors.
    """
    accepted = inspect.signature(scheduler.set_timesteps).parameters
    options = {name: value for name, value in setup.options.items() if name in accepted}
    if not scheduler.config.get("use_dynamic_shifting"):
        options.pop("mu", None)
    if type(scheduler).__name__ not in _TAKES_SIGMAS:
        options.pop("sigmas", None)
    count = {} if "sigmas" in options else {"num_inference_steps": setup.steps}
    scheduler.set_timesteps(**count, device="cpu", **options)
    skipped = _skipped_steps(setup, process_of(scheduler))
    if skipped >= setup.steps:
        raise TaskError("invalid", f"strength {setup.strength:g} leaves none of {setup.steps} steps")
    start_index = skipped * int(getattr(scheduler, "order", 1))
    if hasattr(scheduler, "set_begin_index"):
        # Otherwise the scheduler searches its position by value, which is slow and can be ambiguous.
        scheduler.set_begin_index(start_index)
    return start_index


def step_options(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    accepted = inspect.signature(scheduler.step).parameters
    offered = {"generator": generator, "eta": 0.0}
    return {name: value for name, value in offered.items() if name in accepted}


def denoised_of(step_output: Any) -> torch.Tensor | None:
    """Return the denoised estimate in a `step` result, if any."""
    denoised: torch.Tensor | None = step_output.get("pred_original_sample", step_output.get("denoised"))
    return denoised


def _flow_options(cls: str, known: Mapping[str, Any], config: Mapping[str, Any], mu: float | None) -> dict[str, Any]:
    shift = config.get("shift", config.get("flow_shift", 1.0))
    if "use_flow_sigmas" in known:
        own: dict[str, Any] = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
        name = "flow_shift"
    elif config.get("use_dynamic_shifting") and cls != "FlowMatchHeunDiscreteScheduler":
        return {}
    else:
        own, name = {}, "shift"
    if config.get("use_dynamic_shifting"):
        if mu is None:
            raise TaskError("error", "the model's timesteps depend on the image size, which is unknown")
        shift = mu if config.get("time_shift_type") == "linear" else math.exp(mu)
    return own | {name: shift, "use_dynamic_shifting": False}


def _skipped_steps(setup: SchedulerSetup, process: Process) -> int:
    """Return the number of steps that the strength skips, rounded as in the checkpoint's pipelines."""
    remaining = setup.steps * setup.strength
    if process != "flow":
        remaining = int(remaining)
    return int(max(setup.steps - remaining, 0))
