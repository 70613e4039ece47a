"""The supported checkpoint families, by diffusers pipeline class."""

from __future__ import annotations

from worker.engines.diffusion.families.base import Family
from worker.engines.diffusion.families.flux import Flux
from worker.engines.diffusion.families.sd import StableDiffusion
from worker.engines.diffusion.families.sd3 import StableDiffusion3
from worker.engines.diffusion.families.sdxl import StableDiffusionXL

FAMILIES: dict[str, type[Family]] = {
    name: family for family in (StableDiffusion, StableDiffusionXL, StableDiffusion3, Flux) for name in family.CLASSES
}
