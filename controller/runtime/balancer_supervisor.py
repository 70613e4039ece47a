"""Seeing to it that there is a balancer."""

from __future__ import annotations

import dataclasses
import logging

from configs.cli import EXIT_USAGE
from controller.launchers.local import BALANCER, LocalLauncher
from controller.planning.plan import after_exit, one_more
from controller.planning.scale_down import DRAIN_GRACE_S
from controller.types import Child, Crashes, Exit

log = logging.getLogger("controller")


class BalancerStartupError(Exception):
    """The balancer cannot start at all; the text is the end of its log."""


class BalancerSupervisor:
    """Starts the balancer, and starts it again when it has died."""

    def __init__(self, launcher: LocalLauncher, shutdown_s: float) -> None:
        """`shutdown_s` is how long it may take to go when it is told to."""
        self._launcher = launcher
        self._shutdown_s = shutdown_s
        self._crashes = Crashes()
        #: Whether it has served, or one that was adopted: then a refusal to start is not the user's mistake any more,
        #: but is tried again. What an earlier one leaves behind may be in its way for a while.
        self.served = False
        self._started = False

    def have(self, child: Child | None, now: float) -> None:
        """Start it if there is none; end an adopted one that was told to go and does not."""
        if child is not None:
            self._found()
            if child.drained_at is not None and now - child.drained_at > self._shutdown_s + DRAIN_GRACE_S:
                self._launcher.kill(BALANCER)
        elif now >= self._crashes.retry_at:
            try:
                self._launcher.start_balancer()
                self._started = True
            except OSError as error:
                self._crashes = one_more(self._crashes, now)
                log.error("the balancer cannot be started: %s", error)

    def died(self, ended: Exit) -> None:
        """Take in that it has ended. Raises `BalancerStartupError`."""
        self._found()
        if ended.child.drained_at is not None:
            log.info("the balancer is gone (%s), as it was told; starting it again", describe_exit(ended))
            return
        if ended.status == EXIT_USAGE and not self.served:
            raise BalancerStartupError(ended.tail)
        lived = ended.at - ended.child.started_at
        serving = dataclasses.replace(ended.child, ready_at=ended.child.started_at)
        self._crashes, _ = after_exit(self._crashes, dataclasses.replace(ended, child=serving))
        log.error("the balancer died (%s) after %.0f s; starting it again\n%s", describe_exit(ended), lived, ended.tail)

    def _found(self) -> None:
        """There is one, or was: adopted where none has been started here."""
        self.served = self.served or not self._started


def describe_exit(ended: Exit) -> str:
    """How a process ended, in words."""
    if ended.status is None:
        return "exit status unknown"
    return f"signal {-ended.status}" if ended.status < 0 else f"exit status {ended.status}"
