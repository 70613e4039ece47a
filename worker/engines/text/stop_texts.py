"""Ends a text before the first stop text in it, and holds back what may be the start of one."""

from __future__ import annotations

from collections.abc import Sequence


class StopTexts:
    """Looks for stop texts in a text that comes in pieces. How it is cut into pieces makes no difference."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stop for stop in stops if stop)
        self._held = ""

    def accept(self, piece: str) -> tuple[str, str | None]:
        """Return what can be sent, and the stop text that ends it.

        The first to be complete ends it; of several that end together, the longest.
        """
        text = self._held + piece
        found = [(start + len(stop), start, stop) for stop in self._stops if (start := text.find(stop)) >= 0]
        if found:
            _, start, stop = min(found)
            self._held = ""
            return text[:start], stop
        held = self._held_length(text)
        self._held = text[len(text) - held :]
        return text[: len(text) - held], None

    def flush(self) -> str:
        """Return the text that was held back: no more follows."""
        held, self._held = self._held, ""
        return held

    def _held_length(self, text: str) -> int:
        """Return the length of the longest end of the text that a stop text begins with."""
        bound = min(max((len(stop) for stop in self._stops), default=1) - 1, len(text))
        for length in range(bound, 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops if len(stop) > length):
                return length
        return 0
