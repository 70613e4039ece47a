"""A request inside the engine: its run through the pipeline, how far it has come, and the picture at the end."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from diffusers.utils.pil_utils import numpy_to_pil
from PIL import Image

from wire.messages import ImageInputs
from worker.engine import TaskError
from worker.engines.diffusion.generic.pipeline_thread import PipelineThread
from worker.engines.diffusion.generic.progress import SamplerProgress


@dataclass(frozen=True)
class PipelineImage:
    """What a run makes. `flagged`: the pipeline or its safety checker objects to it."""

    #: `(H, W, channels)` in [0, 1] where the pipeline can say it so, which is before it is rounded.
    pixels: npt.NDArray[np.floating[Any]] | Image.Image
    flagged: bool = False

    def to_pil(self) -> Image.Image:
        """As it is shown."""
        if isinstance(self.pixels, Image.Image):
            return self.pixels.convert("RGB")
        [picture] = numpy_to_pil(self.pixels)
        image: Image.Image = picture.convert("RGB")
        return image


class GenericRow:
    """One picture. A step is one call of the denoiser; how many there will be is an estimate until the last."""

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
        """`helper`: see `at_helper`. `apart`: its calls share no forward pass. The run is at a call, or over."""
        self.inputs = inputs
        self.thread = thread
        self.is_separate = is_separate
        self.step = 0
        self._progress = progress
        self._controlnet = controlnet
        #: Where the last step of the sampler was done, and how many calls it took.
        self._last_sampler_steps = 0
        self._last_sampler_call = 0
        #: Calls of the denoiser for a step of the sampler: as in an earlier request, until there was one.
        self.calls_per_step = calls_per_step
        self.steps = self._estimate()

    @property
    def failure(self) -> Exception | None:
        """Why it can go no further: it has not moved since."""
        return None if self.thread.is_rendering else self.thread.failure

    @property
    def is_at_controlnet(self) -> bool:
        """Whether it waits for the part that comes before the denoiser in each step and makes none of its own."""
        return self.thread.pending_call is not None and self.thread.pending_call.module is self._controlnet

    def resume(self, answer: Any) -> None:
        """Go on with the answer to the parked call, to the next one or the end. An error makes it `broken`."""
        moves = not self.is_at_controlnet
        self.thread.resume(answer)
        if self.failure is not None:
            return
        self.step += moves
        self.steps = self._estimate()

    def _estimate(self) -> int:
        """Some pipelines call their denoiser twice for a step of the sampler, and some not in all steps."""
        if self.thread.is_done:
            return self.step
        taken = self._progress.steps_taken
        if taken > self._last_sampler_steps:
            self.calls_per_step = (self.step - self._last_sampler_call) / (taken - self._last_sampler_steps)
            self._last_sampler_steps, self._last_sampler_call = taken, self.step
        left = max(self._progress.expected_steps - taken, 0)
        return max(self.step + 1, self._last_sampler_call + math.ceil(self.calls_per_step * left))


def extract_image(output: Any) -> PipelineImage:
    """The picture in what a pipeline returns. Raises `TaskError` where there is none."""
    pictures = getattr(output, "images", None)
    if pictures is None or not len(pictures):
        raise TaskError("error", f"no picture: the pipeline makes a {type(output).__name__}")
    flagged = any(getattr(output, "nsfw_content_detected", None) or ())
    pixels = pictures[0]
    if isinstance(pixels, np.ndarray) and not np.isfinite(pixels).all():
        raise TaskError("error", "no picture: what the pipeline made is not finite")
    if not isinstance(pixels, np.ndarray | Image.Image):
        raise TaskError("error", f"no picture: the pipeline makes a {type(pixels).__name__}")
    return PipelineImage(pixels, flagged)
