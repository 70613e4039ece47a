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
    """Return the tokens of these choices. Those of the same prompt count it once."""
    first = choices[::per_prompt]
    return text_usage(
        sum(choice.prompt_tokens for choice in first),
        sum(choice.cached_tokens for choice in first),
        sum(choice.generated_tokens for choice in choices),
        sum(choice.reasoning_tokens for choice in choices),
    )
