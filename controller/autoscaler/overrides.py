"""Manual overrides of scaling: numbers of workers, a pause, a restart of workers. Pure.

An overridden number stays within the model's `min_workers` and `max_workers`, which a reload changes at once. A pause
stops decisions only: dead workers are still replaced, and overrides remain. Times are Unix seconds, so that a restart
does not change when an override ends.
"""

from __future__ import annotations

import datetime
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from controller.types import Decision, WorkerLimits
from wire.scaling import MAX_HOLD_S, Pause, Resume, Scale


class InvalidCommand(Exception):
    """The command is rejected; the text gives the reason, `param` the wrong parameter."""

    def __init__(self, text: str, param: str | None = None) -> None:
        super().__init__(text)
        self.param = param


@dataclass(frozen=True, slots=True)
class Override:
    """A manual number of workers, and its end in Unix seconds."""

    workers: int
    until: float


@dataclass(frozen=True, slots=True)
class Overrides:
    """All overrides in force."""

    holds: Mapping[str, Override] = field(default_factory=dict)
    #: Start of the pause; None without one.
    paused_since: float | None = None
    #: Workers started before this time are replaced, by model.
    renew_before: Mapping[str, float] = field(default_factory=dict)
    #: Workers to replace, by name.
    renew_workers: frozenset[str] = frozenset()


def apply_command(
    current: Overrides, command: Scale | Pause | Resume, limits: Mapping[str, WorkerLimits], now: float
) -> Overrides:
    """Return the overrides after the command. Raises `InvalidCommand`."""
    match command:
        case Scale(model, workers, hold_s):
            _check(model, workers, limits)
            return replace(current, holds={**current.holds, model: Override(workers, now + hold_s)})
        case Pause():
            return replace(current, paused_since=now if current.paused_since is None else current.paused_since)
        case Resume(None):
            return replace(current, holds={}, paused_since=None)
        case Resume(model):
            return replace(current, holds={name: hold for name, hold in current.holds.items() if name != model})


def request_restart(current: Overrides, models: Collection[str], served: Collection[str], now: float) -> Overrides:
    """Request new workers for these models. Raises `InvalidCommand`."""
    for model in models:
        _check_served(model, served, "models")
    return replace(current, renew_before={**current.renew_before, **dict.fromkeys(models, now)})


def request_worker_restart(current: Overrides, worker: str, workers: Collection[str]) -> Overrides:
    """Request a new worker in place of this one. `workers` are those that run; others are forgotten.

    Raises `InvalidCommand`.
    """
    check_worker(worker, workers)
    return replace(current, renew_workers=(current.renew_workers & frozenset(workers)) | {worker})


def check_worker(worker: str, workers: Collection[str]) -> None:
    """Raises `InvalidCommand` unless it is one of those that the controller runs."""
    if worker not in workers:
        known = f"its workers: {', '.join(sorted(workers))}" if workers else "it runs none"
        raise InvalidCommand(f"the controller runs no worker that is named {worker}; {known}", "worker")


def active_overrides(current: Overrides, limits: Mapping[str, WorkerLimits], now: float) -> Overrides:
    """Return the overrides that have not ended, of present models, within the present bounds.

    The system clock may have been ahead when they were made: none lasts longer than a command can ask for, and workers
    that start from now on are not replaced.
    """
    holds = {
        name: Override(
            min(max(hold.workers, limits[name].min_workers), limits[name].max_workers),
            min(hold.until, now + MAX_HOLD_S),
        )
        for name, hold in current.holds.items()
        if now < hold.until and name in limits
    }
    before = {name: min(at, now) for name, at in current.renew_before.items() if name in limits}
    return replace(current, holds=holds, renew_before=before)


def override_decision(hold: Override) -> Decision:
    """Return the override as a decision."""
    until = datetime.datetime.fromtimestamp(hold.until, datetime.UTC)
    return Decision(hold.workers, f"held at {hold.workers} by command until {until:%Y-%m-%d %H:%M:%S} UTC")


def _check(model: str, workers: int, limits: Mapping[str, WorkerLimits]) -> None:
    _check_served(model, limits, "model")
    own = limits[model]
    if not own.min_workers <= workers <= own.max_workers:
        text = f"{model} may have {own.min_workers} to {own.max_workers} workers (min_workers, max_workers)"
        raise InvalidCommand(f"{workers} workers: {text}", "workers")


def _check_served(model: str, served: Collection[str], param: str) -> None:
    if model not in served:
        raise InvalidCommand(f"no model is named {model}; served: {', '.join(served)}", param)
