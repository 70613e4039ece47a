"""Stable Diffusion XL: two text encoders, with a pooled embedding and the image size as conditions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from wire.inputs import ImageInputs
from worker.engine import UnsupportedModel
from worker.engines.diffusion.families.base import Conditions, UNetFamily
from worker.engines.diffusion.families.long_prompts import count_windows, encode_windows, join_windows, window_ids
from worker.engines.diffusion.families.prompt_cache import Encoded
from worker.engines.torch_device import to_device


class StableDiffusionXL(UNetFamily):
    """The base model and its inpainting UNet. Refiners are not supported."""

    CLASSES = ("StableDiffusionXLPipeline", "StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLInpaintPipeline")

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        super().__init__(pipeline, device)
        if pipeline.text_encoder is None or pipeline.text_encoder_2 is None:
            raise UnsupportedModel("it lacks a text encoder; SDXL refiners are not supported, only base models")
        if self.dtype == torch.float16 and self.vae.config.force_upcast:
            self.vae.to(torch.float32)  # it overflows in half precision

    def windows(self, inputs: ImageInputs) -> int:
        return count_windows([self.pipeline.tokenizer, self.pipeline.tokenizer_2], self.texts(inputs))

    def encode_windows(self, texts: list[str], windows: int) -> dict[str, torch.Tensor]:
        """Encode window by window. The pooled embedding is that of the first one."""
        if windows == 1:
            return self.encode(texts)
        pipe, hidden = self.pipeline, []
        for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
            output = encode_windows(encoder, window_ids(tokenizer, texts, windows), self.device)
            hidden.append(join_windows(output.hidden_states[-2], windows))
        pooled = output[0].reshape(len(texts), windows, -1)[:, 0]
        return {"embeddings": torch.cat(hidden, -1).to(self.dtype), "text_embeds": pooled.to(self.dtype)}

    def encode(self, texts: list[str]) -> dict[str, torch.Tensor]:
        """Encode with two CLIPs side by side; the second returns the pooled embedding."""
        embeddings, _, pooled, _ = self.pipeline.encode_prompt(
            texts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"embeddings": embeddings, "text_embeds": pooled}

    def conditions(self, inputs: ImageInputs, encoded: Sequence[Encoded]) -> Conditions:
        if self.is_guided(inputs) and not inputs.negative_prompt and self.pipeline.config.force_zeros_for_empty_prompt:
            # The base model was trained with zeros for "no text", which differ from an encoded empty text.
            encoded = [{name: torch.zeros_like(value) for name, value in encoded[0].items()}, encoded[1]]
        conditions = super().conditions(inputs, encoded)
        size = inputs.height, inputs.width  # original size, crop offset, target size
        ids = torch.tensor([[*size, 0, 0, *size]] * len(encoded), dtype=self.dtype)
        conditions["time_ids"] = to_device(ids, self.device)
        return conditions

    def _added_conditions(self, conditions: Conditions) -> dict[str, torch.Tensor]:
        return {"text_embeds": conditions["text_embeds"], "time_ids": conditions["time_ids"]}
