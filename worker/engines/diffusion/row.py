"""`DiffusionRow`: the state of one image in the batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from wire.inputs import ImageInputs
from worker.device_errors import device_error_kind
from worker.engine import UnstreamedRow
from worker.engines.diffusion.families.base import Conditions
from worker.engines.diffusion.lora.layers import LoraScales
from worker.engines.diffusion.sampling import Sampler
from worker.engines.torch_device import row_error


@dataclass(frozen=True)
class MaskState:
    """The state of an inpainting mask; tensors have the shape of the sampler's latents."""

    #: Latents of the source image.
    image: torch.Tensor
    #: The noise that the row started from.
    noise: torch.Tensor
    #: 1 where the image is generated, 0 where it is protected.
    mask: torch.Tensor

    def blend(self, protected: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
        return (1 - self.mask) * protected + self.mask * generated


@dataclass(eq=False)
class DiffusionRow(UnstreamedRow):
    """One image in the batch.

    Tensors are replaced, never changed in place, so that a reference keeps its state.
    """

    inputs: ImageInputs
    sampler: Sampler
    #: Each tensor is `(passes, ...)`. With guidance, the first of two passes is for the negative prompt.
    conditions: Conditions
    #: `(evaluations,)` float32 on the model's device: a step needs no copy.
    timesteps: torch.Tensor
    #: float32 guidance scale that broadcasts over the latents; None for a single pass.
    guidance: torch.Tensor | None
    #: None for requests without a mask.
    mask_state: MaskState | None = None
    #: Adapters of its forward passes. They stay loaded until the row is released.
    lora_scales: LoraScales = ()
    #: Tokens at the ends of its texts that the encoders have not read.
    truncated_tokens: int = 0
    #: True from a step until the mask is applied to its latents.
    mask_is_due: bool = False

    @property
    def step(self) -> int:
        return self.sampler.step

    @property
    def steps(self) -> int:
        return self.sampler.steps

    @property
    def latents(self) -> torch.Tensor:
        return self.sampler.latents

    @property
    def passes(self) -> int:
        return 1 if self.guidance is None else 2

    def apply_mask(self) -> None:
        """Restore the protected area at the current noise level. A failed row has taken no step.

        Without memory for it, it stays due: the other rows have already moved, so this does not raise.
        """
        self.mask_is_due = self.mask_state is not None and self.sampler.failure is None
        try:
            self.apply_due_mask()
        except Exception as error:
            if device_error_kind(error) != "out_of_memory":
                # An error of earlier kernels shows at any later call: then no row is at fault.
                self.sampler.fail(row_error(error, "the mask could not be applied"))

    def apply_due_mask(self) -> None:
        """Restore the protected area if the last step could not. Raises torch's errors."""
        if self.mask_is_due and self.mask_state is not None:
            protected = self.sampler.noised_to_step(self.mask_state.image, self.mask_state.noise, self.step)
            self.sampler.latents = self.mask_state.blend(protected, self.latents)
            self.mask_is_due = False

    def latents_to_decode(self) -> torch.Tensor:
        """Return the final latents or, before the last step, the denoised estimate for a preview."""
        denoised = self.sampler.denoised
        if self.step == self.steps or denoised is None:
            return self.latents
        return denoised if self.mask_state is None else self.mask_state.blend(self.mask_state.image, denoised)
