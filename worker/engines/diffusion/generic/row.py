"""`GenericRow`: the state of one image in the generic engine."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers.utils.pil_utils import numpy_to_pil
from PIL import Image

from wire.inputs import ImageInputs
from worker.engine import TaskError, UnstreamedRow
from worker.engines.diffusion.generic.pipeline_thread import PipelineThread
from worker.engines.diffusion.generic.progress import SamplerProgress


@dataclass(frozen=True)
class PipelineImage:
    """The pipeline's result. `flagged`: a safety checker flagged it."""

    #: `(H, W, channels)` in [0, 1], unless the pipeline only returns PIL images.
    pixels: npt.NDArray[np.floating[Any]] | Image.Image
    flagged: bool = False

    def to_pil(self) -> Image.Image:
        if isinstance(self.pixels, Image.Image):
            return self.pixels.convert("RGB")
        [pil] = numpy_to_pil(self.pixels)
        image: Image.Image = pil.convert("RGB")
        return image


class GenericRow(UnstreamedRow):
    """One image. A step is one denoiser call; their total is an estimate until the last step."""

    def __init__(
        self,
        inputs: ImageInputs,
        thread: PipelineThread[PipelineImage],
        progress: SamplerProgress,
        *,
        controlnet: torch.nn.Module | None = None,
        is_separate: bool = False,
        calls_per_step: float = 1.0,
    ) -> None:
        """The thread has a pending call or has ended. `is_separate`: its calls are never batched."""
        self.inputs = inputs
        self.thread = thread
        self.is_separate = is_separate
        self.step = 0
        self._progress = progress
        self._controlnet = controlnet
        #: Sampler steps and denoiser calls at the last estimate.
        self._last_sampler_steps = 0
        self._last_sampler_call = 0
        #: Denoiser calls per sampler step; initially that of an earlier request.
        self.calls_per_step = calls_per_step
        self.steps = self._estimate()

    @property
    def failure(self) -> Exception | None:
        """The error that stopped this row. The row has not moved since."""
        return None if self.thread.is_rendering else self.thread.failure

    @property
    def is_at_controlnet(self) -> bool:
        """True if the pending call is the ControlNet's, which runs before the denoiser in each step."""
        return self.thread.pending_call is not None and self.thread.pending_call.module is self._controlnet

    def resume(self, answer: Any) -> None:
        """Return the result of the pending call. An error sets `failure`."""
        moves = not self.is_at_controlnet
        self.thread.resume(answer)
        if self.failure is not None:
            return
        self.step += moves
        self.steps = self._estimate()

    def _estimate(self) -> int:
        """Estimate the total calls: some pipelines call the denoiser twice per step, or skip it in some."""
        if self.thread.is_done:
            return self.step
        taken = self._progress.steps_taken
        if taken > self._last_sampler_steps:
            self.calls_per_step = (self.step - self._last_sampler_call) / (taken - self._last_sampler_steps)
            self._last_sampler_steps, self._last_sampler_call = taken, self.step
        left = max(self._progress.expected_steps - taken, 0)
        return max(self.step + 1, self._last_sampler_call + math.ceil(self.calls_per_step * left))


def extract_image(output: Any) -> PipelineImage:
    """Return the image in a pipeline's output. Raises `TaskError` if there is none."""
    images = getattr(output, "images", None)
    if images is None:
        images = getattr(output, "image", None)  # Kandinsky 5
    if images is None or not len(images):
        raise TaskError("error", f"no image: the pipeline returned a {type(output).__name__}")
    flagged = any(getattr(output, "nsfw_content_detected", None) or ())
    pixels = images[0]
    if isinstance(pixels, np.ndarray) and not np.isfinite(pixels).all():
        raise TaskError("error", "no image: the pipeline's output is not finite")
    if not isinstance(pixels, np.ndarray | Image.Image):
        raise TaskError("error", f"no image: the pipeline returned a {type(pixels).__name__}")
    return PipelineImage(pixels, flagged)
