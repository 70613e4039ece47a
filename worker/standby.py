"""Waits as a spare: everything is loaded that needs no device, until the controller names one.

Touches no device and knows no balancer. A spare whose controller is gone, and not followed by another, ends.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

import psutil

from configs.paths import StandbyFiles

#: The controller's sign that the order is there. It is looked for as often anyway: a sign may be lost.
CALLED = signal.SIGUSR2
_LOOK_EVERY_S = 0.5
_ENDS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Dismissed(Exception):
    """The spare is not needed any more; the text says why."""


class Called(NamedTuple):
    """A spare's order."""

    device: str
    #: Unix time at which it was written.
    at: float


def keep_calm() -> None:
    """Let the sign wait until somebody looks for it. Called before anything that takes time."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {CALLED})


def wait(files: StandbyFiles, controller: Path, orphan_after_s: float) -> Called:
    """Say that this spare is ready and wait for its order. Raises `Dismissed` where it is told to go, or forgotten.

    `controller` is the file with the controller's process id; without it there is nobody to miss.
    """
    for signum in _ENDS:
        signal.signal(signum, _go)
    files.ready.touch()
    missed_since: float | None = None
    while (called := _order(files)) is None:
        signal.sigtimedwait({CALLED}, _LOOK_EVERY_S)
        now = time.monotonic()
        missed_since = None if _lives(controller) else missed_since or now
        if missed_since is not None and now - missed_since > orphan_after_s:
            raise Dismissed(f"no controller for {orphan_after_s:g} s")
        if not files.ready.exists():
            raise Dismissed("nobody knows it any more")
    # From here on it is a worker that starts: a signal ends it at once.
    for signum in _ENDS:
        signal.signal(signum, signal.SIG_DFL)
    return called


def _order(files: StandbyFiles) -> Called | None:
    try:
        return Called(files.device.read_text(encoding="ascii").strip(), files.device.stat().st_mtime)
    except FileNotFoundError:
        return None


def _lives(controller: Path) -> bool:
    try:
        return psutil.pid_exists(int(controller.read_text(encoding="ascii")))
    except FileNotFoundError:
        return True
    except ValueError:
        return False


def _go(signum: int, frame: object) -> NoReturn:
    del frame
    raise Dismissed(f"told by {signal.Signals(signum).name}")
