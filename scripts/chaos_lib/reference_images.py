"""Comparison of every image with the reference image of its request, generated alone.

Images of the simulated engine are equal byte for byte. Images of a diffusion model in a batch differ by rounding, by at
most one level of 255. Images of equal requests with `reproducible` must be equal byte for byte.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from scripts.chaos_lib.fault_plan import PlannedRequest
from scripts.chaos_lib.outcomes import Outcome
from scripts.chaos_lib.payloads import calls
from scripts.chaos_lib.profiles import SAMPLER
from wire.inputs import ImageInputs
from worker.engines.sim import expected_image
from worker.engines.sim_text import expected_text
from worker.engines.user.loading import load_class

Pixels = NDArray[np.int16]
ShowCount = Callable[[int, int], None]

_GUIDANCE, _SCHEDULER = 3.0, "ddim"
#: Levels of 255.
_TOLERANCE = 1
_DIGITS = Path(__file__).resolve().parents[2] / "worker" / "builtin" / "digits"


def check_images(profile: str, outcomes: Sequence[Outcome], show: ShowCount) -> None:
    """Record the wrong images of each outcome. `show` is called with the number compared and their total."""
    comparisons: dict[str, Callable[[], Callable[[PlannedRequest, int, bytes], str]]] = {
        "sim": lambda: _compare_simulated,
        "machines": lambda: _compare_simulated,
        "texts": lambda: _compare_text,
        "calls": _call_comparison,
        "digits": _pipeline_comparison,
    }
    compare = comparisons[profile]()
    for number, outcome in enumerate(outcomes):
        request = outcome.request
        if outcome.images and len(outcome.images) != request.n:
            outcome.wrong.append(f"{len(outcome.images)} images instead of {request.n}")
        for index, image in enumerate(outcome.images):
            what = compare(request, index, image)
            if what:
                outcome.wrong.append(f"image {index} is wrong: {what}")
        show(number + 1, len(outcomes))


def _compare_simulated(request: PlannedRequest, index: int, image: bytes) -> str:
    width, height = map(int, request.size.split("x"))
    inputs = ImageInputs(request.prompt, width, height, request.steps, _GUIDANCE, request.seed + index, _SCHEDULER)
    return "" if image == expected_image(inputs) else "it differs from the image of its seed"


def _compare_text(request: PlannedRequest, index: int, text: bytes) -> str:
    """A repeated, missing or changed token shows: each word follows from the seed and its position alone."""
    expected = expected_text(request.seed + index, request.steps)
    if text == expected.encode():
        return ""
    return f"{len(text.split())} words instead of {len(expected.split())}, or other words"


def _call_comparison() -> Callable[[PlannedRequest, int, bytes], str]:
    """Return a comparison with the results of the engine in this process; each is computed once."""
    engine = load_class(f"{SAMPLER}:RingSampler")()
    item_type = engine.start.__globals__["Request"]

    @cache
    def reference(points: int, steps: int, seed: int) -> Any:
        walk = engine.start(item_type(points=points, steps=steps, seed=seed))
        for _ in range(steps):
            engine.step([walk])
        return engine.result(walk)

    def compare(request: PlannedRequest, index: int, result: bytes) -> str:
        expected = reference(**calls(request)[index])
        got = np.array(json.loads(result))
        return "" if got.shape == expected.shape and np.allclose(got, expected, atol=1e-9) else "other points"

    return compare


def _pipeline_comparison() -> Callable[[PlannedRequest, int, bytes], str]:
    """Return a comparison with the images of diffusers' own pipeline; each reference is generated once."""
    import diffusers
    import torch
    import transformers

    for library in (diffusers.utils.logging, transformers.utils.logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    torch.set_num_threads(1)
    pipeline: Any = diffusers.StableDiffusionPipeline.from_pretrained(_DIGITS, safety_checker=None).to(torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    pipeline.scheduler = diffusers.DDIMScheduler.from_pretrained(_DIGITS, subfolder="scheduler")
    equal: dict[tuple[str, int, int, str], bytes] = {}

    @cache
    def reference(prompt: str, seed: int, steps: int, size: str) -> Pixels:
        width, height = map(int, size.split("x"))
        generated = pipeline(
            prompt,
            num_inference_steps=steps,
            guidance_scale=_GUIDANCE,
            generator=torch.Generator("cpu").manual_seed(seed),
            width=width,
            height=height,
        )
        return np.asarray(generated.images[0]).astype(np.int16)

    def compare(request: PlannedRequest, index: int, image: bytes) -> str:
        key = request.prompt, request.seed + index, request.steps, request.size
        got = np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).astype(np.int16)
        expected = reference(*key)
        if got.shape != expected.shape:
            return "its size differs"
        if (difference := int(np.abs(got - expected).max())) > _TOLERANCE:
            return f"{difference} levels of 255 from the reference"
        if request.reproducible and equal.setdefault(key, image) != image:
            return "it is not reproducible: another answer to the same request has other bytes"
        return ""

    return compare
