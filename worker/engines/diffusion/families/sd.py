"""Stable Diffusion 1.x and 2.x, their inpainting UNets, and those distilled to take guidance as an input."""

from __future__ import annotations

import torch

from worker.engines.diffusion.families.base import UNetFamily


class StableDiffusion(UNetFamily):
    """One CLIP text encoder, a UNet, latents of four channels."""

    CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")

    def encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Tokens of a CLIP."""
        return {"embeddings": self.pipeline.encode_prompt(texts, self.device, 1, False)[0]}
