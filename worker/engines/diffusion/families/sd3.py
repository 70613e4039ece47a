"""Stable Diffusion 3 and 3.5: a transformer that flows straight from noise to picture, and three text encoders."""

from __future__ import annotations

import torch

from wire.messages import ImageInputs
from worker.engine import TaskError
from worker.engines.diffusion.families.base import Conditions, Family, with_channels
from worker.engines.diffusion.families.flow import timestep_shift
from worker.engines.diffusion.sampling import SchedulerSetup


class StableDiffusion3(Family):
    """Latents of sixteen channels, read in patches; the third text encoder, a T5, may be missing."""

    CLASSES = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")
    DENOISER = "transformer"

    @property
    def size_multiple(self) -> int:
        """The side of a patch."""
        return super().size_multiple * int(self.denoiser.config.patch_size)

    def validate(self, inputs: ImageInputs) -> None:
        """As every family; and the transformer knows the places of so many patches only."""
        super().validate(inputs)
        longest = self.size_multiple * int(self.denoiser.config.pos_embed_max_size)
        if max(inputs.width, inputs.height) > longest:
            raise TaskError("invalid", f"this model draws at most {longest} pixels in width and in height")

    def encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Tokens of two CLIPs, then of the T5 (zeros where it is missing), and the pooled embeddings of the CLIPs."""
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=texts, prompt_2=None, prompt_3=None, device=self.device, do_classifier_free_guidance=False
        )
        return {"embeddings": embeddings, "pooled": pooled}

    def scheduler_setup(self, inputs: ImageInputs) -> SchedulerSetup:
        """Shifted by the number of patches where the checkpoint has it so."""
        plain = super().scheduler_setup(inputs)
        if not self.scheduler.config.get("use_dynamic_shifting"):
            return plain
        patches = (inputs.height // self.size_multiple) * (inputs.width // self.size_multiple)
        return SchedulerSetup(
            plain.steps, plain.strength, {"mu": timestep_shift(self.scheduler, patches, max_shift=1.16)}
        )

    def denoise(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """As every family."""
        output: torch.Tensor = self.denoiser(
            hidden_states=with_channels(samples, conditions),
            timestep=timesteps,
            encoder_hidden_states=conditions["embeddings"],
            pooled_projections=conditions["pooled"],
            return_dict=False,
        )[0]
        return output
