"""The samplers by name (`scheduler` of a request), each with its diffusers class and options.

The balancer checks names here without importing torch. A worker builds the object from the same entry. Samplers that
miss the exact result in tests are left out: iPNDM and third-order stochastic DPM++ for noise prediction, DEIS and SA
for flows.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal, NamedTuple

#: The checkpoint's own sampler.
MODEL_DEFAULT = "default"

#: The forward process of a checkpoint, which decides which samplers can be used: noise of growing variance (Stable
#: Diffusion), rectified flow (Stable Diffusion 3, FLUX), or noise as in the EDM paper.
Process = Literal["noise", "flow", "edm"]


Options = dict[str, str | bool | int]


class Sampler(NamedTuple):
    """A diffusers scheduler class with its options, and the forward processes that it supports."""

    cls: str
    options: Mapping[str, str | bool | int] = MappingProxyType({})
    processes: tuple[Process, ...] = ("noise",)


_KARRAS: Options = {"use_karras_sigmas": True}
_EXPONENTIAL: Options = {"use_exponential_sigmas": True}
_BETA: Options = {"use_beta_sigmas": True}
_SDE: Options = {"algorithm_type": "sde-dpmsolver++"}
_THIRD: Options = {"solver_order": 3}
_BOTH: tuple[Process, ...] = ("noise", "flow")

SAMPLERS: dict[str, Sampler] = {
    "ddim": Sampler("DDIMScheduler"),
    "ddpm": Sampler("DDPMScheduler"),
    "pndm": Sampler("PNDMScheduler"),
    "euler": Sampler("EulerDiscreteScheduler"),
    "euler_karras": Sampler("EulerDiscreteScheduler", _KARRAS),
    "euler_exponential": Sampler("EulerDiscreteScheduler", _EXPONENTIAL),
    "euler_beta": Sampler("EulerDiscreteScheduler", _BETA),
    "euler_ancestral": Sampler("EulerAncestralDiscreteScheduler"),
    "dpmpp_2m": Sampler("DPMSolverMultistepScheduler", processes=_BOTH),
    "dpmpp_2m_karras": Sampler("DPMSolverMultistepScheduler", _KARRAS),
    "dpmpp_2m_exponential": Sampler("DPMSolverMultistepScheduler", _EXPONENTIAL),
    "dpmpp_2m_sde": Sampler("DPMSolverMultistepScheduler", _SDE, _BOTH),
    "dpmpp_2m_sde_karras": Sampler("DPMSolverMultistepScheduler", _SDE | _KARRAS),
    "dpmpp_2m_sde_exponential": Sampler("DPMSolverMultistepScheduler", _SDE | _EXPONENTIAL),
    "dpmpp_3m": Sampler("DPMSolverMultistepScheduler", _THIRD, _BOTH),
    "dpmpp_3m_karras": Sampler("DPMSolverMultistepScheduler", _THIRD | _KARRAS),
    "dpmpp_single": Sampler("DPMSolverSinglestepScheduler", processes=_BOTH),
    "dpmpp_single_karras": Sampler("DPMSolverSinglestepScheduler", _KARRAS),
    "unipc": Sampler("UniPCMultistepScheduler", processes=_BOTH),
    "unipc_karras": Sampler("UniPCMultistepScheduler", _KARRAS),
    "deis": Sampler("DEISMultistepScheduler"),
    "deis_karras": Sampler("DEISMultistepScheduler", _KARRAS),
    "heun": Sampler("HeunDiscreteScheduler"),
    "heun_karras": Sampler("HeunDiscreteScheduler", _KARRAS),
    "kdpm2": Sampler("KDPM2DiscreteScheduler"),
    "kdpm2_karras": Sampler("KDPM2DiscreteScheduler", _KARRAS),
    "kdpm2_ancestral": Sampler("KDPM2AncestralDiscreteScheduler"),
    "kdpm2_ancestral_karras": Sampler("KDPM2AncestralDiscreteScheduler", _KARRAS),
    "lms": Sampler("LMSDiscreteScheduler"),
    "lms_karras": Sampler("LMSDiscreteScheduler", _KARRAS),
    "lcm": Sampler("LCMScheduler"),
    "tcd": Sampler("TCDScheduler"),
    "sasolver": Sampler("SASolverScheduler"),
    "flow_match_euler": Sampler("FlowMatchEulerDiscreteScheduler", processes=("flow",)),
    "flow_match_euler_karras": Sampler("FlowMatchEulerDiscreteScheduler", _KARRAS, ("flow",)),
    "flow_match_euler_exponential": Sampler("FlowMatchEulerDiscreteScheduler", _EXPONENTIAL, ("flow",)),
    "flow_match_euler_beta": Sampler("FlowMatchEulerDiscreteScheduler", _BETA, ("flow",)),
    "flow_match_euler_ancestral": Sampler("LTXEulerAncestralRFScheduler", processes=("flow",)),
    "flow_match_heun": Sampler("FlowMatchHeunDiscreteScheduler", processes=("flow",)),
    "flow_match_lcm": Sampler("FlowMatchLCMScheduler", processes=("flow",)),
    "edm_euler": Sampler("EDMEulerScheduler", processes=("edm",)),
    "edm_dpmpp_2m": Sampler("EDMDPMSolverMultistepScheduler", processes=("edm",)),
}

_BY_CLASS = {sampler.cls.lower(): name for name, sampler in SAMPLERS.items() if not sampler.options}
#: Names of the same samplers in other programs.
_ALIASES = {
    "euler_a": "euler_ancestral",
    "dpm_2": "kdpm2",
    "dpm_2_ancestral": "kdpm2_ancestral",
    "uni_pc": "unipc",
    "sa_solver": "sasolver",
}


def canonical_sampler(name: str) -> str | None:
    """Return the name for a spelling such as `Euler`, `DDIMScheduler`, `DPM++ 2M Karras`; None if unknown."""
    lowered = "_".join(name.lower().replace("++", "pp").replace("-", " ").split())
    if lowered == MODEL_DEFAULT or lowered in SAMPLERS:
        return lowered
    return _ALIASES.get(lowered) or _BY_CLASS.get(lowered)


def sampler_names(process: Process | None = None) -> list[str]:
    """Return the names that a request may use: all, or those for one forward process."""
    return [MODEL_DEFAULT, *(name for name, row in SAMPLERS.items() if process is None or process in row.processes)]
