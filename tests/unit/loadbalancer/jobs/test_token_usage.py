"""What a job is charged at its end: texts of one prompt count it once, and a text that goes on counts once."""

from __future__ import annotations

from loadbalancer.generation.text.choice import TextChoice
from loadbalancer.jobs.token_usage import TokenUsage


def text(prompt: int, generated: int) -> TextChoice:
    made = TextChoice(0)
    made.prompt_tokens, made.generated_tokens = prompt, generated
    return made


def test_nothing_is_taken_at_first() -> None:
    assert TokenUsage(1).total == 0


def test_texts_of_one_prompt_count_it_once() -> None:
    usage = TokenUsage(2)
    for item, prompt in enumerate((10, 10, 3, 3)):
        usage.update(item, text(prompt, 5))
    assert usage.total == 10 + 3 + 4 * 5


def test_a_text_counts_as_far_as_it_has_come() -> None:
    usage = TokenUsage(1)
    for prompt, generated in ((0, 0), (7, 1), (7, 4)):
        usage.update(0, text(prompt, generated))
    assert usage.total == 11
