"""Samplers by name: what a request may ask for as `scheduler`, and the diffusers class and options behind it.

The balancer checks names here without importing torch; a worker builds the object from the same row.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

#: Means "the one that the checkpoint ships".
MODEL_DEFAULT = "default"


class Sampler(NamedTuple):
    """A diffusers scheduler class and the options that make it this sampler."""

    cls: str
    options: Mapping[str, str | bool | int] = MappingProxyType({})


SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler("DDIMScheduler"),
    "ddpm": Sampler("DDPMScheduler"),
    "pndm": Sampler("PNDMScheduler"),
    "euler": Sampler("EulerDiscreteScheduler"),
    "euler_karras": Sampler("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
    "euler_ancestral": Sampler("EulerAncestralDiscreteScheduler"),
    "dpmpp_2m": Sampler("DPMSolverMultistepScheduler"),
    "dpmpp_2m_karras": Sampler("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
    "dpmpp_2m_sde": Sampler("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    "dpmpp_single": Sampler("DPMSolverSinglestepScheduler"),
    "unipc": Sampler("UniPCMultistepScheduler"),
    "deis": Sampler("DEISMultistepScheduler"),
    "heun": Sampler("HeunDiscreteScheduler"),
    "kdpm2": Sampler("KDPM2DiscreteScheduler"),
    "kdpm2_ancestral": Sampler("KDPM2AncestralDiscreteScheduler"),
    "lms": Sampler("LMSDiscreteScheduler"),
    "lcm": Sampler("LCMScheduler"),
    "tcd": Sampler("TCDScheduler"),
    "sasolver": Sampler("SASolverScheduler"),
    "ipndm": Sampler("IPNDMScheduler"),
}

_BY_CLASS = {sampler.cls.lower(): name for name, sampler in SAMPLERS.items() if not sampler.options}


def canonical(name: str) -> str | None:
    """The table's name for what a person wrote (`Euler`, `DDIMScheduler`, `dpmpp-2m`); None where there is none."""
    lowered = name.strip().lower().replace("-", "_").replace("++", "pp")
    if lowered == MODEL_DEFAULT or lowered in SAMPLERS:
        return lowered
    return _BY_CLASS.get(lowered)


def names() -> list[str]:
    """Every name that a request may use."""
    return [MODEL_DEFAULT, *SAMPLERS]
