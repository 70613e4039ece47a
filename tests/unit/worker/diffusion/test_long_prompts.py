"""Prompts that are longer than the window of a text encoder."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tests.support.tiny_diffusion import CHECKPOINTS, admit, engine_of, finish, request
from worker.engine import EngineRequest
from worker.engines.diffusion.engine import DiffusionEngine
from worker.engines.diffusion.families.long_prompts import count_truncated

#: Texts of one, two and three windows of 14 tokens.
SHORT, LONG, LONGER = "a red seven", "a red seven in ink " * 5, "a blue one " * 12
FAMILIES = ("sd", "sdxl")


@pytest.fixture(scope="module", params=FAMILIES)
def engine(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> DiffusionEngine:
    folder: Path = tmp_path_factory.mktemp(request.param)
    CHECKPOINTS[request.param]().save_pretrained(folder)
    return engine_of(folder)


def latents(engine: DiffusionEngine, *prompts: str) -> list[torch.Tensor]:
    """Generate all in one batch where their keys allow it."""
    rows = admit(engine, *(request(prompt=prompt, seed=3) for prompt in prompts))
    keys = {engine.key(EngineRequest(row.inputs)) for row in rows}
    for key in keys:
        finish(engine, *(row for row in rows if engine.key(EngineRequest(row.inputs)) == key))
    return [row.latents for row in rows]


def test_every_window_of_a_long_prompt_counts(engine: DiffusionEngine) -> None:
    one, other, again = latents(engine, LONG + "green", LONG + "blue", LONG + "green")
    assert not torch.allclose(one, other, atol=1e-4)
    assert torch.allclose(one, again, atol=1e-5)


def test_lengths_do_not_change_each_other(engine: DiffusionEngine) -> None:
    together = latents(engine, SHORT, LONG, LONGER, SHORT)
    for prompt, found in zip((SHORT, LONG, LONGER, SHORT), together, strict=True):
        [alone] = latents(engine, prompt)
        assert torch.allclose(found, alone, atol=1e-5)


def test_first_window_is_what_the_pipeline_encodes(engine: DiffusionEngine) -> None:
    family = engine._family
    assert [family.windows(request(prompt=prompt)) for prompt in (SHORT, LONG, LONGER)] == [1, 2, 3]
    assert family.windows(request(prompt=SHORT, negative_prompt=LONGER)) == 3
    with torch.inference_mode():
        whole, cut = family.encode_windows([LONG, SHORT], 2), family.encode([LONG, SHORT])
    length = cut["embeddings"].shape[1]
    assert whole["embeddings"].shape[1] == 2 * length
    assert torch.allclose(whole["embeddings"][:, :length], cut["embeddings"], atol=1e-5)
    if "text_embeds" in cut:
        assert torch.allclose(whole["text_embeds"], cut["text_embeds"], atol=1e-5)


class FakeTokenizer:
    """One token per word, and one of its own."""

    def __call__(self, text: str, *, truncation: bool, verbose: bool) -> Any:
        assert not truncation
        assert not verbose
        return SimpleNamespace(input_ids=[*text.split(), "end"])


@pytest.mark.parametrize(
    ("limits", "texts", "expected"),
    [
        ([4], ["one two three"], 0),
        ([4], ["one two three four"], 1),
        ([4], ["one two three four", "1 2 3 4 5 6"], 4),
        ([2, 4], ["one two three four"], 1),
        ([100], ["one " * 30], 0),
        ([], ["one two three"], 0),
    ],
)
def test_truncated_tokens_are_counted(limits: list[int], texts: list[str], expected: int) -> None:
    """Of several encoders, the one that reads most counts."""
    assert count_truncated([(FakeTokenizer(), limit) for limit in limits], texts) == expected


@pytest.mark.parametrize("kind", ["sd", "sd3", "sd3-shifting-without-t5", "flux-dev", "flux-schnell"])
def test_images_say_what_was_cut(kind: str, tmp_path: Path) -> None:
    CHECKPOINTS[kind]().save_pretrained(tmp_path)
    engine = engine_of(tmp_path)
    prompts = {"short": SHORT, "long": "a red seven in ink " * 150}
    found = {}
    for name, prompt in prompts.items():
        [row] = admit(engine, request(prompt=prompt, steps=1, guidance_scale=1.0))
        finish(engine, row)
        found[name] = engine.render(row)().truncated_tokens
    assert found["short"] == 0
    assert (found["long"] > 0) == (kind != "sd")
