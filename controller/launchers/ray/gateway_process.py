"""The gateway's process as the controller sees it: started again when it ends, and never waited for."""

from __future__ import annotations

import contextlib
import logging
import queue
import re
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from configs.files import open_for_append
from configs.log_files import last_lines
from controller.launchers.ray.messages import EVENTS, Event, GatewayFailed, Order, to_line

log = logging.getLogger("controller")

#: A gateway that says nothing for so long hangs in a call of Ray.
_HANGS_AFTER_S = 45.0
_TAIL_BYTES = 4096
_STACK_FRAME = re.compile(r"\[0x[0-9a-f]+\]|^\*\*\*|StackTrace")
_FIRST_RETRY_S, _MAX_RETRY_S = 1.0, 15.0


class GatewayProcess:
    """Sends orders to the gateway, and receives its events. No method waits."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log_file: Path) -> None:
        self._command = list(command)
        self._environment = dict(environment)
        self._log_file = log_file
        self._process: subprocess.Popen[bytes] | None = None
        self._orders: queue.SimpleQueue[Order | None] = queue.SimpleQueue()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._retry_s = _FIRST_RETRY_S
        self._start_at = float("-inf")
        self._last_event_at = float("-inf")
        #: Whether the gateway has said why it ends.
        self._has_failed = False

    def send(self, order: Order) -> None:
        """Queue the order. It is lost if the gateway ends before."""
        self._orders.put(order)

    def poll(self, now: float) -> list[Event]:
        """Return the events since the last poll. Start the gateway if it does not run."""
        found = []
        with contextlib.suppress(queue.Empty):
            while True:
                found.append(self._events.get_nowait())
        if found:
            self._last_event_at = now
            self._has_failed = isinstance(found[-1], GatewayFailed)
            if not self._has_failed:
                self._retry_s = _FIRST_RETRY_S
        self._supervise(now)
        return found

    def close(self) -> None:
        """End the gateway. Actors and workers go on."""
        self._orders.put(None)
        self._end()
        if self._process is not None:
            self._process.wait()
            self._process = None

    def _supervise(self, now: float) -> None:
        if self._process is not None and self._process.poll() is not None:
            if not self._has_failed:
                self._events.put(GatewayFailed(self._last_words(self._process.returncode), refused=False))
            self._process = None
            self._start_at = now + self._retry_s
            self._retry_s = min(self._retry_s * 2, _MAX_RETRY_S)
        elif self._process is not None and now - self._last_event_at > _HANGS_AFTER_S:
            log.error("the Ray cluster has not answered for %.0f s; connecting again", now - self._last_event_at)
            self._end()
        elif self._process is None and now >= self._start_at:
            self._start(now)

    def _start(self, now: float) -> None:
        try:
            with open_for_append(self._log_file) as log_file:
                process = subprocess.Popen(  # noqa: S603 - our own program
                    self._command,
                    env=self._environment,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log_file,
                    start_new_session=True,
                )
        except OSError as error:
            self._start_at = now + _MAX_RETRY_S
            self._events.put(GatewayFailed(f"{self._command[0]} cannot be run: {error.strerror}", refused=True))
            return
        self._process, self._last_event_at, self._has_failed = process, now, False
        # Orders to an earlier gateway are void: what it has not done is seen from the list of actors.
        self._orders.put(None)
        self._orders = queue.SimpleQueue()
        for target, args in ((_write, (process, self._orders)), (_read, (process, self._events))):
            threading.Thread(target=target, args=args, name="ray gateway", daemon=True).start()

    def _last_words(self, status: int) -> str:
        """Return why the gateway has ended, as far as its log says."""
        lines = reversed(last_lines(self._log_file, _TAIL_BYTES))
        # A failed check in Ray ends with the frames of its stack.
        last = next((line for line in lines if line.strip() and not _STACK_FRAME.search(line)), "")
        if found := re.search(r"No module named '(\w+)", last):
            return (
                f"{self._command[0]} lacks the package {found[1]}: install it there ({self._command[0]} -m pip install "
                f"{found[1]}), or set ray.python to an interpreter that has Ray"
            )
        return f"its program has ended with status {status}: {last or 'its log is empty'}"

    def _end(self) -> None:
        if self._process is not None:
            self._process.kill()


def _write(process: subprocess.Popen[bytes], orders: queue.SimpleQueue[Order | None]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError, ValueError), process.stdin as pipe:
        while (order := orders.get()) is not None:
            pipe.write(to_line(order))
            pipe.flush()


def _read(process: subprocess.Popen[bytes], events: queue.SimpleQueue[Event]) -> None:
    assert process.stdout is not None
    with contextlib.suppress(OSError, ValueError), process.stdout as pipe:
        for line in pipe:
            try:
                events.put(EVENTS.decode(line))
            except msgspec.MsgspecError as error:
                log.warning("an event of the Ray gateway is not understood: %s", error)
