"""Stable Diffusion 3 and 3.5: a flow-matching transformer with three text encoders."""

from __future__ import annotations

import torch

from wire.inputs import ImageInputs
from worker.engine import TaskError
from worker.engines.diffusion.families.base import Conditions, Family, with_channels
from worker.engines.diffusion.families.flow import timestep_shift
from worker.engines.diffusion.families.long_prompts import count_truncated
from worker.engines.diffusion.sampling import SchedulerSetup

#: Tokens that the encoders read in the pipeline.
_CLIP_TOKENS, _T5_TOKENS = 77, 256


class StableDiffusion3(Family):
    """Sixteen latent channels, read in patches. The third text encoder, a T5, is optional."""

    CLASSES = ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline", "StableDiffusion3InpaintPipeline")
    DENOISER = "transformer"

    @property
    def size_multiple(self) -> int:
        return super().size_multiple * int(self.denoiser.config.patch_size)

    def validate(self, inputs: ImageInputs) -> None:
        """The transformer has position embeddings for a limited number of patches."""
        super().validate(inputs)
        max_side = self.size_multiple * int(self.denoiser.config.pos_embed_max_size)
        if max(inputs.width, inputs.height) > max_side:
            raise TaskError("invalid", f"width and height must be at most {max_side} pixels for this model")

    def encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Encode with two CLIPs and the T5 (zeros if missing); the CLIPs also return pooled embeddings."""
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(
            prompt=texts, prompt_2=None, prompt_3=None, device=self.device, do_classifier_free_guidance=False
        )
        return {"embeddings": embeddings, "pooled": pooled}

    def truncated_tokens(self, inputs: ImageInputs) -> int:
        pipe = self.pipeline
        limits = [(pipe.tokenizer, _CLIP_TOKENS), (pipe.tokenizer_2, _CLIP_TOKENS)]
        if pipe.text_encoder_3 is not None:
            limits.append((pipe.tokenizer_3, _T5_TOKENS))
        return count_truncated(limits, self.texts(inputs))

    def scheduler_setup(self, inputs: ImageInputs) -> SchedulerSetup:
        """Shift the timesteps by the number of patches if configured."""
        plain = super().scheduler_setup(inputs)
        if not self.scheduler.config.get("use_dynamic_shifting"):
            return plain
        patches = (inputs.height // self.size_multiple) * (inputs.width // self.size_multiple)
        return SchedulerSetup(
            plain.steps, plain.strength, {"mu": timestep_shift(self.scheduler, patches, max_shift=1.16)}
        )

    def denoise(self, samples: torch.Tensor, timesteps: torch.Tensor, conditions: Conditions) -> torch.Tensor:
        output: torch.Tensor = self.denoiser(
            hidden_states=with_channels(samples, conditions),
            timestep=timesteps,
            encoder_hidden_states=conditions["embeddings"],
            pooled_projections=conditions["pooled"],
            return_dict=False,
        )[0]
        return output
