"""The step loop: take what came, let it join, step once, settle. One thread; it alone changes the batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from configs.schema import Model
from wire.codec import ForWorker, Frame, FromWorker
from wire.messages import (
    Assign,
    Assignment,
    Cancel,
    Drain,
    Failed,
    Heartbeat,
    Hello,
    Progress,
    Reject,
    Returned,
    Started,
    Yield,
)
from worker.batch import Batch, Gate, Member, preview_steps
from worker.engine import Checkpoint, Row, StepEngine, TaskError
from worker.link import Link
from worker.renders import Renders
from worker.tally import Tally

log = logging.getLogger(__name__)

#: How long an idle loop waits for a message before it looks at the clock.
_IDLE_S = 0.5
#: Least time between two reports of progress.
_REPORT_EVERY_S = 0.1


class Refused(Exception):
    """The balancer will never take this worker; the text says why."""


class Waiting(NamedTuple):
    """A task that has not joined yet."""

    assignment: Assignment
    frames: Sequence[Frame]
    since: float


class Loop:
    """One worker's running batch, from assignment to picture."""

    def __init__(
        self, engine: StepEngine, model: Model, hello: Hello, link: Link, renders: Renders, drain_timeout_s: float
    ) -> None:
        self._engine = engine
        self._hello = hello
        self._link = link
        self._renders = renders
        self._drain_timeout_s = drain_timeout_s
        self._max_batch_size = model.max_batch_size
        self._batch: Batch[Row] = Batch(model.max_batch_size)
        self._gate = Gate(model.batching.mode == "grouped", model.batching.window_s, model.max_batch_size)
        self._waiting: dict[str, Waiting] = {}
        self._tally = Tally()
        self._last_report = 0.0
        self._drain: Drain | None = None
        self._drain_by = 0.0

    def run(self) -> str:
        """Serve until told to stop; returns the reason. Raises `Refused`."""
        while not self._over():
            self._take(self._link.receive(self._patience()))
            self._admit()
            self._tally.running = len(self._batch)
            chosen = self._batch.choose()
            if chosen:
                self._settle(self._step(chosen))
        assert self._drain is not None
        return self._drain.reason

    def beat(self) -> Heartbeat:
        """How the worker does. Called from the link's thread."""
        return self._tally.heartbeat(self._engine.memory_bytes(), self._renders.finished, self._renders.failed)

    def introduce(self) -> None:
        """Say Hello, naming the tasks that this worker has, and how much room there is."""
        running = [member.assignment.task for member in self._batch.members()]
        hello = msgspec.structs.replace(self._hello, running=[*self._waiting, *running, *self._renders.tasks()])
        self._link.send(FromWorker(hello), FromWorker(self._renders.room()))

    # ---- take

    def _over(self) -> bool:
        return self._drain is not None and not self._batch and not self._waiting and not len(self._renders)

    def _patience(self) -> float:
        """How long to wait for messages: not at all while there is something to step."""
        if len(self._batch):
            return 0.0
        return 0.005 if self._waiting or self._drain else _IDLE_S

    def _take(self, parcels: Sequence[ForWorker]) -> None:
        for message, frames in parcels:
            match message:
                case Assign(tasks):
                    self._accept(tasks, frames)
                case Cancel(tasks):
                    self._give_back(tasks, with_checkpoint=False)
                case Yield(tasks):
                    self._give_back(tasks, with_checkpoint=True)
                case Drain():
                    self._start_drain(message)
                case Reject(reason=reason, fatal=True):
                    raise Refused(reason)
                case Reject(reason=reason):
                    log.info("introducing ourselves again: %s", reason)
                    self.introduce()
        if self._drain is not None and time.monotonic() >= self._drain_by:
            self._give_back([member.assignment.task for member in self._batch.members()], with_checkpoint=True)

    def _accept(self, tasks: Sequence[Assignment], frames: Sequence[Frame]) -> None:
        now, start = time.monotonic(), 0
        for task in tasks:
            own = frames[start : start + task.frames]
            start += task.frames
            self._waiting[task.task] = Waiting(task, own, now)
        if self._drain is not None:
            self._give_back([task.task for task in tasks], with_checkpoint=True)

    def _give_back(self, tasks: Sequence[str], *, with_checkpoint: bool) -> None:
        """Free these tasks' slots and say so, with the state they are in where someone will go on from it."""
        for task in tasks:
            waiting = self._waiting.pop(task, None)
            member = self._batch.leave(task)
            if waiting is not None:
                given = waiting.assignment
                checkpoint = Checkpoint(given.step, [bytes(frame) for frame in waiting.frames])
            elif member is not None:
                given = member.assignment
                evicted = self._engine.evict(member.row) if with_checkpoint else None
                checkpoint = evicted or Checkpoint(0)
            else:
                continue  # it has finished, and that message frees the slot
            frames = checkpoint.frames if with_checkpoint else ()
            message = Returned(task, given.attempt, checkpoint.step if frames else 0, len(frames))
            self._link.send(FromWorker(message, frames))

    def _start_drain(self, drain: Drain) -> None:
        """Take nothing more, and hand back what has not begun. Told twice, hand back everything at once."""
        now = time.monotonic()
        if self._drain is None:
            log.info("draining: %s", drain.reason)
            self._drain = drain
            self._drain_by = now + self._drain_timeout_s
            self._renders.close_room()
            self._give_back(list(self._waiting), with_checkpoint=True)
        else:
            self._drain_by = now

    # ---- join

    def _admit(self) -> None:
        if not self._waiting or self._renders.full:
            return
        oldest_s = time.monotonic() - next(iter(self._waiting.values())).since
        allowed = self._gate.admit(len(self._waiting), oldest_s, len(self._batch))
        joining = list(self._waiting.values())[: min(allowed, self._max_batch_size - len(self._batch))]
        if not joining:
            return
        for waiting in joining:
            del self._waiting[waiting.assignment.task]
        for waiting, row in zip(joining, self._rows(joining), strict=True):
            if isinstance(row, TaskError):
                self._fail(waiting.assignment, row)
            else:
                self._join(waiting.assignment, row)

    def _rows(self, joining: Sequence[Waiting]) -> list[Row | TaskError]:
        """A row for each. If the engine breaks on them together, each is tried alone: only the guilty one fails."""
        wanted = [
            (w.assignment.inputs, Checkpoint(w.assignment.step, [bytes(f) for f in w.frames]) if w.frames else None)
            for w in joining
        ]
        try:
            return self._engine.admit(wanted)
        except Exception as error:
            log.exception("admitting %d tasks failed", len(joining))
            if len(joining) == 1:
                return [TaskError("error", f"the request could not be prepared: {error}")]
            return [row for waiting in joining for row in self._rows([waiting])]

    def _join(self, assignment: Assignment, row: Row) -> None:
        key = self._engine.key(assignment.inputs)
        if any(member.row.step > 0 for member in self._batch.group(key)):
            self._tally.joined_midway += 1
        self._batch.join(Member(assignment, key, row))
        started = Started(assignment.task, assignment.attempt)
        progress = Progress(assignment.task, assignment.attempt, row.step, row.steps)
        self._link.send(FromWorker(started), FromWorker(progress))

    # ---- step

    def _step(self, chosen: Sequence[Member[Row]]) -> list[Member[Row]]:
        """Advance these by one step; returns those that moved. Tasks that cannot be stepped fail, alone.

        A step that raises has moved no row, so halving the batch finds the guilty one while the others go on.
        """
        began = time.monotonic()
        try:
            self._engine.step([member.row for member in chosen])
        except Exception as error:
            if len(chosen) > 1:
                half = len(chosen) // 2
                return self._step(chosen[:half]) + self._step(chosen[half:])
            log.exception("task %s cannot be stepped", chosen[0].assignment.task)
            known = error if isinstance(error, TaskError) else TaskError("error", f"step failed: {error}")
            self._batch.leave(chosen[0].assignment.task)
            self._fail(chosen[0].assignment, known)
            return []
        seconds = time.monotonic() - began
        self._tally.stepped(len(chosen), seconds)
        self._batch.charge(chosen[0].key, seconds)
        return list(chosen)

    # ---- settle

    def _settle(self, moved: Sequence[Member[Row]]) -> None:
        """Finished tasks leave; the others' progress is told, now and then."""
        now = time.monotonic()
        report = now - self._last_report >= _REPORT_EVERY_S
        if report:
            self._last_report = now
        progress: list[FromWorker] = []
        for member in moved:
            task, row = member.assignment, member.row
            if row.step >= row.steps:
                self._batch.leave(task.task)
                self._renders.final(task, self._engine.render(row), row.step)
            elif task.inputs.partial_images and row.step in preview_steps(row.steps, task.inputs.partial_images):
                self._renders.preview(task, self._engine.render(row), row.step, row.steps)
            elif report:
                progress.append(FromWorker(Progress(task.task, task.attempt, row.step, row.steps)))
        if progress:
            self._link.send(*progress)

    def _fail(self, assignment: Assignment, error: TaskError) -> None:
        self._tally.failed += 1
        self._link.send(FromWorker(Failed(assignment.task, assignment.attempt, error.kind, error.message)))
