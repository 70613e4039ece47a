"""The built-in model through the whole server: forty different requests at once, each as if it had been alone."""

from __future__ import annotations

import asyncio
import base64
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import openai
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from configs.schedulers import SAMPLERS
from tests.programs import PATIENCE_S, Server, running

MODEL = Path(__file__).parents[2] / "worker" / "builtin" / "digits"
DIGITS = {
    "path": "builtin:digits",
    "defaults": {"size": "64x64", "steps": 20, "guidance_scale": 3.0, "scheduler": "ddim"},
    "limits": {"min_side": 32},
}
#: The built-in model predicts velocity, which this one sampler does not know.
FITTING = [name for name in SAMPLERS if name != "ipndm"]
#: Levels of 255. Batched and alone differ by about 1e-5 before rounding: by one level where that tips a rounding.
TOLERANCE = 1


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("digits"), {"digits": DIGITS}, workers=2) as server:
        yield server


@pytest.fixture(scope="module")
def pipeline() -> diffusers.StableDiffusionPipeline:
    torch.set_num_threads(1)
    loaded = diffusers.StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32, safety_checker=None)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def pixels(encoded: str) -> NDArray[np.int16]:
    image = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB")).astype(np.int16)


def alone(pipeline: diffusers.StableDiffusionPipeline, asked: dict[str, Any]) -> NDArray[np.int16]:
    """What diffusers' own pipeline draws for this request, by itself."""
    width, height = map(int, asked["size"].split("x"))
    sampler = SAMPLERS[asked["scheduler"]]
    shipped = diffusers.DDIMScheduler.from_pretrained(MODEL, subfolder="scheduler")
    pipeline.scheduler = getattr(diffusers, sampler.cls).from_config(shipped.config, **sampler.options)
    drawn = pipeline(
        asked["prompt"],
        negative_prompt=asked["negative_prompt"],
        num_inference_steps=asked["num_inference_steps"],
        guidance_scale=asked["guidance_scale"],
        generator=torch.Generator("cpu").manual_seed(asked["seed"]),
        width=width,
        height=height,
        output_type="pil",
    )
    return np.asarray(drawn.images[0]).astype(np.int16)


def chaotic(sampler: str) -> bool:
    """Whether the sampler magnifies rounding at many steps and strong guidance, for which it was not made.

    The pipeline alone does too: noise changed by 1e-7 changes its picture by more than batching does.
    """
    return sampler in ("lcm", "tcd")


def mixed_requests(count: int) -> list[dict[str, Any]]:
    """Requests that differ in everything that may differ within a batch, and in size, which may not."""
    words = itertools.cycle(["seven", "3", "a red two", "zero in blue ink on white paper"])
    samplers = itertools.cycle(FITTING)
    guidance = itertools.cycle([1.0, 3.0, 7.5])
    sizes = itertools.cycle(["64x64", "64x64", "96x64", "64x64", "64x64"])
    requests = []
    for number in range(count):
        sampler, scale, steps = next(samplers), next(guidance), 5 + (number * 7) % 36
        requests.append(
            {
                "prompt": f"a handwritten {next(words)}",
                "negative_prompt": "black paper" if number % 4 == 3 else "",
                "num_inference_steps": min(steps, 8) if chaotic(sampler) else steps,
                "guidance_scale": min(scale, 1.0) if chaotic(sampler) else scale,
                "seed": 1000 + number,
                "scheduler": sampler,
                "size": next(sizes),
            }
        )
    return requests


async def test_forty_mixed_requests_at_once_equal_the_pipeline_alone(
    digits: Server, pipeline: diffusers.StableDiffusionPipeline
) -> None:
    wanted = mixed_requests(40)
    assert {asked["num_inference_steps"] for asked in wanted} >= {5, 12, 40}
    assert {asked["guidance_scale"] for asked in wanted} == {1.0, 3.0, 7.5}
    assert {asked["scheduler"] for asked in wanted} == set(FITTING)

    async with openai.AsyncOpenAI(base_url=f"{digits.base_url}/v1", api_key="none", timeout=PATIENCE_S) as client:

        async def draw(asked: dict[str, Any]) -> NDArray[np.int16]:
            await asyncio.sleep(0.02 * (asked["seed"] % 10))  # some come while others are under way
            own = {key: asked[key] for key in asked.keys() - {"prompt", "size"}}
            answer = await client.images.generate(
                model="digits", prompt=asked["prompt"], size=asked["size"], extra_body=own
            )
            assert answer.data is not None
            return pixels(answer.data[0].b64_json or "")

        drawn = await asyncio.gather(*(draw(asked) for asked in wanted))

    for asked, picture in zip(wanted, drawn, strict=True):
        difference = int(np.abs(picture - alone(pipeline, asked)).max())
        assert difference <= TOLERANCE, f"{asked} differs by {difference} levels"

    # They did share steps, and did join batches that were under way: the workers' own counters say so.
    counters = [worker.counters for worker in digits.snapshot().workers]
    assert sum(c.finished for c in counters) == 40
    assert sum(c.rows for c in counters) > 1.5 * sum(c.steps for c in counters), "tasks advanced together"
    assert max(c.max_batch for c in counters) >= 4
    assert sum(c.joined_midway for c in counters) >= 5


def test_the_picture_of_a_seed_does_not_depend_on_how_many_were_asked_for(digits: Server) -> None:
    with openai.OpenAI(base_url=f"{digits.base_url}/v1", api_key="none", timeout=PATIENCE_S) as client:
        four = client.images.generate(model="digits", prompt="a seven", n=4, extra_body={"seed": 10}).data or []
        one = client.images.generate(model="digits", prompt="a seven", extra_body={"seed": 12}).data or []
    assert len(four) == 4
    assert len({image.b64_json for image in four}) == 4
    assert int(np.abs(pixels(four[2].b64_json or "") - pixels(one[0].b64_json or "")).max()) <= TOLERANCE


def test_streamed_previews_approach_the_picture(digits: Server) -> None:
    with openai.OpenAI(base_url=f"{digits.base_url}/v1", api_key="none", timeout=PATIENCE_S) as client:
        stream = client.images.generate(
            model="digits", prompt="a handwritten seven", stream=True, partial_images=3, extra_body={"seed": 1}
        )
        events = [event for event in stream if event.type != "image_generation.progress"]  # type: ignore[comparison-overlap]
    assert [event.type for event in events] == [*["image_generation.partial_image"] * 3, "image_generation.completed"]
    pictures = [pixels(event.b64_json) for event in events]
    distances = [float(np.abs(picture - pictures[-1]).mean()) for picture in pictures]
    assert distances[0] > distances[2] > 0, "each preview is nearer to the picture than a much earlier one"
