"""A real language model: texts that join at random have the tokens of `generate`.

MUSTER_TEST_TEXT_MODELS=FOLDER pytest tests/unit/worker/text/test_smollm2.py, with the folder of scripts.text_models.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import torch

from configs.model_settings import Model
from configs.text_settings import TextGeneration
from tests.support.text_engine import TextDriver, request
from wire.text import ChatPrompt
from worker.engines.text.engine import TextEngine
from worker.engines.text.tokenization import load_tokenization

_QUESTIONS = (
    "What is the capital of France?",
    "Name three colours.",
    "Why is the sky blue? Explain it to a child in a few words, please.",
    "List two fruits and two animals that live in the wood.",
    "Write a short letter to a friend who moved to another town, and ask how the new school is.",
)


@pytest.fixture(scope="module")
def folder() -> Path:
    models = os.environ.get("MUSTER_TEST_TEXT_MODELS")
    if models is None or not (Path(models) / "smollm2").is_dir():
        pytest.skip("MUSTER_TEST_TEXT_MODELS names no folder that scripts.text_models has written")
    return Path(models) / "smollm2"


@pytest.mark.timeout(900)  # `generate` takes one text at a time
def test_ragged_texts_equal_generate(folder: Path) -> None:
    """32 chats of many lengths in float32, whose prompts are computed in parts and share blocks."""
    settings = TextGeneration(context_length=512, step_tokens=96, kv_cache=256 << 20)
    model = Model(engine="text", path=str(folder), dtype="float32", text=settings)
    tokenization, source = load_tokenization(model), random.Random(11)
    waiting = []
    for number in range(32):
        question = " ".join(source.sample(_QUESTIONS, source.randrange(1, 3)))
        chat = ChatPrompt([{"role": "user", "content": f"{number}: {question}"}])
        waiting.append((number, tokenization.encode(chat), source.randrange(1, 9)))
    expected = _generate(folder, waiting)
    engine = TextEngine(model, "cpu")
    engine.fetch()
    engine.load()
    driver = TextDriver(engine)
    while waiting or driver.rows:
        for number, prompt, tokens in waiting[: source.randrange(4)]:
            driver.admit(number, request(prompt, tokens))
        waiting = [each for each in waiting if each[0] not in driver.outputs]
        driver.step()
    assert {number: driver.tokens(number) for number in expected} == expected


@torch.inference_mode()
def _generate(folder: Path, tasks: list[tuple[int, list[int], int]]) -> dict[int, list[int]]:
    """Return what `generate` of transformers makes of each prompt, one by one."""
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    results = {}
    for number, prompt, tokens in tasks:
        ids = torch.tensor([prompt])
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=tokens,
            min_new_tokens=tokens,
            do_sample=False,
            eos_token_id=None,
        )
        results[number] = output[0, len(prompt) :].tolist()
    return results
