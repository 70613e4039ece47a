"""Stack traces in the worker's log: of a signal that ends the process, and of code that does not come to its end."""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import sys
import threading
import time
import traceback
from collections.abc import Iterator

log = logging.getLogger(__name__)

_MAX_CALLS = 8
_MAX_STACKS = 8
_STANDARD_ERROR = 2


def trace_fatal_signals() -> None:
    """Write where the thread is that gets a signal such as SIGSEGV or SIGABRT, before it ends the process."""
    # Of one thread: the controller repeats the end of the log, where the others would hide it.
    faulthandler.enable(_STANDARD_ERROR, all_threads=False)


def stack_traces(first: int | None = None) -> str:
    """Return a line of what the other threads run, with the innermost calls of each; equal stacks stand there once.

    The thread with the identifier `first` comes first, then the main thread. Threads that wait for another are left
    out, except these two. At most 8 stacks are returned, because an engine may have many threads.
    """
    frames, main, current = sys._current_frames(), threading.main_thread(), threading.current_thread()
    wanted = (first, main.ident)
    names: dict[str, list[str]] = {}  # by stack
    for thread in sorted(threading.enumerate(), key=lambda each: (each.ident != first, each is not main)):
        frame = frames.get(thread.ident or 0)
        if frame is None or thread is current:
            continue
        calls = traceback.extract_stack(frame)[-_MAX_CALLS:]
        if thread.ident in wanted or calls[-1].filename != threading.__file__:
            places = (f"{call.filename}:{call.lineno} ({call.name})" for call in reversed(calls))
            names.setdefault(", called from ".join(places), []).append(thread.name)
    found = [f"{_thread_names(threads)} at {stack}" for stack, threads in names.items()]
    return "; ".join(found[:_MAX_STACKS])


def _thread_names(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


@contextlib.contextmanager
def log_if_slow(after_s: float, what: str) -> Iterator[None]:
    """Log the stacks if the block takes longer. `what`: what has not happened by then."""

    def report() -> None:
        log.warning("%s: %s", what, stack_traces())

    timer = threading.Timer(max(after_s, 0.0), report)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class StallWatch:
    """Logs once where a loop is that makes no turn for long. Two threads use it: the loop, and the one that checks."""

    def __init__(self, stuck_min_s: float, stuck_factor: float) -> None:
        """The balancer counts the worker as stuck after `stuck_min_s`, and after so many of its usual steps."""
        self._stuck_min_s = stuck_min_s
        self._stuck_factor = stuck_factor
        self._turn_at = self._reported_at = time.monotonic()
        self._thread: int | None = None

    def on_turn(self) -> None:
        """The loop begins its next turn."""
        self._turn_at = time.monotonic()
        self._thread = threading.get_ident()

    def check(self, step_s: float) -> None:
        """Log the stacks if half of the allowed time is over. `step_s`: seconds of the usual step."""
        turn_at, now = self._turn_at, time.monotonic()
        limit_s = max(self._stuck_min_s, self._stuck_factor * step_s)
        if turn_at == self._reported_at or now - turn_at < limit_s / 2:
            return
        self._reported_at = turn_at
        text = "no step has ended for %.0f s, and at %.0f s this worker counts as stuck: %s"
        log.warning(text, now - turn_at, limit_s, stack_traces(self._thread))
