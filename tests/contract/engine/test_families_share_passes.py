"""Contract: the families that the generic engine serves load, share forward passes and generate as if alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from configs.model_sections import Defaults, Limits
from configs.model_settings import Model
from tests.support.tiny_families import TINY_FAMILIES, save
from tests.support.tiny_pipelines import SIZE, admit, finish, pixels, request
from wire.inputs import ImageInputs
from wire.messages import PassSharing
from worker.engines.diffusion.generic.engine import GenericEngine

#: Prompts of as many lengths.
_PROMPTS = ("seven", "the red seven", "a blue digit in green ink", "in the red ink a digit seven in green ink 1 0 1 0")
#: Families whose requests meet only if their prompts have equal lengths; all others meet always.
_BY_LENGTH = {"kandinsky5"}
#: Of 255 levels: the rounding of other batch sizes.
_BOUND = 1 / 255


def _engine(name: str, folder: Path) -> GenericEngine:
    save(name, folder)
    defaults = Defaults(size=f"{SIZE}x{SIZE}", steps=3, guidance_scale=3.0)
    engine = GenericEngine(Model(path=str(folder), defaults=defaults, limits=Limits(min_side=8)), "cpu")
    engine.fetch()
    if name == "kandinsky5":  # its sizes are those of the real model
        engine._pipeline.resolutions = [(SIZE, SIZE)]
    engine.load()
    return engine


@contextmanager
def _passes(engine: GenericEngine) -> Iterator[list[None]]:
    """Count the denoiser's forward passes."""
    counted: list[None] = []
    handle = engine._denoisers[0].register_forward_pre_hook(lambda *_: counted.append(None))
    try:
        yield counted
    finally:
        handle.remove()


def _requests(engine: GenericEngine, prompts: tuple[str, ...]) -> list[ImageInputs]:
    [mode] = engine.info().modes[:1]
    return [request(mode, prompt=prompt, seed=seed, steps=3) for seed, prompt in enumerate(prompts)]


@pytest.mark.parametrize("name", TINY_FAMILIES)
def test_family_shares_passes_and_keeps_pixels(name: str, tmp_path: Path) -> None:
    engine = _engine(name, tmp_path)
    sharing: PassSharing = "equal_prompt_lengths" if name in _BY_LENGTH else "always"
    assert engine.info().shares_passes == sharing
    prompts = _PROMPTS if sharing == "always" else ("the red seven", "a blue digit", "in green ink", "0 1 0")
    inputs = _requests(engine, prompts)
    with _passes(engine) as one_by_one:
        alone = admit(engine, *inputs)
        for row in alone:
            finish(engine, row)
    with _passes(engine) as together:
        rows = admit(engine, *inputs)
        finish(engine, *rows)
    assert len(together) * len(inputs) == len(one_by_one), "four requests must share each forward pass"
    for row, expected in zip(rows, alone, strict=True):
        np.testing.assert_allclose(pixels(row), pixels(expected), atol=_BOUND, rtol=0)
