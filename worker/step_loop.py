"""The step loop: receive, join, step, send results. It runs in one thread, which alone changes the batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

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
    ServerStopping,
    Started,
)
from worker.batch import Batch, JoinPolicy, Member, is_checkpoint_due, preview_steps
from worker.batch_size import BatchSizer, Size, size_of
from worker.capacity import WaitingTask, full_batch, offered_slots, select_joining
from worker.counters import Counters
from worker.engine import Checkpoint, EngineRequest, OutOfMemory, Row, StepEngine, TaskError
from worker.fault_isolation import admit, step
from worker.postprocessing import PostProcessor
from worker.transport import DrainRequested, Transport

log = logging.getLogger(__name__)

#: How long an idle loop waits for a message before it checks the time.
_IDLE_S = 0.5
#: Minimum interval of progress reports.
_REPORT_EVERY_S = 0.1


class WorkerRejected(Exception):
    """The balancer will never accept this worker; the text gives the reason."""


class StepLoop:
    """One worker's waiting and running tasks, from assignment to image."""

    def __init__(
        self,
        engine: StepEngine,
        model: Model,
        hello: Hello,
        sizer: BatchSizer,
        transport: Transport,
        post: PostProcessor,
        drain_timeout_s: float,
    ) -> None:
        self._engine = engine
        self._hello = hello
        self._sizer = sizer
        self._transport = transport
        self._post = post
        self._drain_timeout_s = drain_timeout_s
        width, height = map(int, model.defaults.size.split("x"))
        self._default_size: Size = width, height
        self._checkpoint_every = model.batching.checkpoint_every
        self._batch: Batch[Row] = Batch()
        self._join_policy = JoinPolicy(model.batching.mode == "grouped", model.batching.window_s)
        self._waiting: dict[str, WaitingTask] = {}
        #: A task did not fit into memory beside those that run: none joins until one of them leaves.
        self._memory_full = False
        self._counters = Counters()
        self._last_report = 0.0
        #: It starts at `_drain_at`, or later if the balancer is stopping and needs its workers.
        self._pending_drain: DrainRequested | None = None
        self._drain_at = self._needed_until = 0.0
        self._drain: DrainRequested | None = None
        self._drain_by = 0.0

    def run(self) -> str:
        """Serve until drained; returns the reason. Raises `WorkerRejected` and `DeviceLost`."""
        while self._drain is None or self._batch or self._waiting or len(self._post):
            self._receive()
            self._join()
            self._step()
            if self._post.lost is not None:
                raise self._post.lost
        return self._drain.reason

    def heartbeat(self) -> Heartbeat:
        """Return the worker's state. Called from the client's thread."""
        self._post.on_heartbeat()
        beat = self._counters.heartbeat(self._engine.memory_bytes(), self._post.finished, self._post.failed)
        return msgspec.structs.replace(beat, curves=self._sizer.curves(time.monotonic()))

    def send_hello(self) -> None:
        """Send Hello with the tasks that this worker has, then its capacity."""
        own = [waiting.assignment for waiting in self._waiting.values()]
        own += [member.assignment for member in self._batch.members()]
        self._post.send_hello(self._hello, [(task.task, task.attempt) for task in own], self._slots())

    def _slots(self) -> int:
        if self._drain is not None:
            return 0
        full = full_batch(self._batch, self._sizer, self._default_size, time.monotonic())
        return offered_slots(len(self._batch), len(self._waiting), full)

    # ---- receive

    def _receive(self) -> None:
        timeout_s = 0.0
        if not self._batch:
            busy = self._waiting or self._drain or self._pending_drain or len(self._post)
            timeout_s = 0.005 if busy else _IDLE_S
        unknown = ""
        for received in self._transport.receive(timeout_s):
            if isinstance(received, DrainRequested):
                self._on_drain_request(received)
            elif isinstance(received.message, Reject) and not received.message.fatal:
                unknown = received.message.reason
            else:
                self._on_message(received)
        if unknown:  # once for all rejections, and after the other messages
            log.info("sending Hello again: %s", unknown)
            self.send_hello()
        if self._pending_drain is not None and time.monotonic() >= max(self._drain_at, self._needed_until):
            self._start_drain(self._pending_drain)
        if self._drain is not None and time.monotonic() >= self._drain_by:
            self._hand_back([member.assignment.task for member in self._batch.members()], with_checkpoint=True)

    def _on_message(self, envelope: BalancerEnvelope) -> None:
        match envelope.message:
            case Assign(tasks):
                self._accept(tasks, envelope.frames)
            case Cancel(tasks):
                self._hand_back(tasks, with_checkpoint=False)
            case Preempt(tasks):
                self._hand_back(tasks, with_checkpoint=True)
            case Ack():
                self._post.on_ack()
            case ServerStopping(within_s):
                self._needed_until = time.monotonic() + within_s
            case Reject(reason=reason):
                raise WorkerRejected(reason)

    def _accept(self, tasks: Sequence[Assignment], frames: Sequence[Frame]) -> None:
        now, start = time.monotonic(), 0
        for task in tasks:
            own = [bytes(frame) for frame in frames[start : start + task.frames]]
            start += task.frames
            previous = self._leave(task.task)
            if previous is not None:  # assigned again: its earlier progress does not count
                self._engine.release(previous.row)
            sources, state = own[: SOURCES[task.inputs.mode]], own[SOURCES[task.inputs.mode] :]
            request = EngineRequest(task.inputs, sources, Checkpoint(task.step, state) if state else None)
            self._waiting[task.task] = WaitingTask(task, request, now)
        if self._drain is not None:
            self._hand_back([task.task for task in tasks], with_checkpoint=True)

    def _hand_back(self, tasks: Sequence[str], *, with_checkpoint: bool) -> None:
        """Free the slots of these tasks and send them back, with a checkpoint if another worker will continue."""
        for task in tasks:
            waiting = self._waiting.pop(task, None)
            member = self._leave(task)
            checkpoint: Checkpoint | None = None
            if waiting is not None:
                attempt, checkpoint = waiting.assignment.attempt, waiting.request.checkpoint
            elif member is not None:
                attempt = member.assignment.attempt
                save = self._engine.save(member.row) if with_checkpoint else None
                checkpoint = save() if save is not None else None
                self._engine.release(member.row)
            else:
                continue  # it has finished, and that message frees the slot
            at, frames = (checkpoint.step, checkpoint.frames) if with_checkpoint and checkpoint else (0, ())
            self._transport.send(WorkerEnvelope(Preempted(task, attempt, at, len(frames)), frames))

    def _leave(self, task: str) -> Member[Row] | None:
        member = self._batch.leave(task)
        if member is not None:
            self._memory_full = False
        return member

    def _on_drain_request(self, request: DrainRequested) -> None:
        if request.grace_s and self._drain is None and self._pending_drain is None:
            self._pending_drain, self._drain_at = request, time.monotonic() + request.grace_s
        else:
            self._start_drain(request)

    def _start_drain(self, drain: DrainRequested) -> None:
        """Accept nothing more and hand back everything between two steps.

        Tasks that cannot be moved with their progress may finish, until the timeout or a second request.
        """
        now = time.monotonic()
        self._pending_drain = None
        if self._drain is None:
            log.info("draining: %s", drain.reason)
            self._drain = drain
            self._drain_by = now if self._engine.info().checkpoints else now + self._drain_timeout_s
            self._post.offer(0)
            self._hand_back(list(self._waiting), with_checkpoint=True)
        else:
            self._drain_by = now

    # ---- join

    def _join(self) -> None:
        if self._waiting and not self._post.is_full and not self._memory_full:
            joining = self._select_joining()
            for task in joining:
                del self._waiting[task.assignment.task]
            for task, row in zip(joining, admit(self._engine, [each.request for each in joining]), strict=True):
                if isinstance(row, OutOfMemory) and self._batch:
                    self._memory_full = True
                    self._waiting[task.assignment.task] = task
                elif isinstance(row, OutOfMemory):
                    self._fail(task.assignment, TaskError("out_of_memory", str(row)))
                elif isinstance(row, TaskError):
                    self._fail(task.assignment, row)
                else:
                    self._start(task.assignment, row)
        self._post.offer(self._slots())

    def _select_joining(self) -> list[WaitingTask]:
        now, waiting = time.monotonic(), self._waiting.values()
        oldest_s = now - next(iter(waiting)).since
        full = full_batch(self._batch, self._sizer, self._default_size, now)
        allowed = self._join_policy.admit(len(waiting), oldest_s, len(self._batch), full)
        return select_joining(waiting, self._batch, self._sizer, self._engine.key, allowed=allowed, now=now)

    def _start(self, task: Assignment, row: Row) -> None:
        key = self._engine.key(task.inputs)
        if any(member.row.step > 0 for member in self._batch.group(key)):
            self._counters.joined_midway += 1
        self._batch.join(Member(task, key, row, saved_at=time.monotonic(), saved_step=row.step))
        started = Started(task.task, task.attempt)
        progress = Progress(task.task, task.attempt, row.step, row.steps)
        self._transport.send(WorkerEnvelope(started), WorkerEnvelope(progress))

    # ---- step

    def _step(self) -> None:
        group = self._batch.next_group()
        self._counters.running = len(self._batch)
        if not group:
            return
        started = time.monotonic()
        key, size = group[0].key, size_of(group[0].assignment.inputs)
        outcome = step(self._engine, group[: self._sizer.limit(key, size, started)])
        now = time.monotonic()
        self._batch.charge(key, now - started)
        if outcome.advanced:
            self._counters.on_step(len(outcome.advanced), now - started)
        if outcome.evicted:
            self._counters.out_of_memory += 1
            self._sizer.on_out_of_memory(key, len(outcome.advanced), now)
            self._post.offer(len(outcome.advanced))  # first, or they would come straight back
            self._hand_back([member.assignment.task for member in outcome.evicted], with_checkpoint=True)
        elif not outcome.failed:
            self._sizer.observe(size, len(outcome.advanced), now - started, now)
        for member, error in outcome.failed:
            self._leave(member.assignment.task)
            self._engine.release(member.row)
            self._fail(member.assignment, error)
        self._send_results(outcome.advanced, now)

    def _send_results(self, advanced: Sequence[Member[Row]], now: float) -> None:
        """Remove finished tasks; send the previews, progress and checkpoints of the others that are due."""
        report = now - self._last_report >= _REPORT_EVERY_S
        if report:
            self._last_report = now
        progress: list[WorkerEnvelope] = []
        for member in advanced:
            task, row = member.assignment, member.row
            if row.step >= row.steps:
                self._leave(task.task)
                self._post.finish(task, self._engine.render(row), row.step)
                self._engine.release(row)
                continue
            if task.inputs.partial_images and row.step in preview_steps(row.steps, task.inputs.partial_images):
                self._post.preview(task, self._engine.render(row), row.step, row.steps)
            elif report:
                progress.append(WorkerEnvelope(Progress(task.task, task.attempt, row.step, row.steps)))
            if is_checkpoint_due(member, row.step, now, self._checkpoint_every):
                save = self._engine.save(row)
                member.saved_at, member.saved_step = now, row.step
                if save is not None:
                    self._post.checkpoint(task, save, row.steps)
        if progress:
            self._transport.send(*progress)

    def _fail(self, assignment: Assignment, error: TaskError) -> None:
        self._counters.failed += 1
        self._transport.send(WorkerEnvelope(Failed(assignment.task, assignment.attempt, error.kind, error.message)))
