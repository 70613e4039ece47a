"""Logs scaling decisions: a change of the number of workers at `info`, a confirmation at `debug`."""

from __future__ import annotations

import logging

from controller.autoscaler.autoscaler import DecisionEvent

log = logging.getLogger("controller")


class DecisionLogger:
    """Remembers the last change of each model, so that a repeated decision is logged at `debug`."""

    def __init__(self) -> None:
        #: The numbers of workers before and after the last decision.
        self._logged: dict[str, tuple[int, int]] = {}

    def log(self, event: DecisionEvent) -> None:
        """Log the decision with its inputs."""
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
            # The first decision is logged even so: an earlier controller may have left the workers.
            level = logging.DEBUG if model in self._logged else logging.INFO
            log.log(level, "%s: stays at %d workers: %s", model, decision.desired, reason)
        else:
            level = logging.DEBUG if change == self._logged.get(model) else logging.INFO
            log.log(level, "%s: %d -> %d workers: %s", model, current, decision.desired, reason)
        self._logged[model] = change
