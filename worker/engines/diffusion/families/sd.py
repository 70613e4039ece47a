"""Stable Diffusion 1.x and 2.x, including inpainting and guidance-distilled UNets."""

from __future__ import annotations

import torch

from worker.engines.diffusion.families.base import UNetFamily


class StableDiffusion(UNetFamily):
    """One CLIP text encoder, a UNet and four latent channels."""

    CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")

    def encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        return {"embeddings": self.pipeline.encode_prompt(texts, self.device, 1, False)[0]}
