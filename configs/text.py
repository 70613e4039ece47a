"""Helpers for texts that people read."""

from __future__ import annotations


def clip(text: str, limit: int) -> str:
    """Shorten the text to `limit` characters, with `...` at the end if something is missing."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def printable(text: str, limit: int) -> str:
    """Clip the text, and replace control characters and lone surrogates by `?`."""
    return "".join(char if char.isprintable() else "?" for char in clip(text, limit))


def printable_lines(text: str, limit: int) -> str:
    """Do as `printable`, and keep the line breaks."""
    return "\n".join(printable(line, limit) for line in clip(text, limit).split("\n"))
