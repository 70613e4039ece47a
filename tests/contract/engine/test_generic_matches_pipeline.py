"""Contract: `GenericEngine` generates what the pipeline generates, in any batch and joining order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from PIL import Image

from configs.samplers import sampler_names
from tests.support.tiny_pipelines import KINDS, SIZE, admit, engine_of, finish, model_of, pixels, request, sources_of
from wire.inputs import GenerationMode, ImageInputs
from worker.engines.diffusion.generic.engine import GenericEngine
from worker.engines.diffusion.generic.row import GenericRow
from worker.engines.diffusion.loading import open_pipeline, pipeline_class
from worker.engines.diffusion.sampling.schedulers import scheduler_like

#: For values in [0, 1]: the rounding of other batch sizes, a hundredth of an 8-bit level.
BOUND = 4e-5


class Pair:
    """An engine, and a separate pipeline from the same files."""

    def __init__(self, kind: str, folder: Any) -> None:
        model = model_of(kind, folder)
        self.kind = kind
        self.engine: GenericEngine = engine_of(model)
        self._pipeline = open_pipeline(model, torch.device("cpu"), pipeline_class(model))
        self._scheduler = self._pipeline.scheduler

    @property
    def mode(self) -> GenerationMode:
        [mode] = self.engine.info().modes
        return mode

    def single(self, inputs: ImageInputs) -> np.ndarray[Any, Any]:
        given: dict[str, Any] = {
            "num_inference_steps": inputs.steps,
            "generator": torch.Generator("cpu").manual_seed(inputs.seed),
            "output_type": "np",
        }
        if self.kind == "classes":
            given |= {"class_labels": [int(inputs.prompt)], "guidance_scale": inputs.guidance_scale}
        elif self.kind != "unconditional":
            given |= {"prompt": inputs.prompt, "guidance_scale": inputs.guidance_scale}
            given |= {"negative_prompt": inputs.negative_prompt} if inputs.negative_prompt else {}
        if self.kind not in ("classes", "unconditional", "image"):
            given |= {"height": inputs.height, "width": inputs.width}
        given |= self._source_images(inputs)
        self._pipeline.scheduler = scheduler_like(inputs.scheduler, self._scheduler)
        with torch.inference_mode():
            generated: np.ndarray[Any, Any] = self._pipeline(**given).images[0]
        return generated

    def _source_images(self, inputs: ImageInputs) -> dict[str, Any]:
        size = inputs.width, inputs.height
        images = [Image.frombytes(m, size, s) for m, s in zip(("RGB", "L"), sources_of(inputs), strict=False)]
        found: dict[str, Any] = {"image": images[0]} if images else {}
        if self.kind in ("control_image", "control_inpaint"):
            found["control_image"] = images[0]
        if images and self.kind != "control":
            found["strength"] = inputs.strength
        return found | ({"mask_image": images[1]} if len(images) == 2 else {})

    def check(self, row: GenericRow) -> None:
        """Compare the row's image to that of the pipeline."""
        np.testing.assert_allclose(pixels(row), self.single(row.inputs), atol=BOUND, rtol=0, err_msg=str(row.inputs))


Pairs = Callable[[str], Pair]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Pairs:
    return cache(lambda kind: Pair(kind, tmp_path_factory.mktemp(kind)))


def run(engine: GenericEngine, joining: Sequence[tuple[int, ImageInputs]]) -> list[GenericRow]:
    """Step all rows in one batch; each request joins at its tick and leaves when finished."""
    rows: list[GenericRow] = []
    batches = []
    tick = 0
    while len(rows) < len(joining) or any(row.step < row.steps for row in rows):
        rows += admit(engine, *(inputs for at, inputs in joining if at == tick))
        running = [row for row in rows if row.step < row.steps]
        batches.append(len(running))
        engine.step(running)
        tick += 1
    assert max(batches) > 1, "rows must share a step"
    return rows


def mixed(pair: Pair) -> list[tuple[int, ImageInputs]]:
    """Return four requests that differ in every setting, with their joining ticks."""
    asked = [
        request(pair.mode, steps=7, guidance_scale=7.5, seed=11, prompt="the blue digit 4", strength=0.9),
        request(pair.mode, steps=5, guidance_scale=1.0, seed=12, prompt="0", strength=0.7),
        request(pair.mode, steps=6, guidance_scale=3.0, seed=13, prompt="the green seven in ink", strength=1.0),
        request(pair.mode, steps=4, guidance_scale=2.0, seed=2**63, prompt="a red digit", strength=0.5),
    ]
    if pair.kind == "classes":
        asked = [request(steps=n.steps, guidance_scale=n.guidance_scale, seed=n.seed, prompt="7") for n in asked]
    elif pair.kind not in ("unconditional", "consistency"):
        asked[2] = request(pair.mode, steps=6, seed=13, negative_prompt="the blue digit")
    return list(zip((0, 0, 2, 3), asked, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_joining_at_different_steps_equal_pipeline(pairs: Pairs, kind: str) -> None:
    pair = pairs(kind)
    for row in run(pair.engine, mixed(pair)):
        pair.check(row)


@pytest.mark.parametrize("kind", KINDS)
def test_single_row_bit_equal_to_pipeline(pairs: Pairs, kind: str) -> None:
    pair = pairs(kind)
    for _, inputs in mixed(pair)[1:3]:
        [row] = admit(pair.engine, inputs)
        finish(pair.engine, row)
        np.testing.assert_array_equal(pixels(row), pair.single(inputs))


@pytest.mark.parametrize("kind", KINDS)
def test_reproducible_row_bit_equal_in_any_batch(pairs: Pairs, kind: str) -> None:
    pair = pairs(kind)
    [inputs, *others] = [inputs for _, inputs in mixed(pair)]
    rows = admit(pair.engine, *others, msgspec.structs.replace(inputs, reproducible=True))
    finish(pair.engine, *rows)
    np.testing.assert_array_equal(pixels(rows[-1]), pair.single(inputs))


def test_every_scheduler_in_one_batch(pairs: Pairs) -> None:
    pair = pairs("control")
    takes = sampler_names("noise")
    asked = [
        (n % 3, request(pair.mode, scheduler=name, seed=n, steps=4 + n % 3, guidance_scale=(1.0, 3.0)[n % 2]))
        for n, name in enumerate(takes)
    ]
    for row in run(pair.engine, asked):
        pair.check(row)


@pytest.mark.parametrize(("width", "height"), [(48, 32), (16, 40)])
@pytest.mark.parametrize("kind", ["text", "inpaint", "control"])
def test_non_square_sizes(pairs: Pairs, kind: str, width: int, height: int) -> None:
    pair = pairs(kind)
    for row in run(pair.engine, [(at, request(pair.mode, width=width, height=height, seed=at)) for at in (0, 2)]):
        pair.check(row)
        assert pixels(row).shape == (height, width, 3)


def test_different_sizes_share_step_but_not_forward_pass(pairs: Pairs) -> None:
    pair = pairs("text")
    rows = admit(pair.engine, request(), request(width=2 * SIZE), request(seed=2))
    finish(pair.engine, *rows)
    for row in rows:
        pair.check(row)


def test_bound_detects_other_seed_or_step_count(pairs: Pairs) -> None:
    pair = pairs("text")
    one = pair.single(request())
    for changed in (request(seed=2), request(steps=6), request(guidance_scale=3.01), request(prompt="a red 7")):
        assert np.abs(one - pair.single(changed)).max() > 5 * BOUND
