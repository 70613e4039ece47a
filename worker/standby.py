"""A standby worker waits, with everything loaded that needs no device, until the controller assigns it a device.

It uses no device and has no connection to the balancer. It exits when its controller is gone and none replaces it.
"""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import NamedTuple, NoReturn

import psutil

from configs.paths import StandbyFiles

#: The controller sends it when the activation file is written. The file is polled as well, since a signal may be lost.
ACTIVATION_SIGNAL = signal.SIGUSR2
_POLL_EVERY_S = 0.5
_END_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StandbyCancelled(Exception):
    """The standby worker must exit; the text gives the reason."""


class Activation(NamedTuple):
    """The controller's order to serve."""

    device: str
    #: Unix time at which it was written.
    written_at: float


def block_activation_signal() -> None:
    """Keep the signal pending until `wait_for_activation`. Called before anything that takes time."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {ACTIVATION_SIGNAL})


def wait_for_activation(files: StandbyFiles, controller: Path, orphan_after_s: float) -> Activation:
    """Mark this worker ready and wait for its device. Raises `StandbyCancelled`.

    `controller` is the file with the controller's process id. If it does not exist, no controller is expected.
    """
    for signum in _END_SIGNALS:
        signal.signal(signum, _cancel)
    files.ready.touch()
    missing_since: float | None = None
    while (activation := _read_activation(files)) is None:
        signal.sigtimedwait({ACTIVATION_SIGNAL}, _POLL_EVERY_S)
        now = time.monotonic()
        missing_since = None if _is_controller_alive(controller) else missing_since or now
        if missing_since is not None and now - missing_since > orphan_after_s:
            raise StandbyCancelled(f"no controller for {orphan_after_s:g} s")
        if not files.ready.exists():
            raise StandbyCancelled("its ready file was removed")
    # From here on this is a worker that starts: a signal ends it at once.
    for signum in _END_SIGNALS:
        signal.signal(signum, signal.SIG_DFL)
    return activation


def _read_activation(files: StandbyFiles) -> Activation | None:
    try:
        return Activation(files.device.read_text(encoding="ascii").strip(), files.device.stat().st_mtime)
    except FileNotFoundError:
        return None


def _is_controller_alive(controller: Path) -> bool:
    try:
        return psutil.pid_exists(int(controller.read_text(encoding="ascii")))
    except FileNotFoundError:
        return True
    except ValueError:
        return False


def _cancel(signum: int, frame: object) -> NoReturn:
    del frame
    raise StandbyCancelled(f"signal {signal.Signals(signum).name}")
