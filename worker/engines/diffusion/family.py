"""What one family of checkpoints does in its own way: encode text, shape its noise, run the denoiser, decode.

Everything else, from sampling to guidance, is the same for all and lives in `rows` and `engine`.
"""

from __future__ import annotations

from typing import Any

import torch
from PIL import Image

from worker.engine import TaskError


class StableDiffusion:
    """Stable Diffusion 1.x and 2.x, text to image."""

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._pipeline = pipeline
        self._device = device

    @property
    def scheduler(self) -> Any:
        """The scheduler that the checkpoint ships: a pattern to build others from, never stepped."""
        return self._pipeline.scheduler

    @property
    def dtype(self) -> torch.dtype:
        """Of the latents and of everything that the denoiser reads, except the timesteps."""
        dtype: torch.dtype = self._pipeline.unet.dtype
        return dtype

    def encode(self, texts: list[str]) -> torch.Tensor:
        """Embeddings `(texts, tokens, width)`; what a text has past the encoder's length is cut off."""
        embeddings: torch.Tensor = self._pipeline.encode_prompt(texts, self._device, 1, False)[0]
        return embeddings

    def noise_shape(self, width: int, height: int) -> tuple[int, int, int, int]:
        """Shape of one picture's latents. Raises `TaskError` for a size that the autoencoder cannot make."""
        factor = self._pipeline.vae_scale_factor
        if width % factor or height % factor:
            raise TaskError("invalid", f"width and height must be multiples of {factor}, got {width}x{height}")
        return 1, self._pipeline.unet.config.in_channels, height // factor, width // factor

    def denoise(self, samples: torch.Tensor, timesteps: torch.Tensor, embeddings: torch.Tensor) -> torch.Tensor:
        """One forward pass: `(B, C, h, w)`, float32 `(B,)` and `(B, tokens, width)` to `(B, C, h, w)`."""
        output: torch.Tensor = self._pipeline.unet(
            samples, timesteps, encoder_hidden_states=embeddings, return_dict=False
        )[0]
        return output

    def decode(self, latents: torch.Tensor) -> Image.Image:
        """The picture of latents `(1, C, h, w)`. Raises `TaskError` if the autoencoder's output is not finite."""
        vae = self._pipeline.vae
        decoded = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        if not torch.isfinite(decoded).all():
            raise TaskError("error", f"no picture: the autoencoder's output is not finite in {vae.dtype}")
        picture: Image.Image = self._pipeline.image_processor.postprocess(decoded, output_type="pil")[0]
        return picture


#: Families by the pipeline class that a checkpoint names in its model_index.json.
FAMILIES: dict[str, type[StableDiffusion]] = {"StableDiffusionPipeline": StableDiffusion}
