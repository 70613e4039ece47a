"""Executes a plan: starts, activates, drains and kills workers, and reports failed starts to the autoscaler."""

from __future__ import annotations

import dataclasses
import logging
import secrets
import time
from collections import Counter
from collections.abc import Mapping, Sequence

from configs.devices import machine_of
from controller.autoscaler.autoscaler import Autoscaler
from controller.launchers.machines import MachinesLauncher
from controller.planning.plan import Plan
from controller.types import Action, Activate, Drain, Kill, Start

log = logging.getLogger("controller")


class Executor:
    """Executes the actions of plans and logs the reason of each.

    At most `max_starting` processes start at once on each machine: each one imports libraries and reads weights.
    """

    def __init__(self, launcher: MachinesLauncher, autoscaler: Autoscaler, max_starting: int) -> None:
        self._launcher = launcher
        self._autoscaler = autoscaler
        self._max_starting = max_starting
        self._is_waiting = False

    def apply(self, plan: Plan, starting: Mapping[str, int]) -> None:
        """Execute all actions without waiting for their effects. `starting`: processes that start already, by machine.

        Starts beyond the limit are left to a later plan.
        """
        actions, waiting = bounded_starts(plan.actions, self._max_starting, starting)
        if waiting and not self._is_waiting:
            limit = f"at most {self._max_starting} start at once on a machine (workers.max_starting)"
            log.info("%d workers wait until others have started: %s", waiting, limit)
        self._is_waiting = bool(waiting)
        for action in actions:
            try:
                self._execute(action)
            except OSError as error:
                if not isinstance(action, Start | Activate):
                    raise
                spare = isinstance(action, Start) and action.standby
                reason = f"its worker process cannot be started: {error}"
                self._autoscaler.on_start_failed(action.model, time.monotonic(), reason, spare=spare)
                log.error("%s: the worker cannot be started: %s", action.model, error)

    def _execute(self, action: Action) -> None:
        """Raises `OSError` if a process cannot be started."""
        match action:
            case Start(model, device, reason, standby):
                name = self._launcher.worker_name(device, _new_name(model))
                log.info("starting %s: %s", f"standby {name}" if standby else f"worker {name} on {device}", reason)
                self._launcher.start(name, model, device, standby=standby)
            case Activate(worker, _, device, reason):
                log.info("activating standby %s on %s: %s", worker, device, reason)
                self._launcher.activate(worker, device)
            case Drain(worker, reason):
                log.info("draining worker %s: %s", worker, reason)
                self._launcher.drain(worker)
            case Kill(worker, reason):
                log.error("killing worker %s: %s", worker, reason)
                self._launcher.kill(worker)


def bounded_starts(actions: Sequence[Action], limit: int, starting: Mapping[str, int]) -> tuple[list[Action], int]:
    """Return the actions with the first starts of each machine up to the limit, and how many starts are left out.

    `starting` is the number of processes that start already, by machine.
    """
    started, allowed = Counter(starting), []
    for action in actions:
        if isinstance(action, Start):
            machine = machine_of(action.device)
            if started[machine] >= limit:
                continue
            started[machine] += 1
        allowed.append(action)
    return allowed, len(actions) - len(allowed)


def only_kills(plan: Plan) -> Plan:
    """Return the plan without the actions that need the data directory, and without drains.

    What is drained could not be replaced.
    """
    return dataclasses.replace(plan, actions=[action for action in plan.actions if isinstance(action, Kill)])


def _new_name(model: str) -> str:
    return f"{model.replace('/', '-')}-{secrets.token_hex(3)}"
