"""Limits how often the same message about a model is logged. Pure."""

from __future__ import annotations

from collections.abc import Mapping

#: A message of one model and key is logged at most once in this time, however often it comes and goes.
REPEAT_AFTER_S = 300.0


class LogThrottle:
    """Suppresses repeated messages. Two messages of a model are repetitions if their keys are equal."""

    def __init__(self) -> None:
        #: The key that was logged last, for each model that still has a message.
        self._last_key: dict[str, str] = {}
        self._logged_at: dict[tuple[str, str], float] = {}

    def __repr__(self) -> str:
        return f"<LogThrottle of {', '.join(self._last_key) or 'no model'}, {len(self._logged_at)} logged>"

    def filter(self, messages: Mapping[str, tuple[str, str]], now: float) -> dict[str, str]:
        """Return the texts to log by model. `messages` maps every model that has one to its key and text."""
        self._logged_at = {each: at for each, at in self._logged_at.items() if now - at < REPEAT_AFTER_S}
        self._last_key = {model: key for model, key in self._last_key.items() if model in messages}
        new = {}
        for model, (key, text) in messages.items():
            if key != self._last_key.get(model) and (model, key) not in self._logged_at:
                new[model] = text
                self._last_key[model] = key
                self._logged_at[model, key] = now
        return new
