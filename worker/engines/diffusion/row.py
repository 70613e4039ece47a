"""A request inside the engine: its sampler, what the denoiser is told of it, and the picture that it must keep."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wire.messages import ImageInputs
from worker.engine import TaskError
from worker.engines.diffusion.families.base import Conditions
from worker.engines.diffusion.lora.layers import LoraScales
from worker.engines.diffusion.sampling import Sampler


@dataclass(frozen=True)
class MaskState:
    """What a mask protects; tensors in the shape that the sampler works on."""

    #: Latents of the source picture.
    image: torch.Tensor
    #: The noise that the row started from.
    noise: torch.Tensor
    #: 1 where the picture is drawn anew, 0 where it stays.
    mask: torch.Tensor

    def blend(self, protected: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
        """The one where the mask protects, the other where it does not."""
        return (1 - self.mask) * protected + self.mask * generated


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
    mask_state: MaskState | None = None
    #: Adapters that its forward passes need, which stay in memory until it is released.
    lora_scales: LoraScales = ()

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

    def apply_mask(self) -> None:
        """After a step: put back what the mask protects, as noisy as the rest. A broken row has taken no step."""
        if self.mask_state is None or self.sampler.failure is not None:
            return
        try:
            protected = self.sampler.noised_to_step(self.mask_state.image, self.mask_state.noise, self.step)
            self.sampler.latents = self.mask_state.blend(protected, self.latents)
        except Exception as error:  # the other rows have moved and must not be told otherwise
            self.sampler.failure = TaskError("error", f"the masked picture could not be kept: {error}")

    def latents_to_decode(self) -> torch.Tensor:
        """The latents to show: on the way, the guess at the final ones, because the latents themselves are noisy."""
        denoised = self.sampler.denoised
        if self.step == self.steps or denoised is None:
            return self.latents
        return denoised if self.mask_state is None else self.mask_state.blend(self.mask_state.image, denoised)
