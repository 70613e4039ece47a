"""Starts the balancer process, and restarts it when it exits."""

from __future__ import annotations

import dataclasses
import logging

from configs.cli import EXIT_USAGE
from controller.launchers.local import BALANCER, LocalLauncher
from controller.planning.crash_backoff import after_exit, record_crash
from controller.planning.scale_down import DRAIN_GRACE_S
from controller.types import CrashBackoff
from host.types import Exit, WorkerProcess

log = logging.getLogger("controller")


class BalancerStartupError(Exception):
    """The balancer rejects its configuration. The text is the end of its log."""


class BalancerSupervisor:
    """Keeps one balancer process running."""

    def __init__(self, launcher: LocalLauncher, shutdown_s: float) -> None:
        """`shutdown_s` is the time that the balancer may take to stop."""
        self._launcher = launcher
        self._shutdown_s = shutdown_s
        self._crashes = CrashBackoff()
        self._started = False
        #: True if this balancer or an adopted one has served. A later start-up error is then retried, as it may be
        #: caused by what an earlier process left behind.
        self.has_served = False

    def mark_served(self) -> None:
        self.has_served = True

    def ensure_running(self, child: WorkerProcess | None, now: float) -> None:
        """Start the balancer if there is none; kill an adopted one that was drained and does not stop."""
        if child is not None:
            self.has_served |= not self._started  # it was adopted
            if child.drained_at is not None and now - child.drained_at > self._shutdown_s + DRAIN_GRACE_S:
                self._launcher.kill(BALANCER)
        elif now >= self._crashes.retry_at:
            try:
                self._launcher.start_balancer()
                self._started = True
            except OSError as error:
                self._crashes = record_crash(self._crashes, now)
                log.error("the balancer cannot be started: %s", error)

    def on_exit(self, ended: Exit) -> None:
        """Handle an exit of the balancer. Raises `BalancerStartupError`."""
        self.has_served |= not self._started
        if ended.process.drained_at is not None:
            log.info("the drained balancer has exited (%s); starting it again", describe_exit(ended))
            return
        if ended.status == EXIT_USAGE and not self.has_served:
            raise BalancerStartupError(ended.tail)
        lived = ended.at - ended.process.started_at
        serving = dataclasses.replace(ended.process, ready_at=ended.process.started_at)
        self._crashes, _ = after_exit(self._crashes, dataclasses.replace(ended, process=serving))
        log.error("the balancer died (%s) after %.0f s; starting it again\n%s", describe_exit(ended), lived, ended.tail)


def describe_exit(ended: Exit) -> str:
    """Return the exit status or signal in words."""
    if ended.status is None:
        return ended.lost_reason or "exit status unknown"
    return f"signal {-ended.status}" if ended.status < 0 else f"exit status {ended.status}"
