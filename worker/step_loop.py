"""The step loop: take what came, let it join, step once, settle. One thread; it alone changes the batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import msgspec

from configs.settings import Model
from wire.codec import BalancerEnvelope, Frame, WorkerEnvelope
from wire.messages import (
    SOURCES,
    Ack,
    Assign,
    Assignment,
    Cancel,
    Failed,
    Heartbeat,
    Hello,
    Preempt,
    Preempted,
    Progress,
    Reject,
    Started,
)
from worker.batch import Batch, Gate, Member, checkpoint_due, preview_steps
from worker.batch_size import Caps, Size, size_of
from worker.counters import Tally
from worker.engine import Checkpoint, OutOfMemory, Row, StepEngine, TaskError, Wanted
from worker.fault_isolation import admit, step
from worker.postprocessing import Renders
from worker.transport import DrainRequested, Transport

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

    @property
    def wanted(self) -> Wanted:
        """What the engine is to make of it: the first frames are its source pictures, the others its checkpoint."""
        inputs, own = self.assignment.inputs, [bytes(frame) for frame in self.frames]
        sources = SOURCES[inputs.mode]
        checkpoint = Checkpoint(self.assignment.step, own[sources:]) if own[sources:] else None
        return Wanted(inputs, own[:sources], checkpoint)


class Loop:
    """One worker's running batch, from assignment to picture."""

    def __init__(
        self,
        engine: StepEngine,
        model: Model,
        hello: Hello,
        caps: Caps,
        link: Transport,
        renders: Renders,
        drain_timeout_s: float,
    ) -> None:
        self._engine = engine
        self._hello = hello
        self._caps = caps
        self._link = link
        self._renders = renders
        self._drain_timeout_s = drain_timeout_s
        width, height = map(int, model.defaults.size.split("x"))
        self._usual_size: Size = width, height
        self._checkpoint_every = model.batching.checkpoint_every
        self._batch: Batch[Row] = Batch()
        self._gate = Gate(model.batching.mode == "grouped", model.batching.window_s)
        self._waiting: dict[str, Waiting] = {}
        #: Some task did not fit into memory beside those that run: nobody joins until one of them leaves.
        self._cramped = False
        self._tally = Tally()
        self._last_report = 0.0
        self._drain: DrainRequested | None = None
        self._drain_by = 0.0

    def run(self) -> str:
        """Serve until told to stop; returns the reason. Raises `Refused`, and `DeviceLost`."""
        while not self._over():
            self._take(self._link.receive(self._patience()))
            self._join()
            self._step()
            if self._renders.lost is not None:
                raise self._renders.lost
        assert self._drain is not None
        return self._drain.reason

    def beat(self) -> Heartbeat:
        """How the worker does. Called from the link's thread."""
        self._renders.beat()
        beat = self._tally.heartbeat(self._engine.memory_bytes(), self._renders.finished, self._renders.failed)
        return msgspec.structs.replace(beat, curves=self._caps.curves(time.monotonic()))

    def introduce(self) -> None:
        """Say Hello, naming the tasks that this worker has, and how much room there is."""
        own = [waiting.assignment for waiting in self._waiting.values()]
        own += [member.assignment for member in self._batch.members()]
        self._renders.introduce(self._hello, [(task.task, task.attempt) for task in own])
        self._offer_room()
        self._link.send(WorkerEnvelope(self._renders.room()))

    # ---- take

    def _over(self) -> bool:
        return self._drain is not None and not self._batch and not self._waiting and not len(self._renders)

    def _patience(self) -> float:
        """How long to wait for messages: not at all while there is something to step."""
        if len(self._batch):
            return 0.0
        return 0.005 if self._waiting or self._drain or len(self._renders) else _IDLE_S

    def _take(self, received: Sequence[BalancerEnvelope | DrainRequested]) -> None:
        unknown = ""
        for each in received:
            if isinstance(each, DrainRequested):
                self._start_drain(each)
                continue
            message, frames = each
            match message:
                case Assign(tasks):
                    self._accept(tasks, frames)
                case Cancel(tasks) | Preempt(tasks):
                    self._give_back(tasks, with_checkpoint=isinstance(message, Preempt))
                case Ack():
                    self._renders.welcomed()
                case Reject(reason=reason, fatal=True):
                    raise Refused(reason)
                case Reject(reason=reason):
                    unknown = reason
        if unknown:  # once, and with everything that came along
            log.info("introducing ourselves again: %s", unknown)
            self.introduce()
        if self._drain is not None and time.monotonic() >= self._drain_by:
            self._give_back([member.assignment.task for member in self._batch.members()], with_checkpoint=True)

    def _accept(self, tasks: Sequence[Assignment], frames: Sequence[Frame]) -> None:
        now, start = time.monotonic(), 0
        for task in tasks:
            own = frames[start : start + task.frames]
            start += task.frames
            known = self._leave(task.task)
            if known is not None:  # given anew: what was done of it before counts no more
                self._engine.release(known.row)
            self._waiting[task.task] = Waiting(task, own, now)
        if self._drain is not None:
            self._give_back([task.task for task in tasks], with_checkpoint=True)

    def _give_back(self, tasks: Sequence[str], *, with_checkpoint: bool) -> None:
        """Free these tasks' slots and say so, with the state they are in where someone will go on from it."""
        for task in tasks:
            waiting = self._waiting.pop(task, None)
            member = self._leave(task)
            checkpoint: Checkpoint | None = None
            if waiting is not None:
                attempt, checkpoint = waiting.assignment.attempt, waiting.wanted.checkpoint
            elif member is not None:
                attempt = member.assignment.attempt
                state = self._engine.save(member.row) if with_checkpoint else None
                checkpoint = state() if state is not None else None
                self._engine.release(member.row)
            else:
                continue  # it has finished, and that message frees the slot
            at, frames = (checkpoint.step, checkpoint.frames) if with_checkpoint and checkpoint else (0, ())
            self._link.send(WorkerEnvelope(Preempted(task, attempt, at, len(frames)), frames))

    def _leave(self, task: str) -> Member[Row] | None:
        member = self._batch.leave(task)
        if member is not None:
            self._cramped = False
        return member

    def _start_drain(self, drain: DrainRequested) -> None:
        """Take nothing more, and hand back everything between two steps.

        Where tasks cannot be moved with their progress they may finish, unless there is no time or it is told twice.
        """
        now = time.monotonic()
        if self._drain is None:
            log.info("draining: %s", drain.reason)
            self._drain = drain
            self._drain_by = now if self._engine.info().checkpoints else now + self._drain_timeout_s
            self._offer_room()
            self._give_back(list(self._waiting), with_checkpoint=True)
        else:
            self._drain_by = now

    def _offer_room(self) -> None:
        """Tell the balancer how many tasks this worker can hold, if that has changed.

        While someone waits for room in a full batch, nobody else is to come here and wait behind them.
        """
        if self._drain is not None:
            self._renders.offer(0)
        elif self._waiting and len(self._batch):
            self._renders.offer(len(self._batch) + len(self._waiting))
        else:
            self._renders.offer(self._full())

    def _full(self) -> int:
        """A whole batch: of the key that runs with the largest, or of the usual size."""
        now = time.monotonic()
        running = [self._caps.of(m.key, size_of(m.assignment.inputs), now) for m in self._batch.leaders()]
        return max(running, default=self._caps.of_any(self._usual_size, now))

    # ---- join

    def _join(self) -> None:
        if self._waiting and not self._renders.full and not self._cramped:
            joining = self._joining()
            for waiting in joining:
                del self._waiting[waiting.assignment.task]
            for waiting, row in zip(joining, admit(self._engine, [w.wanted for w in joining]), strict=True):
                if isinstance(row, OutOfMemory) and len(self._batch):
                    self._cramped = True
                    self._waiting[waiting.assignment.task] = waiting
                elif isinstance(row, OutOfMemory):
                    self._fail(waiting.assignment, TaskError("out_of_memory", str(row)))
                elif isinstance(row, TaskError):
                    self._fail(waiting.assignment, row)
                else:
                    self._welcome(waiting.assignment, row)
        self._offer_room()

    def _joining(self) -> list[Waiting]:
        """Those that wait and whose batch has room, in the order of their coming; no key holds up another."""
        now = time.monotonic()
        oldest_s = now - next(iter(self._waiting.values())).since
        allowed = self._gate.admit(len(self._waiting), oldest_s, len(self._batch), self._full())
        joining: list[Waiting] = []
        room: dict[Hashable, int] = {}
        for waiting in self._waiting.values():
            inputs = waiting.assignment.inputs
            key = self._engine.key(inputs)
            if key not in room:
                room[key] = self._caps.of(key, size_of(inputs), now) - len(self._batch.group(key))
            if room[key] > 0 and len(joining) < allowed:
                room[key] -= 1
                joining.append(waiting)
        return joining

    def _welcome(self, task: Assignment, row: Row) -> None:
        key = self._engine.key(task.inputs)
        if any(member.row.step > 0 for member in self._batch.group(key)):
            self._tally.joined_midway += 1
        self._batch.join(Member(task, key, row, saved_at=time.monotonic(), saved_step=row.step))
        started = Started(task.task, task.attempt)
        progress = Progress(task.task, task.attempt, row.step, row.steps)
        self._link.send(WorkerEnvelope(started), WorkerEnvelope(progress))

    # ---- step

    def _step(self) -> None:
        chosen = self._batch.choose()
        self._tally.running = len(self._batch)
        if not chosen:
            return
        began = time.monotonic()
        key, size = chosen[0].key, size_of(chosen[0].assignment.inputs)
        outcome = step(self._engine, chosen[: self._caps.of(key, size, began)])
        now = time.monotonic()
        self._batch.charge(key, now - began)
        if outcome.moved:
            self._tally.stepped(len(outcome.moved), now - began)
        if outcome.squeezed_out:
            self._tally.out_of_memory += 1
            self._caps.did_not_fit(key, len(outcome.moved), now)
            self._renders.offer(len(outcome.moved))  # first, or they would come straight back
            self._give_back([member.assignment.task for member in outcome.squeezed_out], with_checkpoint=True)
        elif not outcome.failed:
            self._caps.observe(size, len(outcome.moved), now - began, now)
        for member, error in outcome.failed:
            self._leave(member.assignment.task)
            self._engine.release(member.row)
            self._fail(member.assignment, error)
        self._settle(outcome.moved, now)

    def _settle(self, moved: Sequence[Member[Row]], now: float) -> None:
        """Finished tasks leave; the others' pictures and states of the moment are sent where they are due."""
        report = now - self._last_report >= _REPORT_EVERY_S
        if report:
            self._last_report = now
        progress: list[WorkerEnvelope] = []
        for member in moved:
            task, row = member.assignment, member.row
            if row.step >= row.steps:
                self._leave(task.task)
                self._renders.final(task, self._engine.render(row), row.step)
                self._engine.release(row)
                continue
            if task.inputs.partial_images and row.step in preview_steps(row.steps, task.inputs.partial_images):
                self._renders.preview(task, self._engine.render(row), row.step, row.steps)
            elif report:
                progress.append(WorkerEnvelope(Progress(task.task, task.attempt, row.step, row.steps)))
            if checkpoint_due(member, row.step, now, self._checkpoint_every):
                self._save(member, now)
        if progress:
            self._link.send(*progress)

    def _save(self, member: Member[Row], now: float) -> None:
        state = self._engine.save(member.row)
        member.saved_at, member.saved_step = now, member.row.step
        if state is not None:
            self._renders.checkpoint(member.assignment, state, member.row.steps)

    def _fail(self, assignment: Assignment, error: TaskError) -> None:
        self._tally.failed += 1
        self._link.send(WorkerEnvelope(Failed(assignment.task, assignment.attempt, error.kind, error.message)))
