"""Stable Diffusion 1.x and 2.x, including inpainting and guidance-distilled UNets."""

from __future__ import annotations

import torch

from wire.inputs import ImageInputs
from worker.engines.diffusion.families.base import UNetFamily
from worker.engines.diffusion.families.long_prompts import count_windows, encode_windows, join_windows, window_ids


class StableDiffusion(UNetFamily):
    """One CLIP text encoder, a UNet and four latent channels."""

    CLASSES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")

    def windows(self, inputs: ImageInputs) -> int:
        return count_windows([self.pipeline.tokenizer], self.texts(inputs))

    def encode_windows(self, texts: list[str], windows: int) -> dict[str, torch.Tensor]:
        if windows == 1:
            return self.encode(texts)
        ids = window_ids(self.pipeline.tokenizer, texts, windows)
        hidden = encode_windows(self.pipeline.text_encoder, ids, self.device)[0]
        return {"embeddings": join_windows(hidden, windows).to(self.dtype)}

    def encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        return {"embeddings": self.pipeline.encode_prompt(texts, self.device, 1, False)[0]}
