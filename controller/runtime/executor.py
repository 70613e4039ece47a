"""Doing what was planned: starting, calling, draining and ending workers. A start that fails is the brain's to know."""

from __future__ import annotations

import logging
import secrets
import time

from controller.autoscaler.autoscaler import Brain
from controller.launchers import Launcher
from controller.types import Action, Activate, Drain, Kill, Start, StartSpare

log = logging.getLogger("controller")


class Executor:
    """Carries out actions, and says why."""

    def __init__(self, launcher: Launcher, brain: Brain) -> None:
        self._launcher = launcher
        self._brain = brain

    def act(self, action: Action) -> None:
        """Do it. Returns at once."""
        match action:
            case Start(model, device, reason):
                self._start(model, device, reason)
            case StartSpare(model, kind, reason):
                self._start_spare(model, kind, reason)
            case Activate(worker, model, device, reason):
                log.info("calling spare %s to %s: %s", worker, device, reason)
                try:
                    self._launcher.activate(worker, device)
                except OSError as error:
                    self._brain.failed_to_start(model, time.monotonic())
                    log.error("spare %s cannot be called: %s", worker, error)
            case Drain(worker, reason):
                log.info("draining worker %s: %s", worker, reason)
                self._launcher.drain(worker)
            case Kill(worker, reason):
                log.error("killing worker %s: %s", worker, reason)
                self._launcher.kill(worker)

    def _start(self, model: str, device: str, reason: str) -> None:
        name = _new_name(model)
        log.info("starting worker %s on %s: %s", name, device, reason)
        try:
            self._launcher.start(name, model, device)
        except OSError as error:
            self._brain.failed_to_start(model, time.monotonic())
            log.error("worker %s cannot be started: %s", name, error)

    def _start_spare(self, model: str, kind: str, reason: str) -> None:
        name = _new_name(model)
        log.info("starting spare %s: %s", name, reason)
        try:
            self._launcher.start_spare(name, model, kind)
        except OSError as error:
            self._brain.failed_to_start(model, time.monotonic(), spare=True)
            log.error("spare %s cannot be started: %s", name, error)


def _new_name(model: str) -> str:
    return f"{model}-{secrets.token_hex(3)}"
