"""A simulated device that works one step behind its caller, as a GPU does."""

from __future__ import annotations

import queue
import threading
import time


class SimDevice:
    """Runs steps of given durations, one after the other, in a thread of its own."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[tuple[float, threading.Event] | None] = queue.SimpleQueue()
        #: Set when the last queued step has finished.
        self._last = threading.Event()
        self._last.set()
        threading.Thread(target=self._work, name="sim device", daemon=True).start()

    def run(self, seconds: float) -> threading.Event:
        """Queue a step and wait for the one before it. Returns an event that is set when the step has finished."""
        before, self._last = self._last, threading.Event()
        self._queue.put((seconds, self._last))
        before.wait()
        return self._last

    def synchronize(self) -> None:
        """Wait for all queued steps."""
        self._last.wait()

    def close(self) -> None:
        """End the thread when the queued steps are done."""
        self._queue.put(None)

    def _work(self) -> None:
        while (step := self._queue.get()) is not None:
            seconds, finished = step
            time.sleep(seconds)
            finished.set()
