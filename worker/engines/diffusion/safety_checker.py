"""The safety checker of checkpoints that ship one: looks at finished pictures and says which it objects to."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image


class SafetyChecker:
    """The model's own, on its device."""

    def __init__(self, pipeline: Any, device: torch.device) -> None:
        self._checker = pipeline.safety_checker
        self._extract = pipeline.feature_extractor
        self._device = device

    def is_unsafe(self, image: Image.Image) -> bool:
        """Whether it takes the picture for one that should not be shown."""
        pixel_values = self._extract(image, return_tensors="pt").pixel_values
        # It blackens the pictures that it is given: it gets a copy.
        _, found = self._checker(
            images=[np.asarray(image, dtype=np.float32)], clip_input=pixel_values.to(self._device, self._checker.dtype)
        )
        return bool(found[0])


def make_safety_checker(pipeline: Any, device: torch.device) -> SafetyChecker | None:
    """The pipeline's safety checker; None where it was not loaded or there is none."""
    if getattr(pipeline, "safety_checker", None) is None or pipeline.feature_extractor is None:
        return None
    return SafetyChecker(pipeline, device)
