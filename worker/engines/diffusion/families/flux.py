"""FLUX.1 dev and schnell: a guidance-distilled transformer over a sequence of patches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from wire.inputs import ImageInputs
from worker.engine import TaskError
from worker.engines.diffusion.families.base import Conditions, Family
from worker.engines.diffusion.families.flow import timestep_shift
from worker.engines.diffusion.families.long_prompts import count_truncated
from worker.engines.diffusion.families.prompt_cache import Encoded
from worker.engines.diffusion.sampling import SchedulerSetup
from worker.engines.torch_device import to_device


class Flux(Family):
    """Samplers use packed latents `(1, patches, 4 C)`: one row per patch of two by two."""

    CLASSES = ("FluxPipeline", "FluxImg2ImgPipeline", "FluxInpaintPipeline")
    DENOISER = "transformer"

    @property
    def size_multiple(self) -> int:
        return super().size_multiple * 2

    def _denoiser_channels(self) -> int:
        return super()._denoiser_channels() // 4

    @property
    def max_tokens(self) -> int:
        """Prompt length in training: 512 for dev, 256 for schnell."""
        return 512 if self.denoiser.config.guidance_embeds else 256

    def validate(self, inputs: ImageInputs) -> None:
        """A negative prompt would have no effect and is rejected."""
        super().validate(inputs)
        if inputs.negative_prompt:
            raise TaskError("invalid", "this model does not support negative prompts")

    def is_guided(self, inputs: ImageInputs) -> bool:
        """Always false: dev reads the guidance scale as an input, and schnell ignores it."""
        del inputs
        return False

    def encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        embeddings, pooled, _ = self.pipeline.encode_prompt(
            prompt=texts, prompt_2=None, device=self.device, max_sequence_length=self.max_tokens
        )
        return {"embeddings": embeddings, "pooled": pooled}

    def truncated_tokens(self, inputs: ImageInputs) -> int:
        return count_truncated([(self.pipeline.tokenizer_2, self.max_tokens)], self.texts(inputs))

    def conditions(self, inputs: ImageInputs, encoded: Sequence[Encoded]) -> Conditions:
        conditions = super().conditions(inputs, encoded)
        ids = self.pipeline._prepare_latent_image_ids(
            1, inputs.height // self.size_multiple, inputs.width // self.size_multiple, "cpu", self.dtype
        )
        conditions["places"] = to_device(ids[None], self.device)
        if self.denoiser.config.guidance_embeds:
            conditions["guidance"] = torch.full((1,), inputs.guidance_scale, device=self.device)
        return conditions

    def scheduler_setup(self, inputs: ImageInputs) -> SchedulerSetup:
        """Use evenly spaced sigmas, shifted by the number of patches if configured."""
        plain = super().scheduler_setup(inputs)
        patches = (inputs.height // self.size_multiple) * (inputs.width // self.size_multiple)
        options = {
            "sigmas": np.linspace(1.0, 1 / inputs.steps, inputs.steps),
            "mu": timestep_shift(self.scheduler, patches, max_shift=1.15),
        }
        return SchedulerSetup(plain.steps, plain.strength, options)

    def pack(self, latents: torch.Tensor) -> torch.Tensor:
        _, channels, height, width = latents.shape
        pack: torch.Tensor = self.pipeline._pack_latents(latents, 1, channels, height, width)
        return pack

    def unpack(self, latents: torch.Tensor, inputs: ImageInputs) -> torch.Tensor:
        unpack: torch.Tensor = self.pipeline._unpack_latents(
            latents, inputs.height, inputs.width, self.pipeline.vae_scale_factor
        )
        return unpack

    def denoise(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        """FLUX's timesteps go from 1 to 0."""
        embeddings = conditions["embeddings"]
        output: torch.Tensor = self.denoiser(
            hidden_states=samples,
            timestep=timesteps.to(samples.dtype) / 1000,
            guidance=conditions.get("guidance"),
            pooled_projections=conditions["pooled"],
            encoder_hidden_states=embeddings,
            txt_ids=embeddings.new_zeros(embeddings.shape[1], 3),
            img_ids=conditions["places"][0],  # equal for all rows: one pass has one image size
            return_dict=False,
        )[0]
        return output
