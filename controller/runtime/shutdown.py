"""Stops every process of an instance."""

from __future__ import annotations

import asyncio
import logging
import time

from controller.launchers import Launcher
from controller.launchers.local import BALANCER
from controller.runtime.console import ServerConsole

log = logging.getLogger("controller")

_WORKERS_STOPPED_BY_S = 8.0
_KILLED_BY_S = 9.5


async def stop_processes(
    launcher: Launcher, console: ServerConsole, balancer_s: float, immediate: asyncio.Event
) -> None:
    """Stop the balancer, which may take `balancer_s` seconds, then the workers; kill all when `immediate` is set."""

    def running() -> set[str]:
        return {child.id for child in launcher.poll().children}

    started = time.monotonic()
    launcher.drain(BALANCER)
    console.busy(None)
    console.line("stopping ...")
    while time.monotonic() < started + balancer_s + 1.0 and not immediate.is_set() and BALANCER in running():
        await asyncio.sleep(0.05)
    if not immediate.is_set():
        for worker in running() - {BALANCER}:
            launcher.drain(worker, immediate=True)
    while time.monotonic() < started + _WORKERS_STOPPED_BY_S and not immediate.is_set() and running():
        await asyncio.sleep(0.05)
    reason = "an immediate stop was requested" if immediate.is_set() else "it did not stop in time"
    for name in running():
        log.warning("killing %s: %s", name, reason)
        launcher.kill(name)
    while running() and time.monotonic() < started + _KILLED_BY_S:
        await asyncio.sleep(0.02)
    console.line("stopped")
