"""The tokens that the texts of a job have taken. Pure."""

from __future__ import annotations

from loadbalancer.generation.text.choice import TextChoice


class TokenUsage:
    """Tokens by text, of those that have ended too. Texts of one prompt count it once."""

    def __init__(self, choices: int) -> None:
        """`choices` is the number of texts for each prompt."""
        self._choices = choices
        self._prompts: dict[int, int] = {}
        self._generated: dict[int, int] = {}

    def __repr__(self) -> str:
        return f"<TokenUsage {self.total} tokens of {len(self._generated)} texts>"

    @property
    def total(self) -> int:
        return sum(self._prompts.values()) + sum(self._generated.values())

    def update(self, item: int, text: TextChoice) -> None:
        """Note the tokens of the text with this index in the job, until now."""
        if text.prompt_tokens:
            self._prompts.setdefault(item // self._choices, text.prompt_tokens)
        self._generated[item] = text.generated_tokens
