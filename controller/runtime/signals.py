"""Signal handlers of the controller: stop, stop at once, reload the configuration."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable

log = logging.getLogger("controller")

#: A closing terminal sends SIGHUP shortly before it disappears.
_TERMINAL_CLOSE_S = 0.3


class Terminal:
    """The terminal that this process was started from."""

    def __init__(self) -> None:
        self._files = [number for number in (0, 1, 2) if os.isatty(number)]
        self._controlling = _has_controlling_terminal()

    @property
    def is_closed(self) -> bool:
        """True if there was a terminal and it no longer exists."""
        return (self._controlling and not _has_controlling_terminal()) or not all(map(os.isatty, self._files))


def install_signal_handlers(terminal: Terminal, stop: Callable[[], None], reload: Callable[[], None]) -> None:
    """Have the running event loop call `stop` at SIGINT and SIGTERM, twice at SIGQUIT, and `reload` at SIGHUP.

    SIGUSR1 and SIGUSR2, which some tools for log files send, change nothing.

    The SIGHUP of a closed terminal means stop. If the parent ignores SIGHUP (nohup), it stays ignored.
    """
    loop = asyncio.get_running_loop()

    def on_hangup() -> None:
        if terminal.is_closed:
            stop()
        else:
            loop.call_later(_TERMINAL_CLOSE_S, stop_or_reload)

    def stop_or_reload() -> None:
        if terminal.is_closed:
            stop()
        else:
            log.info("SIGHUP: reading the configuration again")
            reload()

    def stop_immediately() -> None:
        stop()
        stop()

    # SIGINT is handled even if the parent ignores it: shells start background jobs with SIGINT ignored.
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop)
    # The default action would end this process alone, and leave the others running.
    loop.add_signal_handler(signal.SIGQUIT, stop_immediately)
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        loop.add_signal_handler(signum, log.info, "%s is ignored", signum.name)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, on_hangup)


def _has_controlling_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True
