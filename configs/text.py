"""Helpers for texts that people read."""

from __future__ import annotations


def clip(text: str, limit: int) -> str:
    """Shorten the text to `limit` characters, with `...` at the end if something is missing."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
