"""Pictures on their way out: decoding and encoding run in a small pool while the loop goes on stepping.

A finished task leaves the batch at once, so its slot is offered again while its picture is still being made: the
worker's room is `max_batch_size` plus the pictures in the making, up to as many again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from wire.codec import FromWorker
from wire.messages import Assignment, Failed, Finished, Progress, Pull, ToBalancer
from worker.engine import TaskError

log = logging.getLogger(__name__)


class Renders:
    """The pool, and the worker's word on how much room it has."""

    def __init__(self, send: Callable[..., None], max_batch_size: int, threads: int) -> None:
        self._send = send
        self._max_batch_size = max_batch_size
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="render")
        self._lock = threading.Lock()
        self._making: dict[str, int] = {}
        self._closed = False
        self.finished = 0
        self.failed = 0

    def __len__(self) -> int:
        return len(self._making)

    @property
    def full(self) -> bool:
        """Whether the loop should wait rather than finish more than can be rendered."""
        return len(self._making) >= 2 * self._max_batch_size

    def tasks(self) -> list[str]:
        """The tasks whose final picture is being made."""
        with self._lock:
            return list(self._making)

    def room(self) -> Pull:
        """How many tasks the worker can hold, now."""
        with self._lock:
            return self._room()

    def close_room(self) -> None:
        """Take nothing more from now on."""
        with self._lock:
            self._closed = True
            self._send(FromWorker(self._room()))

    def final(self, task: Assignment, picture: Callable[[], bytes], step: int) -> None:
        """Make the task's last picture and send it; its slot is free from now on."""
        with self._lock:
            self._making[task.task] = task.attempt
            self._send(FromWorker(Progress(task.task, task.attempt, step, step)), FromWorker(self._room()))
        self._pool.submit(self._finish, task, picture)

    def preview(self, task: Assignment, picture: Callable[[], bytes], step: int, steps: int) -> None:
        """Make a picture of the moment and send it with the task's progress."""
        self._pool.submit(self._preview, task, picture, step, steps)

    def shutdown(self) -> None:
        """Wait for the pictures in the making."""
        self._pool.shutdown(wait=True)

    def _finish(self, task: Assignment, picture: Callable[[], bytes]) -> None:
        message: ToBalancer
        try:
            image = [picture()]
            message = Finished(task.task, task.attempt)
            self.finished += 1
        except TaskError as error:
            image, message = [], Failed(task.task, task.attempt, error.kind, error.message)
            self.failed += 1
        except Exception as error:
            log.exception("task %s: its picture could not be made", task.task)
            image, message = [], Failed(task.task, task.attempt, "error", f"the picture could not be made: {error}")
            self.failed += 1
        with self._lock:  # one message, so that slot and room change together
            del self._making[task.task]
            self._send(FromWorker(message, image), FromWorker(self._room()))

    def _preview(self, task: Assignment, picture: Callable[[], bytes], step: int, steps: int) -> None:
        try:
            image = picture()
        except Exception as error:  # a preview that fails is no reason to fail the task
            log.debug("task %s: no preview: %s", task.task, error)
            return
        self._send(FromWorker(Progress(task.task, task.attempt, step, steps, frames=1), [image]))

    def _room(self) -> Pull:
        return Pull(0 if self._closed else self._max_batch_size + len(self._making))
