"""The last decisions: kept for the report, and logged without repetition.

The log has changes at `info`, confirmations at `debug`, and each blocked reason once.
"""

from __future__ import annotations

import logging
import sys
from collections import deque
from collections.abc import Mapping
from typing import Any

from configs.text import printable
from controller.autoscaler.autoscaler import DecisionEvent
from controller.planning.plan import Blocked
from controller.runtime.report import MAX_TEXT
from wire.scaling import MAX_DECISIONS, MAX_DECISIONS_PER_REPORT, DecisionRecord

log = logging.getLogger("controller")

_MAX_NAME, _MAX_INPUTS = 100, 50
_MAX_FLOAT = sys.float_info.max
#: A message of one model and key is logged at most once in this time, however often it comes and goes.
REPEAT_AFTER_S = 300.0


class DecisionLog:
    """The last decisions, numbered without gaps."""

    def __init__(self, last: int = 0) -> None:
        """`last` is the number of the last decision of an earlier controller."""
        self.last = last
        self._records: deque[DecisionRecord] = deque(maxlen=MAX_DECISIONS)
        #: The last one of each model.
        self.latest: dict[str, DecisionRecord] = {}
        #: By model: the numbers of workers before and after the last decision that was logged.
        self._logged: dict[str, tuple[int, int]] = {}
        self._blocked = LogThrottle()

    def add(self, event: DecisionEvent, wall: float) -> None:
        """Keep and log a decision made at `wall`, in Unix seconds. Its text is clipped, and its numbers are finite."""
        self.last += 1
        decision = event.decision
        numbers = _numbers(decision.inputs)
        self.latest[event.model] = record = DecisionRecord(
            number=self.last,
            time=wall,
            model=event.model,
            trigger=event.trigger,
            provisioned=event.observation.provisioned,
            ready=sum(replica.serves for replica in event.observation.replicas),
            desired=decision.desired,
            valid=decision.valid,
            reason=printable(decision.reason, MAX_TEXT),
            inputs=dict(numbers[:_MAX_INPUTS]),
        )
        self._records.append(record)
        self._log(event, record.inputs)

    def _log(self, event: DecisionEvent, numbers: Mapping[str, float]) -> None:
        model, current, decision = event.model, event.observation.provisioned, event.decision
        if event.failure:
            log.error("%s: %s\n%s", model, decision.reason, event.failure)
            return
        if not decision.valid:
            log.debug("%s: no decision: %s", model, decision.reason)
            return
        inputs = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
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

    def after(self, number: int) -> tuple[DecisionRecord, ...]:
        """Return the oldest decisions above this number, at most `MAX_DECISIONS_PER_REPORT`."""
        newer = [record for record in self._records if record.number > number]
        return tuple(newer[:MAX_DECISIONS_PER_REPORT])

    def log_blocked(self, models: Mapping[str, Blocked], now: float) -> None:
        """Log why models have fewer workers than decided."""
        messages = {model: (blocked.kind, blocked.reason) for model, blocked in models.items()}
        for model, reason in self._blocked.filter(messages, now).items():
            log.warning("%s: %s", model, reason)


def _numbers(inputs: Mapping[Any, Any]) -> list[tuple[str, float]]:
    """Return the inputs that can be reported. A custom policy may give anything."""
    return [
        (printable(name[:_MAX_NAME], _MAX_NAME), float(value))
        for name, value in inputs.items()
        if isinstance(name, str) and isinstance(value, int | float) and -_MAX_FLOAT <= value <= _MAX_FLOAT
    ]


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
