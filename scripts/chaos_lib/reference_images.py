"""Every image against the one that its request gets alone.

The simulated engine's pictures are equal byte for byte. Pictures of a diffusion model in a batch differ from those
drawn alone by rounding, as its tests allow: by one level of 255 at most. Those that were asked for as reproducible
must beside that be equal to each other byte for byte, whatever batches and workers they came from.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scripts.chaos_lib.fault_plan import Ask
from scripts.chaos_lib.outcomes import Story
from wire.messages import ImageInputs
from worker.engines.sim import expected_picture

Pixels = NDArray[np.int16]
Tell = Callable[[int, int], None]

_GUIDANCE, _SCHEDULER = 3.0, "ddim"
#: Levels of 255.
_TOLERANCE = 1
_DIGITS = Path(__file__).resolve().parents[2] / "worker" / "builtin" / "digits"


def judge(profile: str, stories: Sequence[Story], tell: Tell) -> None:
    """Note in each story which of its images are wrong; `tell` hears how many of how many are compared."""
    compare = _simulated if profile == "sim" else _drawn()
    for number, story in enumerate(stories):
        ask = story.ask
        if story.images and len(story.images) != ask.n:
            story.wrong.append(f"{len(story.images)} images where {ask.n} were asked for")
        for index, image in enumerate(story.images):
            what = compare(ask, index, image)
            if what:
                story.wrong.append(f"image {index} is wrong: {what}")
        tell(number + 1, len(stories))


def _simulated(ask: Ask, index: int, image: bytes) -> str:
    width, height = map(int, ask.size.split("x"))
    inputs = ImageInputs(ask.prompt, width, height, ask.steps, _GUIDANCE, ask.seed + index, _SCHEDULER)
    return "" if image == expected_picture(inputs) else "it is not the one of its seed"


def _drawn() -> Callable[[Ask, int, bytes], str]:
    """A comparison with what diffusers' own pipeline draws; each picture is drawn once."""
    import diffusers
    import torch
    import transformers

    for talkative in (diffusers.utils.logging, transformers.utils.logging):
        talkative.set_verbosity_error()
        talkative.disable_progress_bar()
    torch.set_num_threads(1)
    pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(_DIGITS, safety_checker=None).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_pretrained(_DIGITS, subfolder="scheduler")
    equal: dict[tuple[str, int, int, str], bytes] = {}

    @cache
    def alone(prompt: str, seed: int, steps: int, size: str) -> Pixels:
        width, height = map(int, size.split("x"))
        drawn = pipeline(
            prompt,
            num_inference_steps=steps,
            guidance_scale=_GUIDANCE,
            generator=torch.Generator("cpu").manual_seed(seed),
            width=width,
            height=height,
        )
        return np.asarray(drawn.images[0]).astype(np.int16)

    def compare(ask: Ask, index: int, image: bytes) -> str:
        wanted = ask.prompt, ask.seed + index, ask.steps, ask.size
        got = np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(np.int16)
        right = alone(*wanted)
        if got.shape != right.shape:
            return "its size is another"
        if (difference := int(np.abs(got - right).max())) > _TOLERANCE:
            return f"{difference} levels of 255 from the one alone"
        if ask.reproducible and equal.setdefault(wanted, image) != image:
            return "it was to be reproducible, and another answer for the same request has other bytes"
        return ""

    return compare
