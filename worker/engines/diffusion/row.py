"""A request inside the engine: its sampler, what the denoiser is told of it, and the picture that it must keep."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wire.messages import ImageInputs
from worker.engine import TaskError
from worker.engines.diffusion.families.base import Conditions
from worker.engines.diffusion.lora.layers import Adapted
from worker.engines.diffusion.sampling import Sampler


@dataclass(frozen=True)
class Kept:
    """What a mask protects; tensors in the shape that the sampler works on."""

    #: Latents of the source picture.
    image: torch.Tensor
    #: The noise that the row started from.
    noise: torch.Tensor
    #: 1 where the picture is drawn anew, 0 where it stays.
    mask: torch.Tensor

    def under(self, protected: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
        """The one where the mask protects, the other where it does not."""
        return (1 - self.mask) * protected + self.mask * drawn


@dataclass(eq=False)
class DiffusionRow:
    """One picture on its way from noise.

    Tensors are replaced, never changed in place: whoever holds one keeps the state of that moment.
    """

    inputs: ImageInputs
    sampler: Sampler
    #: Each `(passes, ...)`; with guidance there are two passes, and the first one is for the negative prompt.
    conditions: Conditions
    #: `(evaluations,)` float32 on the model's device, so that no step waits for a copy.
    timesteps: torch.Tensor
    #: Guidance scale, float32, in a shape that multiplies the latents; None where a single pass is all.
    guidance: torch.Tensor | None
    #: With a mask: the picture under it.
    kept: Kept | None = None
    #: Adapters that its forward passes need, which stay in memory until it is released.
    adapted: Adapted = ()

    @property
    def step(self) -> int:
        """Forward passes so far."""
        return self.sampler.step

    @property
    def steps(self) -> int:
        """Forward passes in all."""
        return self.sampler.steps

    @property
    def latents(self) -> torch.Tensor:
        """The picture as it stands, in the shape that the sampler works on."""
        return self.sampler.latents

    @property
    def passes(self) -> int:
        """Rows of the forward pass that it takes."""
        return 1 if self.guidance is None else 2

    def keep(self) -> None:
        """After a step: put back what the mask protects, as noisy as the rest. A broken row has taken no step."""
        if self.kept is None or self.sampler.broken is not None:
            return
        try:
            protected = self.sampler.noised(self.kept.image, self.kept.noise, self.step)
            self.sampler.latents = self.kept.under(protected, self.latents)
        except Exception as error:  # the other rows have moved and must not be told otherwise
            self.sampler.broken = TaskError("error", f"the masked picture could not be kept: {error}")

    def picture(self) -> torch.Tensor:
        """The latents to show: on the way, the guess at the final ones, because the latents themselves are noisy."""
        guess = self.sampler.guess
        if self.step == self.steps or guess is None:
            return self.latents
        return guess if self.kept is None else self.kept.under(self.kept.image, guess)
