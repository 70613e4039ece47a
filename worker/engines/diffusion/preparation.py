"""The part of an admission that runs beside the steps: texts, source images, the sampler's plan, adapter files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from worker.engine import EngineRequest
from worker.engines.diffusion.families.base import Family
from worker.engines.diffusion.start_latents import StartLatents, make_start_latents


@dataclass(frozen=True)
class PreparedImage:
    """The start of an image, and its random generator after the start."""

    start: StartLatents
    generator_state: torch.Tensor

    def generator(self) -> torch.Generator:
        """Return a generator for the image's later noise."""
        generator = torch.Generator("cpu")
        generator.set_state(self.generator_state)
        return generator

    def tensors(self) -> Iterator[torch.Tensor]:
        """Yield all tensors on the model's device."""
        mask = self.start.mask_state
        masked = (mask.image, mask.noise, mask.mask) if mask is not None else ()
        for tensor in (self.start.noise, self.start.image_latents, self.start.channels, *masked):
            if tensor is not None:
                yield tensor


def prepare_start(family: Family, request: EngineRequest) -> PreparedImage:
    """Draw the noise of an image and encode its sources. Raises `TaskError` for invalid sources."""
    # CPU noise: a seed gives the same noise on every device and in every batch.
    generator = torch.Generator("cpu").manual_seed(request.image.seed)
    start = make_start_latents(family, request.image, request.sources, generator)
    return PreparedImage(start, generator.get_state())
