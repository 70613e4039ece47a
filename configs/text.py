"""Helpers for texts that people read."""

from __future__ import annotations

from collections.abc import Iterable


def clip(text: str, limit: int) -> str:
    """Shorten the text to `limit` characters, with `...` at the end if something is missing."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."


def closest(word: str, known: Iterable[str], min_similarity: float = 0.6) -> str | None:
    """Return the known word that is most similar, for the hint of an error; None if none is similar enough."""
    import difflib  # a program that meets no mistake needs none of it

    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=min_similarity)), None)


def is_utf8(text: str) -> bool:
    """Return whether the text can be encoded. Paths and variables of the system may hold any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def escaped(text: str) -> str:
    """Return the text with control characters and lone surrogates as Python writes them: one line, safe to print."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def printable(text: str, limit: int) -> str:
    """Clip the text, and replace control characters and lone surrogates by `?`."""
    return "".join(char if char.isprintable() else "?" for char in clip(text, limit))


def printable_lines(text: str, limit: int) -> str:
    """Do as `printable`, and keep the line breaks."""
    return "\n".join(printable(line, limit) for line in clip(text, limit).split("\n"))


def exception_text(error: BaseException) -> str:
    """Return the exception's own text, or an empty one if it cannot make it."""
    try:
        return str(error)
    except Exception:  # its own __str__ is wrong: a second exception would hide the first
        return ""


def exception_line(error: BaseException) -> str:
    """Return type and text of an exception as one line."""
    name, text = type(error).__name__, " ".join(exception_text(error).split())
    return f"{name}: {text}" if text else name
