"""Sizes of passes on a CPU: few, and without an effect on what is computed."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_pre_hook

from tests.support.text_engine import TextDriver, generate, request, text_engine
from worker.engines.text.model_pass import padding_of
from worker.engines.text.packed_linears import PackedLinear


def test_sizes_are_few_and_hardly_larger() -> None:
    for tokens in range(1, 10_000):
        assert 0 <= padding_of(tokens) * 16 < tokens or not padding_of(tokens)
    assert [padding_of(tokens) for tokens in range(1, 33)] == [0] * 32
    assert len({tokens + padding_of(tokens) for tokens in range(1, 545)}) < 100


def test_texts_of_many_lengths_compile_few_linear_layers() -> None:
    """Each number of tokens would be compiled, and kept."""
    engine, sizes = text_engine(step_tokens=256), set[int]()

    def note(module: torch.nn.Module, arguments: Any) -> None:
        if isinstance(module, PackedLinear):
            sizes.add(arguments[0].shape[-2])

    lengths = range(33, 257)
    with register_module_forward_pre_hook(note):
        for length in lengths:
            driver = TextDriver(engine)
            driver.admit(0, request([length, *[5] * (length - 1)], 1))
            driver.run()
    assert 1 < len(sizes) < len(lengths) / 3


def test_an_odd_number_of_tokens_gives_the_text_of_transformers() -> None:
    """Prompts beside running texts, in passes that are filled up."""
    driver = TextDriver(text_engine(step_tokens=256))
    prompts = [[(7 * place * number + 11) % 400 for place in range(30 + 17 * number)] for number in range(1, 6)]
    for number, prompt in enumerate(prompts):
        driver.admit(number, request(prompt, 12))
        driver.step()
    driver.run()
    for number, prompt in enumerate(prompts):
        assert driver.tokens(number) == generate("llama", prompt, 12)
