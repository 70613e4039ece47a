"""FLUX.1 dev and schnell: a transformer over a sequence of patches, which was taught guidance and takes no negative."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from wire.messages import ImageInputs
from worker.engine import TaskError
from worker.engines.diffusion.device import moved
from worker.engines.diffusion.families.base import Conditions, Family
from worker.engines.diffusion.families.flow import shift
from worker.engines.diffusion.families.prompt_cache import Encoded
from worker.engines.diffusion.sampling import Schedule


class Flux(Family):
    """Samplers work on packed latents `(1, patches, 4 C)`: patches of two by two, a row for each."""

    CLASSES = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
    DENOISER = "transformer"

    @property
    def multiple(self) -> int:
        """Two latents, the side of a patch."""
        return super().multiple * 2

    def _denoiser_channels(self) -> int:
        return super()._denoiser_channels() // 4

    @property
    def max_tokens(self) -> int:
        """Length that prompts are encoded to, as each was trained: 512 for dev, 256 for schnell."""
        return 512 if self.denoiser.config.guidance_embeds else 256

    def check(self, inputs: ImageInputs) -> None:
        """As every family; and a negative prompt would have no effect."""
        super().check(inputs)
        if inputs.negative_prompt:
            raise TaskError("invalid", "this model takes no negative prompt")

    def guided(self, inputs: ImageInputs) -> bool:
        """Never: the guidance scale is an input of dev, and nothing to schnell."""
        del inputs
        return False

    def encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Tokens of a T5, and the pooled embedding of a CLIP."""
        embeddings, pooled, _ = self.pipeline.encode_prompt(
            prompt=texts, prompt_2=None, device=self.device, max_sequence_length=self.max_tokens
        )
        return {"embeddings": embeddings, "pooled": pooled}

    def conditions(self, inputs: ImageInputs, encoded: Sequence[Encoded]) -> Conditions:
        """With the place of every patch, and for dev the guidance scale."""
        told = super().conditions(inputs, encoded)
        ids = self.pipeline._prepare_latent_image_ids(
            1, inputs.height // self.multiple, inputs.width // self.multiple, "cpu", self.dtype
        )
        told["places"] = moved(ids[None], self.device)
        if self.denoiser.config.guidance_embeds:
            told["guidance"] = torch.full((1,), inputs.guidance_scale, device=self.device)
        return told

    def schedule(self, inputs: ImageInputs) -> Schedule:
        """Evenly spaced steps, shifted by the number of patches where the checkpoint has it so."""
        plain = super().schedule(inputs)
        patches = (inputs.height // self.multiple) * (inputs.width // self.multiple)
        options = {
            "sigmas": np.linspace(1.0, 1 / inputs.steps, inputs.steps),
            "mu": shift(self.scheduler, patches, max_shift=1.15),
        }
        return Schedule(plain.steps, plain.strength, options)

    def packed(self, latents: torch.Tensor) -> torch.Tensor:
        """Patches of two by two, a row for each."""
        _, channels, height, width = latents.shape
        packed: torch.Tensor = self.pipeline._pack_latents(latents, 1, channels, height, width)
        return packed

    def unpacked(self, latents: torch.Tensor, inputs: ImageInputs) -> torch.Tensor:
        """The patches where they belong."""
        unpacked: torch.Tensor = self.pipeline._unpack_latents(
            latents, inputs.height, inputs.width, self.pipeline.vae_scale_factor
        )
        return unpacked

    def denoise(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """As every family; time goes from 1 to 0."""
        embeddings = conditions["embeddings"]
        output: torch.Tensor = self.denoiser(
            hidden_states=samples,
            timestep=timesteps.to(samples.dtype) / 1000,
            guidance=conditions.get("guidance"),
            pooled_projections=conditions["pooled"],
            encoder_hidden_states=embeddings,
            txt_ids=embeddings.new_zeros(embeddings.shape[1], 3),
            img_ids=conditions["places"][0],  # equal for all: pictures of one size share a pass
            return_dict=False,
        )[0]
        return output
