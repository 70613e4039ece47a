"""What signals mean: stop, hurry, or read the configuration again."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable

log = logging.getLogger("controller")

#: A shell that ends takes its terminal away a moment after it has said so.
_TERMINAL_GONE_WITHIN_S = 0.3


class Terminal:
    """The terminal that this process had when it began."""

    def __init__(self) -> None:
        self._files = [number for number in (0, 1, 2) if _is_terminal(number)]
        self._controlling = _has_controlling()

    @property
    def gone(self) -> bool:
        """There was one, and it is there no more."""
        return (self._controlling and not _has_controlling()) or not all(map(_is_terminal, self._files))


def install_signal_handlers(terminal: Terminal, stop: Callable[[], None], reload: Callable[[], None]) -> None:
    """Have the running event loop call `stop` at each signal to stop, and `reload` at SIGHUP.

    The SIGHUP of a terminal that is closed is a signal to stop; where it came ignored, as under nohup, it stays so.
    """
    loop = asyncio.get_running_loop()

    def hung_up() -> None:
        if terminal.gone:
            stop()
        else:
            loop.call_later(_TERMINAL_GONE_WITHIN_S, stop_or_reload)

    def stop_or_reload() -> None:
        if terminal.gone:
            stop()
        else:
            log.info("SIGHUP: reading the configuration again")
            reload()

    # SIGINT counts even where it came ignored: every background job of a shell starts so, and can still be stopped.
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, hung_up)


def _is_terminal(number: int) -> bool:
    with contextlib.suppress(OSError):
        return os.isatty(number)
    return False


def _has_controlling() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
