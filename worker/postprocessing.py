"""Pictures and checkpoints on their way out: they are made in a small pool while the loop goes on stepping.

A finished task leaves the batch at once, so its slot is offered again while its picture is still being made: the
worker's room is what the loop can hold plus the pictures in the making, up to as many again.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec

from wire.codec import WorkerEnvelope
from wire.messages import Assignment, Capacity, Failed, Finished, Hello, Progress
from worker.engine import Checkpoint, DeviceLost, Picture, TaskError
from worker.unacked_results import Unread

log = logging.getLogger(__name__)


class Renders:
    """The pool, and the worker's word on how much room it has."""

    def __init__(self, send: Callable[..., None], threads: int) -> None:
        self._send = send
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="render")
        self._lock = threading.Lock()
        self._making: dict[str, int] = {}
        self._saving: set[str] = set()
        self._unread = Unread()
        #: What the loop can hold; nothing before it has said so.
        self._loop_room = 0
        self.finished = 0
        self.failed = 0
        #: The device broke while a picture was made: the loop is to end.
        self.lost: DeviceLost | None = None

    def __len__(self) -> int:
        return len(self._making)

    @property
    def full(self) -> bool:
        """Whether the loop should wait rather than finish more than can be rendered."""
        return len(self._making) >= 2 * max(self._loop_room, 1)

    def introduce(self, hello: Hello, tasks: Sequence[tuple[str, int]]) -> None:
        """Say Hello, naming these tasks, with their attempts, and those whose final picture is being made.

        Those that were finished for a balancer which may not have heard of it are named too, and their pictures follow.
        No picture is sent in between: a task is either named here, and its picture comes later, or it has arrived.
        """
        with self._lock:
            for task in (*self._making, *(task for task, _ in tasks)):
                self._unread.drop(task)  # given anew since
            finished = self._unread.introduce()
            running = [*tasks, *self._making.items(), *((task, attempt) for task, (attempt, _) in finished.items())]
            self._send(WorkerEnvelope(msgspec.structs.replace(hello, running=running)))
            for _, envelope in finished.values():
                self._send(envelope)

    def beat(self) -> None:
        """A heartbeat is being sent."""
        with self._lock:
            self._unread.beat()

    def welcomed(self) -> None:
        """A balancer that knows this worker has answered."""
        with self._lock:
            self._unread.welcomed()

    def room(self) -> Capacity:
        """How many tasks the worker can hold, now."""
        with self._lock:
            return self._room()

    def offer(self, loop_room: int) -> None:
        """The loop can hold so many tasks from now on, and the balancer is told; 0 takes nothing more."""
        with self._lock:
            if loop_room != self._loop_room:
                self._loop_room = loop_room
                self._send(WorkerEnvelope(self._room()))

    def final(self, task: Assignment, picture: Callable[[], Picture], step: int) -> None:
        """Make the task's last picture and send it; its slot is free from now on."""
        with self._lock:
            self._making[task.task] = task.attempt
            self._send(WorkerEnvelope(Progress(task.task, task.attempt, step, step)), WorkerEnvelope(self._room()))
        self._pool.submit(self._finish, task, picture)

    def preview(self, task: Assignment, picture: Callable[[], Picture], step: int, steps: int) -> None:
        """Make a picture of the moment and send it with the task's progress."""
        self._pool.submit(self._preview, task, picture, step, steps)

    def checkpoint(self, task: Assignment, state: Callable[[], Checkpoint], steps: int) -> None:
        """Send the task's state with its progress. Left out while its last one is still on its way."""
        with self._lock:
            if task.task in self._saving:
                return
            self._saving.add(task.task)
        self._pool.submit(self._checkpoint, task, state, steps)

    def shutdown(self) -> None:
        """Wait for what is in the making."""
        self._pool.shutdown(wait=True)

    def _finish(self, task: Assignment, picture: Callable[[], Picture]) -> None:
        message: Finished | Failed
        image = b""
        try:
            made = picture()
            image, message = made.data, Finished(task.task, task.attempt, flagged=made.flagged)
            self.finished += 1
        except DeviceLost as error:
            self.lost = error  # the task is not to blame: it goes back to the queue with the others
            return
        except TaskError as error:
            message = Failed(task.task, task.attempt, error.kind, error.message)
            self.failed += 1
        except Exception as error:
            log.exception("task %s: its picture could not be made", task.task)
            message = Failed(task.task, task.attempt, "error", f"the picture could not be made: {error}")
            self.failed += 1
        with self._lock:  # one message, so that slot and room change together
            self._making.pop(task.task, None)  # not there: it was given anew meanwhile, and is finished already
            said = self._unread.put(message, image) if isinstance(message, Finished) else WorkerEnvelope(message)
            self._send(said, WorkerEnvelope(self._room()))

    def _preview(self, task: Assignment, picture: Callable[[], Picture], step: int, steps: int) -> None:
        try:
            image = picture().data
        except DeviceLost as error:
            self.lost = error
            return
        except Exception as error:  # a preview that fails is no reason to fail the task
            log.debug("task %s: no preview: %s", task.task, error)
            return
        self._send(WorkerEnvelope(Progress(task.task, task.attempt, step, steps, preview=True, frames=1), [image]))

    def _checkpoint(self, task: Assignment, state: Callable[[], Checkpoint], steps: int) -> None:
        try:
            saved = state()
        except DeviceLost as error:
            self.lost = error
            return
        except Exception:  # without it the task only has more to do again, should its worker die
            log.exception("task %s: its state could not be saved", task.task)
            return
        finally:
            with self._lock:
                self._saving.discard(task.task)
        progress = Progress(task.task, task.attempt, saved.step, steps, frames=len(saved.frames))
        self._send(WorkerEnvelope(progress, saved.frames))

    def _room(self) -> Capacity:
        return Capacity(self._loop_room + len(self._making) if self._loop_room else 0)
