"""Turns the text of a prompt into tokens, in a time that is bounded by the model's context."""

from __future__ import annotations

from typing import Any

from worker.engine import context_exceeded

#: A text has fewer characters than this for each of its tokens, but for long runs of space.
_CHARS_PER_TOKEN = 8
#: Tokens in the place of the last one, if the text is cut within it: a control token is spelled then.
_CUT_TOKENS = 64


def encode_text(tokenizer: Any, text: str, max_tokens: int | None, **options: Any) -> list[int]:
    """Return the tokens of a text. Raises as `check_text` does."""
    check_text(tokenizer, text, max_tokens, **options)
    return list(tokenizer.encode(text, **options))


def check_text(tokenizer: Any, text: str, max_tokens: int | None, **options: Any) -> None:
    """Raises `TaskError` for a text that has many more than `max_tokens` by its start."""
    if max_tokens is None or len(text) <= _CHARS_PER_TOKEN * max_tokens:
        return
    count = len(tokenizer.encode(text[: _CHARS_PER_TOKEN * max_tokens], **options))
    if count > max_tokens + _CUT_TOKENS:
        raise context_exceeded(max_tokens, f"more than {count}")
