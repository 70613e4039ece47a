"""What each signal does to the controller, with a real process."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from scripts.harness.processes import PATIENCE_S, child_process

PROGRAM = """
import asyncio, sys
from controller.runtime.signals import Terminal, install_signal_handlers

async def main():
    stopped = asyncio.Event()
    install_signal_handlers(Terminal(), lambda: (print("stop", flush=True), stopped.set()), lambda: None)
    print("ready", flush=True)
    await stopped.wait()

asyncio.run(main())
"""


@pytest.mark.parametrize(
    ("signals", "said"),
    [
        ([signal.SIGTERM], ["stop"]),
        ([signal.SIGQUIT], ["stop", "stop"]),
        ([signal.SIGUSR1, signal.SIGUSR2, signal.SIGPIPE, signal.SIGTERM], ["stop"]),
    ],
)
def test_signals_stop_or_change_nothing(signals: list[signal.Signals], said: list[str]) -> None:
    """A controller that a signal ends alone leaves the rest of the server running."""
    with child_process([sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        for signum in signals:
            process.send_signal(signum)
        assert process.stdout.read().split() == said
        assert process.wait(PATIENCE_S) == 0
