"""The control plane: pending commands, the controller's newest report and its last decisions. Pure."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence

from wire.scaling import (
    MAX_DECISIONS,
    Command,
    CommandResult,
    ControllerReport,
    DecisionPage,
    DecisionRecord,
    ModelRecord,
    PendingCommand,
    PendingCommands,
)

#: A controller without a report for this long counts as absent.
ABSENT_AFTER_S = 10.0
#: Limit of pending commands. Only people send them, so more indicates a mistake.
MAX_PENDING_COMMANDS = 100


class TooManyCommands(Exception):
    """The number of pending commands has reached `MAX_PENDING_COMMANDS`."""


class ControlPlane:
    """State shared by the scaling routes. Times are seconds on a monotonic clock."""

    def __init__(self) -> None:
        self._report: ControllerReport | None = None
        self._reported_at = 0.0
        self._decisions: deque[DecisionRecord] = deque(maxlen=MAX_DECISIONS)
        #: Why no worker can start, by model, as of the newest report.
        self.start_failures: Mapping[str, str] = {}
        #: Decisions by model and direction, since this program started.
        self.directions: Counter[tuple[str, str]] = Counter()
        self._orders: dict[str, Command] = {}

    def __repr__(self) -> str:
        return f"<ControlPlane {len(self._orders)} orders, {len(self._decisions)} decisions>"

    def report(self, now: float) -> ControllerReport | None:
        """The newest report; None where no controller is there."""
        return self._report if self._report is not None and now - self._reported_at < ABSENT_AFTER_S else None

    def models(self, now: float) -> Mapping[str, ModelRecord]:
        """What the controller says of each model; empty where no controller is there."""
        report = self.report(now)
        return {} if report is None else {model.model: model for model in report.models}

    def cannot_start(self, model: str, now: float) -> str:
        """Why no worker of the model can start, as the controller says; empty if one may."""
        return self.start_failures.get(model, "") if self.report(now) is not None else ""

    def on_report(self, report: ControllerReport, now: float) -> tuple[PendingCommands, Sequence[CommandResult]]:
        """Store a report. Returns the reply and the results of pending commands."""
        self._report, self._reported_at = report, now
        self.start_failures = {model.model: model.cannot_start for model in report.models if model.cannot_start}
        if report.last_decision < self._newest():  # a controller that has lost its count
            self._decisions.clear()
        if report.decisions_after <= self._newest():  # else there are some between: all are sent again
            self._remember(report.decisions)
        done = [obeyed for obeyed in report.command_results if self._orders.pop(obeyed.id, None) is not None]
        orders = [PendingCommand(number, order) for number, order in self._orders.items()]
        return PendingCommands(orders, self._newest()), done

    def order(self, number: str, order: Command) -> None:
        """Queue a command for the controller. Raises `TooManyCommands`."""
        if len(self._orders) >= MAX_PENDING_COMMANDS:
            raise TooManyCommands
        self._orders[number] = order

    def withdraw(self, number: str) -> None:
        """Remove a pending command. Idempotent."""
        self._orders.pop(number, None)

    def page(self, model: str | None, before: int | None, limit: int) -> DecisionPage:
        """The newest decisions, of one model or of all, older than the one of number `before`."""
        found = [
            decision
            for decision in reversed(self._decisions)
            if (model is None or decision.model == model) and (before is None or decision.number < before)
        ]
        return DecisionPage(found[:limit], len(found) > limit)

    def _newest(self) -> int:
        return self._decisions[-1].number if self._decisions else 0

    def _remember(self, decisions: Iterable[DecisionRecord]) -> None:
        for decision in decisions:
            if decision.number > self._newest():  # a report that was sent twice is not counted twice
                self._decisions.append(decision)
                self.directions[decision.model, direction(decision)] += 1


def direction(decision: DecisionRecord) -> str:
    """Which way it goes: `up`, `down`, `stay`, or `none` for want of data."""
    if not decision.valid:
        return "none"
    if decision.desired == decision.provisioned:
        return "stay"
    return "up" if decision.desired > decision.provisioned else "down"
