"""What the writers of responses know of generated texts: those in flight, or those of a job. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from loadbalancer.generation.text.choice import TextChoice
from loadbalancer.schema.text.usage import TextUsage, text_usage


class GeneratedTexts(Protocol):
    """The texts of one request."""

    @property
    def model(self) -> str:
        """Name of the model."""

    @property
    def choices(self) -> Sequence[TextChoice]:
        """The texts, those of the first prompt first."""

    @property
    def alternatives(self) -> int | None:
        """Number of alternatives to each token with log-probabilities; None: no log-probabilities."""

    @property
    def usage(self) -> TextUsage:
        """The tokens so far."""


def usage_of(choices: Sequence[TextChoice], per_prompt: int) -> TextUsage:
    """Return the tokens of these choices. Those of the same prompt count it once.

    The first of them that is computed fills the cache for the others: its prompt is the one that counts.
    """
    prompt = cached = 0
    for start in range(0, len(choices), per_prompt):
        known = [choice for choice in choices[start : start + per_prompt] if choice.prompt_tokens]
        if known:
            prompt += known[0].prompt_tokens
            cached += min(choice.cached_tokens for choice in known)
    return text_usage(
        prompt,
        cached,
        sum(choice.generated_tokens for choice in choices),
        sum(choice.reasoning_tokens for choice in choices),
    )
