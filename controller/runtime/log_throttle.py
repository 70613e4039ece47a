"""When to say again that a model lacks workers, and why. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

#: The same is said of a model once in so long, however often it goes and comes back.
REPEAT_AFTER_S = 300.0
_NUMBER = re.compile(r"\d+(\.\d+)?")


class LogThrottle:
    """What has been said of each model's obstacles. Two are of one kind where only their numbers differ."""

    def __init__(self) -> None:
        #: The kind that was said last, of those models that it still holds up.
        self._standing: dict[str, str] = {}
        #: When each was said, by model and kind.
        self._said: dict[tuple[str, str], float] = {}

    def __repr__(self) -> str:
        return f"<LogThrottle of {', '.join(self._standing) or 'no model'}, {len(self._said)} said of late>"

    def news(self, present: Mapping[str, str], now: float) -> dict[str, str]:
        """Of the obstacles that are there now, by model, those to be said: of another kind than was said last."""
        self._said = {each: at for each, at in self._said.items() if now - at < REPEAT_AFTER_S}
        self._standing = {model: kind for model, kind in self._standing.items() if model in present}
        fresh = {}
        for model, text in present.items():
            kind = _NUMBER.sub("#", text)
            if kind != self._standing.get(model) and (model, kind) not in self._said:
                fresh[model] = text
                self._standing[model] = kind
                self._said[model, kind] = now
        return fresh
