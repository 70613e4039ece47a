"""The usage of a text request."""

from __future__ import annotations

import msgspec


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Tokens of the prompt that were found in the prefix cache."""

    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    """Generated tokens that are reasoning."""

    reasoning_tokens: int = 0


class TextUsage(msgspec.Struct, frozen=True):
    """Tokens of the prompts, each counted once, and of all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


def text_usage(prompt: int, cached: int, completion: int, reasoning: int) -> TextUsage:
    return TextUsage(
        prompt,
        completion,
        prompt + completion,
        PromptTokensDetails(min(cached, prompt)),
        CompletionTokensDetails(reasoning),
    )
