"""Reports results and the worker's capacity; decodes images and saves checkpoints in a small thread pool.

A finished task leaves the batch at once, so its slot is free while its image is still being decoded. The worker's
capacity is what the loop can hold plus the images in the pool, up to as many again. A result that is ready needs no
pool: all that a step has changed leaves as one message. In every message the capacity comes first, so that a freed slot
is not filled by an offer that no longer holds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import msgspec

from configs.text import clip
from wire.codec import WorkerEnvelope
from wire.messages import Assignment, Capacity, Failed, Finished, Hello, Progress
from worker.engine import Checkpoint, DeviceLost, TaskError, TaskResult
from worker.offer import Offer, RoundTrips
from worker.task_fields import task_fields
from worker.unacked_results import UnackedResults

log = logging.getLogger(__name__)


#: Longer texts of failures are cut.
_MAX_TEXT_CHARS = 1000


def failure(task: Assignment, error: TaskError) -> Failed:
    # Without its message, which may quote what the client has sent.
    level = logging.DEBUG if error.kind == "invalid" else logging.INFO
    log.log(level, "task %s has failed: %s", task.task, error.kind, extra=task_fields(task))
    return Failed(task.task, task.attempt, error.kind, clip(error.message, _MAX_TEXT_CHARS), error.status)


class FinishedRow(NamedTuple):
    """A task whose last step is done, and its result, its error, or a callable that makes the result."""

    task: Assignment
    result: TaskResult | TaskError | Callable[[], TaskResult]
    steps: int


class PostProcessor:
    """The thread pool, the images in it, and the worker's capacity."""

    def __init__(
        self,
        send: Callable[..., None],
        threads: int,
        max_result_bytes: int,
        *,
        send_later: Callable[..., None] | None = None,
        call_at: Callable[[float, Callable[[], None]], None] | None = None,
        round_trips: RoundTrips | None = None,
    ) -> None:
        """`max_result_bytes`: larger images and checkpoints are not sent, because the balancer does not accept them.

        `send_later`: queues what need not leave at once. `call_at`: calls a function from another thread at a time, in
        place of the last one. Without it, room ahead is only offered at once.
        """
        self._send = send
        self._send_later = send_later or send
        self._call_at = call_at
        self._round_trips = round_trips or RoundTrips()
        self._max_result_bytes = max_result_bytes
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="render")
        self._lock = threading.Lock()
        self._has_logged_size = False
        #: Attempts of the tasks whose final result is being made. Others only read it.
        self.finishing: dict[str, int] = {}
        #: The pool is so far behind that no further task should start.
        self.is_full = False
        self._saving: set[str] = set()
        self._unacked = UnackedResults()
        #: Tasks that the loop can hold; 0 until it has said so.
        self._loop_slots = 0
        #: Tasks beyond these; `_offer` says from when on.
        self._ahead = 0
        self._offer = Offer()
        #: As the balancer knows it.
        self._sent = Capacity(0)
        self.finished = 0
        self.failed = 0
        #: Set when the device failed in the pool: the loop has to end.
        self.lost: DeviceLost | None = None

    def can_send(self, size: int) -> bool:
        """Return whether the balancer accepts a result or a checkpoint of so many bytes."""
        return size <= self._max_result_bytes

    def send_hello(self, hello: Hello, tasks: Sequence[tuple[str, int]], loop_slots: int) -> None:
        """Send Hello with these (task, attempt), those in the pool and the unacknowledged ones, then their images.

        No image is sent in between: a task is either named here and its image follows, or its image has arrived.
        """
        with self._lock:
            for task in (*self.finishing, *(task for task, _ in tasks)):
                self._unacked.discard(task)  # assigned again since
            finished = self._unacked.on_hello()
            running = [
                *tasks,
                *self.finishing.items(),
                *((message.task, message.attempt) for message, _ in finished),
            ]
            self._send(WorkerEnvelope(msgspec.structs.replace(hello, running=running)))
            for message, frames in finished:
                self._send(WorkerEnvelope(message, frames))
            self._loop_slots, self._ahead, self._offer = loop_slots, 0, Offer()
            self._sent = Capacity(loop_slots + len(self.finishing) if loop_slots else 0)
            self._send(WorkerEnvelope(self._sent))

    def on_heartbeat(self) -> None:
        with self._lock:
            self._unacked.on_heartbeat()

    def on_ack(self) -> None:
        with self._lock:
            self._unacked.on_ack()

    def offer(self, loop_slots: int) -> None:
        """Set how many tasks the loop can hold, none ahead, and report a change; 0 accepts no more tasks."""
        self.start_step((), loop_slots, Offer())

    def start_step(
        self, envelopes: Sequence[WorkerEnvelope], loop_slots: int, offer: Offer | None, *, is_short: bool = False
    ) -> None:
        """Send envelopes, and what the loop can hold from now on if that has changed, as one message.

        `offer`: room for tasks ahead, from now on or later in the step; None: as before. `is_short`: the envelopes may
        leave with the results of the step, if the balancer knows that this worker takes tasks ahead.
        """
        with self._lock:
            self._loop_slots = loop_slots
            if offer is None and self._offer.at:
                offer = Offer()
            if offer is not None:
                self._offer, self._ahead = offer, 0 if offer.at else offer.ahead
                if offer.at and self._call_at is not None:
                    self._call_at(offer.at, self._on_offer_due)
            self._send_with_capacity(envelopes, is_short=is_short)

    def _on_offer_due(self) -> None:
        """Send the offer of the running step. Called from another thread."""
        now = time.monotonic()
        with self._lock:
            if self._loop_slots and self._offer.at and now >= self._offer.at:
                self._ahead = self._offer.ahead
                self._round_trips.on_offer(now, is_new=True)
                self._send_with_capacity(())

    def report(self, envelopes: Sequence[WorkerEnvelope], done: Sequence[FinishedRow]) -> None:
        """Send what a step has changed as one message: capacity, envelopes, results. Those of callables follow."""
        pending: list[tuple[Assignment, Callable[[], TaskResult]]] = []
        with self._lock:
            if self._offer.at:  # the tasks that it has brought can join now
                self._offer, self._ahead = Offer(), 0
            own = list(envelopes)
            for task, result, steps in done:
                if isinstance(result, TaskResult | TaskError):
                    own.append(self._end(task, result))
                else:
                    self.finishing[task.task] = task.attempt
                    own.append(WorkerEnvelope(Progress(task.task, task.attempt, steps, steps)))
                    pending.append((task, result))
            if done and self._round_trips.queued:
                self._round_trips.on_offer(time.monotonic(), is_new=False)
            self._send_with_capacity(own)
        for task, make in pending:
            self._pool.submit(self._finish, task, make)

    def preview(self, task: Assignment, render: Callable[[], TaskResult], step: int, steps: int) -> None:
        """Make a preview and send it with the task's progress."""
        self._pool.submit(self._preview, task, render, step, steps)

    def checkpoint(self, task: Assignment, save: Callable[[], Checkpoint | None], steps: int) -> None:
        """Send a checkpoint with the task's progress. Skipped while its previous one is still in the pool.

        `save` returns None where the state cannot be saved: the task only has to redo more steps if its worker dies.
        """
        with self._lock:
            if task.task in self._saving:
                return
            self._saving.add(task.task)
        self._pool.submit(self._checkpoint, task, save, steps)

    def shutdown(self) -> None:
        """Wait for all work in the pool."""
        self._pool.shutdown(wait=True)

    def _finish(self, task: Assignment, render: Callable[[], TaskResult]) -> None:
        result: TaskResult | TaskError
        try:
            result = render()
        except DeviceLost as error:
            self.lost = error  # the task is not at fault: it is requeued with the others
            return
        except TaskError as error:
            result = error
        except Exception as error:
            log.exception("task %s: its result could not be made", task.task, extra=task_fields(task))
            result = TaskError("error", f"the result could not be made: {error}")
        with self._lock:  # one message, so that slot and capacity change together
            if self.finishing.get(task.task) == task.attempt:  # else it was assigned again
                del self.finishing[task.task]
            self._send_with_capacity([self._end(task, result)])

    def _end(self, task: Assignment, result: TaskResult | TaskError) -> WorkerEnvelope:
        """Return the last message of the task. The caller holds the lock."""
        if isinstance(result, TaskResult):
            frames = result.frames
            size = len(frames[0]) if len(frames) == 1 else sum(map(len, frames))
            if size <= self._max_result_bytes:
                self.finished += 1
                message = Finished(task.task, task.attempt, result.parts, result.flagged, result.truncated_tokens)
                self._unacked.add(message, frames, size)
                return WorkerEnvelope(message, frames)
            limit = f"{self._max_result_bytes} (workers.max_result_bytes)"
            result = TaskError("error", f"the result has {size} bytes; allowed are {limit}")
        self.failed += 1
        return WorkerEnvelope(failure(task, result))

    def _preview(self, task: Assignment, render: Callable[[], TaskResult], step: int, steps: int) -> None:
        try:
            image = render().data
        except DeviceLost as error:
            self.lost = error
            return
        except Exception as error:  # a failed preview does not fail the task
            log.debug("task %s: no preview: %s", task.task, error)
            return
        if not self.can_send(len(image)):
            log.debug("task %s: its preview has %d bytes", task.task, len(image))
            return
        self._send(WorkerEnvelope(Progress(task.task, task.attempt, step, steps, preview=True, frames=1), [image]))

    def _checkpoint(self, task: Assignment, save: Callable[[], Checkpoint | None], steps: int) -> None:
        try:
            saved = save()
        except DeviceLost as error:
            self.lost = error
            return
        finally:
            with self._lock:
                self._saving.discard(task.task)
        if saved is None:
            return
        size = sum(map(len, saved.frames))
        if not self.can_send(size):
            level = logging.DEBUG if self._has_logged_size else logging.WARNING
            self._has_logged_size = True
            text = "task %s: its checkpoint has %d bytes, more than workers.max_result_bytes; it starts again elsewhere"
            log.log(level, text, task.task, size, extra=task_fields(task))
            return
        progress = Progress(task.task, task.attempt, saved.step, steps, frames=len(saved.frames))
        self._send(WorkerEnvelope(progress, saved.frames))

    def _send_with_capacity(self, envelopes: Sequence[WorkerEnvelope], *, is_short: bool = False) -> None:
        """Send the envelopes, after the capacity if it has changed. The caller holds the lock."""
        slots, ahead, finishing = self._loop_slots, self._ahead, len(self.finishing)
        self.is_full = finishing >= 2 * max(slots, 1)
        if slots:
            slots += finishing
        else:
            ahead = 0
        sent = self._sent
        if slots != sent.slots or ahead != sent.ahead:
            self._sent = Capacity(slots, ahead)
            self._send(WorkerEnvelope(self._sent), *envelopes)
        elif is_short and ahead:
            self._send_later(*envelopes)
        elif envelopes:
            self._send(*envelopes)
