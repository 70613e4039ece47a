"""Finds which tokens a part of a text was made of, among those that have come. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from wire.text import TokenLogprob


class WaitingTokens:
    """Tokens whose text was not taken yet."""

    def __init__(self) -> None:
        self._tokens: list[TokenLogprob] = []

    def add(self, tokens: Iterable[TokenLogprob]) -> None:
        self._tokens += tokens

    def take(self, text: str) -> Sequence[TokenLogprob]:
        """Remove the tokens up to the end of the first such text, and return those that are part of it.

        Tokens before it are marks, or space that nobody gets. A text that is not found takes none.
        """
        if not self._tokens or not text:
            return ()
        joined, wanted = b"".join(each.token for each in self._tokens), text.encode(errors="replace")
        start = joined.find(wanted)
        if start < 0:
            return ()
        end, place, first = start + len(wanted), 0, 0
        for number, each in enumerate(self._tokens):
            place += len(each.token)
            if place <= start:
                first = number + 1
            if place >= end:
                found, self._tokens = self._tokens[first : number + 1], self._tokens[number + 1 :]
                return found
        return ()
