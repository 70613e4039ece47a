"""Background tasks that never end silently: a failure is logged and counted, and a loop is restarted."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

log = logging.getLogger(__name__)

#: Pause before the first restart; it doubles with each failure in a row, up to the maximum.
MIN_RESTART_S = 0.5
MAX_RESTART_S = 30.0
#: A loop that has run for so long is healthy: its next failure is again the first in a row.
_HEALTHY_S = 60.0
#: Least interval between two log lines about one kind of failure.
_LOG_INTERVAL_S = 10.0


class TaskSupervisor:
    """The background tasks of one component. All methods are called in the event loop.

    `run_forever` is for loops, `run_to_completion` for work that has its own end.
    """

    def __init__(self) -> None:
        #: Failures since the start, by name of the task.
        self.failures: Counter[str] = Counter()
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_logged: dict[tuple[str, type[BaseException]], float] = {}

    def __repr__(self) -> str:
        return f"<TaskSupervisor of {len(self)} tasks, failures {dict(self.failures)}>"

    def __len__(self) -> int:
        return len(self._tasks)

    def run_forever(self, name: str, loop: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Run the loop; after an exception, run it again following a pause. It ends when `loop` returns."""
        return self._spawn(name, self._restart_on_failure(name, loop))

    def run_to_completion(self, name: str, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run the coroutine to its end. An exception is logged and counted; the task returns normally."""
        task = self._spawn(name, self._contain_failure(name, work))
        task.add_done_callback(lambda _: work.close())  # it may be cancelled before it has started
        return task

    def cancel(self) -> None:
        """Cancel all tasks without waiting. Idempotent."""
        for task in self._tasks:
            task.cancel()

    async def stop(self) -> None:
        """Cancel all tasks and wait for their end. Idempotent."""
        self.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def record_failure(self, name: str, error: BaseException, now: float) -> None:
        """Count the failure and log it with its traceback, at a bounded rate for each name and type of error."""
        self.failures[name] += 1
        kind = name, type(error)
        if now - self._last_logged.get(kind, float("-inf")) < _LOG_INTERVAL_S:
            return
        self._last_logged[kind] = now
        log.error("background task %s failed (failures so far: %d)", name, self.failures[name], exc_info=error)

    def _spawn(self, name: str, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _restart_on_failure(self, name: str, loop: Callable[[], Awaitable[None]]) -> None:
        in_a_row = 0
        while True:
            started = time.monotonic()
            try:
                await loop()
                return
            except Exception as error:
                now = time.monotonic()
                in_a_row = 1 if now - started >= _HEALTHY_S else in_a_row + 1
                self.record_failure(name, error, now)
            await asyncio.sleep(restart_delay(in_a_row))

    async def _contain_failure(self, name: str, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:
            self.record_failure(name, error, time.monotonic())


def restart_delay(failures: int) -> float:
    """Return the seconds to wait before a restart after so many failures in a row."""
    doublings = min(max(failures - 1, 0), 16)  # bounded: 2.0 to the power of a large number overflows
    return min(MIN_RESTART_S * 2.0**doublings, MAX_RESTART_S)
