"""A prompt of several texts counts once, and so do its tokens in the prefix cache."""

from __future__ import annotations

import pytest

from loadbalancer.generation.text.choice import TextChoice
from loadbalancer.generation.text.generated_texts import usage_of


def choice(index: int, prompt: int, cached: int) -> TextChoice:
    made = TextChoice(index)
    made.prompt_tokens, made.cached_tokens, made.generated_tokens = prompt, cached, 2
    return made


@pytest.mark.parametrize(
    ("prompts", "per_prompt", "prompt", "cached"),
    [
        ([(9, 0)], 1, 9, 0),
        ([(9, 8)], 1, 9, 8),
        ([(9, 0), (9, 8), (9, 8)], 3, 9, 0),
        ([(9, 8), (9, 0), (9, 8)], 3, 9, 0),
        ([(9, 8), (9, 8)], 2, 9, 8),
        ([(0, 0), (9, 8)], 2, 9, 8),
        ([(0, 0), (0, 0)], 2, 0, 0),
        ([(9, 8), (9, 4), (7, 0), (7, 7)], 2, 16, 4),
        ([(9, 8), (7, 4)], 1, 16, 12),
    ],
)
def test_usage_of_a_shared_prompt(prompts: list[tuple[int, int]], per_prompt: int, prompt: int, cached: int) -> None:
    usage = usage_of([choice(index, *each) for index, each in enumerate(prompts)], per_prompt)
    assert (usage.prompt_tokens, usage.prompt_tokens_details.cached_tokens) == (prompt, cached)
    assert usage.completion_tokens == 2 * len(prompts)
