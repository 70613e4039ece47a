"""Logs scaling decisions without repetition: changes at `info`, confirmations at `debug`, each blocked reason once."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from controller.autoscaler.autoscaler import DecisionEvent, TickResult

log = logging.getLogger("controller")

#: A message of one model and key is logged at most once in this time, however often it comes and goes.
REPEAT_AFTER_S = 300.0


class DecisionLogger:
    """Remembers the last change of each model, so that a repeated decision is logged at `debug`."""

    def __init__(self) -> None:
        #: The numbers of workers before and after the last decision.
        self._logged: dict[str, tuple[int, int]] = {}
        self._blocked = LogThrottle()

    def log(self, result: TickResult, now: float) -> None:
        """Log the decisions of a tick with their inputs, and why starts are blocked."""
        for event in result.decided:
            self._log_decision(event)
        blocked = {model: (blocked.kind, blocked.reason) for model, blocked in result.plan.blocked.items()}
        for model, reason in self._blocked.filter(blocked, now).items():
            log.warning("%s: %s", model, reason)

    def _log_decision(self, event: DecisionEvent) -> None:
        model, current, decision = event.model, event.observation.provisioned, event.decision
        if event.failure:
            log.error("%s: %s\n%s", model, decision.reason, event.failure)
            return
        if not decision.valid:
            log.debug("%s: no decision: %s", model, decision.reason)
            return
        inputs = ", ".join(f"{name} {value:.4g}" for name, value in decision.inputs.items())
        reason = f"{decision.reason}{inputs and f' [{inputs}]'}"
        change = (current, decision.desired)
        if decision.desired == current:
            # The first decision is logged even without a change: an earlier controller may have left the workers.
            level = logging.DEBUG if model in self._logged else logging.INFO
            log.log(level, "%s: stays at %d workers: %s", model, decision.desired, reason)
        else:
            level = logging.DEBUG if change == self._logged.get(model) else logging.INFO
            log.log(level, "%s: %d -> %d workers: %s", model, current, decision.desired, reason)
        self._logged[model] = change


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
