"""Images of diffusers' own pipelines for the built-in model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from configs.samplers import SAMPLERS


class DigitsPipeline:
    """The built-in model, one request at a time and on one core. Images are arrays of height, width and RGB."""

    def __init__(self, folder: Path) -> None:
        torch.set_num_threads(1)
        self._pipeline = diffusers.StableDiffusionPipeline.from_pretrained(
            folder, torch_dtype=torch.float32, safety_checker=None
        )
        self._pipeline.set_progress_bar_config(disable=True)
        self._shipped = diffusers.DDIMScheduler.from_pretrained(folder, subfolder="scheduler")

    def image(self, asked: dict[str, Any]) -> NDArray[np.int16]:
        """Return the image of this request: its size, prompts, steps, guidance, seed and sampler."""
        width, height = map(int, asked["size"].split("x"))
        sampler = SAMPLERS[asked["scheduler"]]
        self._pipeline.scheduler = getattr(diffusers, sampler.cls).from_config(self._shipped.config, **sampler.options)
        generated = self._pipeline(
            asked["prompt"],
            negative_prompt=asked["negative_prompt"],
            num_inference_steps=asked["num_inference_steps"],
            guidance_scale=asked["guidance_scale"],
            generator=torch.Generator("cpu").manual_seed(asked["seed"]),
            width=width,
            height=height,
            output_type="pil",
        )
        return np.asarray(generated.images[0]).astype(np.int16)

    def generated(
        self,
        mode: str,
        seed: int,
        steps: int,
        image: Image.Image | None = None,
        mask: Image.Image | None = None,
        strength: float = 1.0,
    ) -> NDArray[np.int16]:
        """Return the image of "a red seven": from text, from an image, or in the mask of an image."""
        parts = {name: part for name, part in self._pipeline.components.items() if name != "scheduler"}
        scheduler = diffusers.DDIMScheduler.from_config(self._shipped.config)
        classes: dict[str, type[Any]] = {
            "text": diffusers.StableDiffusionPipeline,
            "image": diffusers.StableDiffusionImg2ImgPipeline,
            "inpaint": diffusers.StableDiffusionInpaintPipeline,
        }
        pipeline = classes[mode](**parts, scheduler=scheduler, requires_safety_checker=False)
        pipeline.set_progress_bar_config(disable=True)
        options: dict[str, Any] = {} if mode == "image" else {"width": 64, "height": 64}
        options |= {} if image is None else {"image": image, "strength": strength}
        options |= {} if mask is None else {"mask_image": mask}
        generated = pipeline(
            "a red seven",
            num_inference_steps=steps,
            guidance_scale=3.0,
            generator=torch.Generator("cpu").manual_seed(seed),
            **options,
        )
        return np.asarray(generated.images[0]).astype(np.int16)
