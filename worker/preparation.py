"""Prepares waiting tasks beside the steps, so that a burst of newcomers does not stop the tasks that run."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait

import msgspec

from worker.batch_scheduler import WaitingTask
from worker.engine import DeviceLost, EngineRequest, PreparesTasks

#: Joining this step instead of the next one is worth waiting for, by this part of a step.
_WAIT_STEPS = 0.05


class Preparation:
    """The preparations of waiting tasks, one after the other in a thread. Its methods are called by the loop."""

    def __init__(self, engine: PreparesTasks) -> None:
        self._engine = engine
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="prepare")
        self._started: dict[str, Future[object]] = {}

    def start(self, waiting: Iterable[WaitingTask], step_s: float) -> frozenset[str]:
        """Start to prepare these tasks, in their order. Return those that must not join the next step.

        These are the unprepared ones. Of the tasks that cannot be prepared, one may join each step: admitting it takes
        time from the others. `step_s`: the mean duration of a step in seconds.
        """
        tasks = [task for task in waiting if self._is_started(task) or self._engine.needs_preparation(task.request)]
        new = [task for task in tasks if not self._is_started(task)]
        for task in new:
            self._started[task.assignment.task] = self._pool.submit(self._engine.prepare, task.request)
        if new:
            wait([self._started[new[0].assignment.task]], timeout=_WAIT_STEPS * step_s)
        futures = {task.assignment.task: self._started[task.assignment.task] for task in tasks}
        pending = {task for task, future in futures.items() if not future.done()}
        unprepared = [task for task, future in futures.items() if task not in pending and _result(future) is None]
        return frozenset(pending.union(unprepared[1:]))

    def take(self, tasks: Iterable[WaitingTask]) -> list[EngineRequest]:
        """Return the requests with what was prepared for them. Waits for preparations that run. Raises `DeviceLost`."""
        return [self._take_one(task) for task in tasks]

    def _take_one(self, task: WaitingTask) -> EngineRequest:
        future = self._started.pop(task.assignment.task, None)
        if future is None or future.cancel():
            return task.request
        prepared = _result(future)
        return task.request if prepared is None else msgspec.structs.replace(task.request, prepared=prepared)

    def drop(self, task: str) -> None:
        """Forget a task that will not join."""
        future = self._started.pop(task, None)
        if future is not None and not future.cancel():
            future.add_done_callback(self._discard)

    def close(self) -> None:
        """End the thread after the task that it prepares."""
        for task in list(self._started):
            self.drop(task)
        self._pool.shutdown(wait=False)

    def _is_started(self, task: WaitingTask) -> bool:
        return task.assignment.task in self._started

    def _discard(self, future: Future[object]) -> None:
        if future.exception() is None:
            prepared = future.result()
            if prepared is not None:
                self._engine.discard(prepared)


def _result(future: Future[object]) -> object:
    """Return what was prepared; None after an error, which the admission will find again. Raises `DeviceLost`."""
    try:
        return future.result()
    except DeviceLost:
        raise
    except Exception:
        return None
