"""Structured output: which tokens may come next."""

from __future__ import annotations

from typing import Any, Protocol


class Grammar(Protocol):
    """What one text must match."""

    def fill_mask(self, bitmask: Any, row: int) -> None:
        """Set the bits of the tokens that may come next in a row of `bitmask`.

        `bitmask`: int32 tensor on the CPU of shape [rows, ceil(tokens / 32)], the lowest bit first.
        """

    def accept(self, token: int) -> None:
        """Take in the next token. Raises `TaskError` for one that may not come."""
