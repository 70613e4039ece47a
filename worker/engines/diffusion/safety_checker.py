"""The safety checker that some checkpoints ship; it checks finished images."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image


class SafetyChecker:
    """The checkpoint's safety checker on its device."""

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._checker = pipeline.safety_checker
        self._extract = pipeline.feature_extractor
        self._device = device

    def is_unsafe(self, image: Image.Image) -> bool:
        pixel_values = self._extract(image, return_tensors="pt").pixel_values
        # The checker blackens its input images: pass a copy.
        _, found = self._checker(
            images=[np.asarray(image, dtype=np.float32)], clip_input=pixel_values.to(self._device, self._checker.dtype)
        )
        return bool(found[0])


def make_safety_checker(pipeline: Any, device: torch.device) -> SafetyChecker | None:
    if getattr(pipeline, "safety_checker", None) is None or pipeline.feature_extractor is None:
        return None
    return SafetyChecker(pipeline, device)
