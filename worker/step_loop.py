"""The step loop: receive, join, step, send results. It runs in one thread, which alone changes the batch."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence

from configs.model_settings import Model
from wire.codec import Frame, WorkerEnvelope
from wire.inputs import TextInputs, reports_tokens
from wire.messages import (
    Ack,
    Assign,
    Assignment,
    Cancel,
    Heartbeat,
    Hello,
    Preempt,
    Preempted,
    Progress,
    Reject,
    ServerStopping,
    Started,
    ToWorker,
    WorkerCounters,
)
from worker.batch_scheduler import BatchScheduler, StepClock, StepRecord, TimedStep, WaitingTask, shape_of
from worker.batch_size import BatchSizer
from worker.calibration import default_shape
from worker.engine import (
    BatchKey,
    Checkpoint,
    CountsTokens,
    EngineRequest,
    OutOfMemory,
    PreparesTasks,
    StepEngine,
    StepsAhead,
    TaskError,
)
from worker.fault_isolation import StepOutcome, admit, key_error, save_now, step
from worker.offer import Offer, OfferPlanner, RoundTrips
from worker.postprocessing import PostProcessor
from worker.preparation import Preparation
from worker.stack_traces import StallWatch
from worker.step_results import StepResults
from worker.task_fields import task_fields
from worker.text_defaults import with_checkpoint_defaults
from worker.transport import DrainRequested, Transport

log = logging.getLogger(__name__)

#: How long an idle loop waits for a message before it checks the time.
_IDLE_S = 0.5
#: And one whose tasks cannot join yet, or are still in the thread pool.
_BUSY_S = 0.005


class WorkerRejected(Exception):
    """The balancer will never accept this worker; the text gives the reason."""


class StepLoop:
    """One worker's waiting and running tasks, from assignment to result."""

    def __init__(
        self,
        engine: StepEngine,
        model: Model,
        hello: Hello,
        sizer: BatchSizer,
        transport: Transport,
        post: PostProcessor,
        drain_timeout_s: float,
        round_trips: RoundTrips | None = None,
        stalls: StallWatch | None = None,
    ) -> None:
        self._engine = engine
        self._hello = hello
        self._sizer = sizer
        self._scheduler = BatchScheduler(sizer, model.batching, default_shape(model))
        self._round_trips = round_trips or RoundTrips()
        self._planner = OfferPlanner(self._round_trips)
        self._text_counters = engine.text_counters if isinstance(engine, CountsTokens) else None
        #: Of a device that works behind the loop.
        self._clock = StepClock() if isinstance(engine, StepsAhead) and engine.steps_ahead else None
        self._transport = transport
        self._post = post
        self._preparation = Preparation(engine) if isinstance(engine, PreparesTasks) else None
        self._drain_timeout_s = drain_timeout_s
        self._stalls = stalls
        self._results = StepResults(engine, self._scheduler, model.batching, transport, post)
        #: The tasks that wait could not join.
        self._is_blocked = False
        #: It starts at `_drain_at`, or later if the balancer is stopping and needs its workers.
        self._pending_drain: DrainRequested | None = None
        self._drain_at = self._needed_until = 0.0
        self._drain: DrainRequested | None = None
        self._drain_by = 0.0

    def run(self) -> str:
        """Serve until drained; returns the reason. Raises `WorkerRejected` and `DeviceLost`."""
        scheduler, post, trips = self._scheduler, self._post, self._round_trips
        try:
            while self._drain is None or scheduler.running or scheduler.waiting or post.finishing:
                if self._stalls is not None:
                    self._stalls.on_turn()
                timeout_s = 0.0
                if not scheduler.running and (not scheduler.waiting or self._is_blocked):
                    timeout_s = _BUSY_S if self._drain or self._pending_drain or post.finishing else _IDLE_S
                    if scheduler.waiting:
                        timeout_s = min(scheduler.wait_s(time.monotonic()) or _BUSY_S, _IDLE_S)
                self._receive(timeout_s)
                if trips.queued and trips.offered_at is not None:
                    self._await_tasks()
                self._step()
                if post.lost is not None:
                    raise post.lost
        finally:
            if self._preparation is not None:
                self._preparation.close()
        return self._drain.reason

    def heartbeat(self) -> Heartbeat:
        """Return the worker's state. Called from the client's thread."""
        self._post.on_heartbeat()
        stats = self._scheduler.stats
        if self._stalls is not None:
            self._stalls.check(stats.mean_step_s)
        counters = WorkerCounters(
            steps=stats.steps,
            rows=stats.rows,
            max_batch=stats.max_batch,
            joined_midway=stats.joined_midway,
            finished=self._post.finished,
            failed=self._results.failed + self._post.failed,
            step_s=stats.step_s,
            out_of_memory=stats.out_of_memory,
        )
        running, curves = len(self._scheduler.running), self._sizer.curves(time.monotonic())
        memory = self._engine.memory_bytes()
        text = self._text_counters() if self._text_counters is not None else None
        return Heartbeat(running, stats.mean_step_s, stats.mean_batch, memory, counters, curves, text)

    def send_hello(self) -> None:
        """Send Hello with the tasks that this worker has, then its capacity."""
        own = [task.assignment for task in self._scheduler.waiting.values()]
        own += [member.assignment for member in self._scheduler.running.values()]
        slots = self._scheduler.slots(time.monotonic())
        self._post.send_hello(self._hello, [(task.task, task.attempt) for task in own], slots)

    # ---- receive

    def _await_tasks(self) -> None:
        """Wait for tasks that are on their way and complete the next batch, as long as that pays."""
        scheduler, until = self._scheduler, 0.0
        while self._drain is None and not scheduler.is_grouped:
            now = time.monotonic()
            held = len(scheduler.waiting) + len(scheduler.running)
            wait_s = self._planner.wait_s(held, scheduler.slots(now), scheduler.stats.mean_step_s) if held else 0.0
            if not wait_s:
                return
            until = until or now + wait_s
            if now >= until:
                self._round_trips.on_no_answer()
                return
            self._receive(until - now)

    def _receive(self, timeout_s: float) -> None:
        """Handle everything that has arrived; wait up to `timeout_s` for the first message."""
        unknown = ""
        for received in self._transport.receive(timeout_s):
            if isinstance(received, DrainRequested):
                self._on_drain_request(received)
            elif isinstance(received.message, Reject) and not received.message.fatal:
                unknown = received.message.reason
            elif isinstance(received.message, Assign):
                self._accept(received.message.tasks, received.frames)
            else:
                self._on_control_message(received.message)
        if unknown:  # once for all rejections, and after the other messages
            log.info("sending Hello again: %s", unknown)
            self.send_hello()
        if self._pending_drain is not None and time.monotonic() >= max(self._drain_at, self._needed_until):
            self._start_drain(self._pending_drain)
        if self._drain is not None and time.monotonic() >= self._drain_by:
            self._hand_back(list(self._scheduler.running), with_checkpoint=True)

    def _on_control_message(self, message: ToWorker) -> None:
        match message:
            case Cancel(tasks):
                self._hand_back(tasks, with_checkpoint=False)
            case Preempt(tasks, unstarted):
                if unstarted:
                    tasks = [task for task in tasks if task in self._scheduler.waiting]
                self._hand_back(tasks, with_checkpoint=True)
            case Ack():
                self._post.on_ack()
            case ServerStopping(within_s):
                self._needed_until = time.monotonic() + within_s
            case Reject(reason):
                raise WorkerRejected(reason)

    def _accept(self, tasks: Sequence[Assignment], frames: Sequence[Frame]) -> None:
        scheduler, now, start = self._scheduler, time.monotonic(), 0
        for task in tasks:
            name, inputs = task.task, task.inputs
            if isinstance(inputs, TextInputs) and inputs.sampling.unset:
                inputs = with_checkpoint_defaults(inputs, self._engine.info())
            if name in scheduler.running or name in scheduler.waiting:  # its earlier progress does not count
                self._forget(name)
            own = [bytes(frame) for frame in frames[start : start + task.frames]]
            sources = inputs.source_frames if own else 0
            start += task.frames
            state = own[sources:]
            request = EngineRequest(inputs, own[:sources], Checkpoint(task.step, state) if state else None)
            try:
                key = self._engine.key(request)
            except Exception as error:
                self._results.fail(task, key_error(error))
                continue
            scheduler.add(WaitingTask(task, request, key, shape_of(inputs, key), now))
        if self._drain is not None:
            self._hand_back([task.task for task in tasks], with_checkpoint=True)

    def _forget(self, task: str) -> None:
        """Remove a task that is assigned again."""
        if self._preparation is not None:
            self._preparation.drop(task)
        self._scheduler.remove(task)
        previous = self._scheduler.leave(task)
        if previous is not None:
            self._engine.release(previous.row)

    def _hand_back(self, tasks: Sequence[str], *, with_checkpoint: bool) -> None:
        """Free the slots of these tasks and send them back, with a checkpoint if another worker will continue.

        A task whose checkpoint cannot be made goes without: it continues at its previous one.
        """
        for task in tasks:
            waiting, member = self._scheduler.remove(task), self._scheduler.leave(task)
            if self._preparation is not None:
                self._preparation.drop(task)
            checkpoint: Checkpoint | None = None
            if waiting is not None:
                attempt, checkpoint = waiting.assignment.attempt, waiting.request.checkpoint
            elif member is not None:
                attempt = member.assignment.attempt
                checkpoint = save_now(self._engine, member) if with_checkpoint else None
                self._engine.release(member.row)
            else:
                continue  # it has finished, and that message frees the slot
            if checkpoint is None or not with_checkpoint or not self._post.can_send(sum(map(len, checkpoint.frames))):
                checkpoint = Checkpoint(0)
            at, frames = checkpoint.step, checkpoint.frames
            self._transport.send(WorkerEnvelope(Preempted(task, attempt, at, len(frames)), frames))

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
            self._scheduler.drain()
            self._post.offer(0)
            self._hand_back(list(self._scheduler.waiting), with_checkpoint=True)
        else:
            self._drain_by = now

    # ---- join

    def _join(self, now: float) -> list[WorkerEnvelope]:
        """Let waiting tasks join the batch; return the messages that say so."""
        scheduler, preparation = self._scheduler, self._preparation
        unready: Collection[str] = ()
        if preparation is not None and scheduler.running:
            unready = preparation.start(scheduler.waiting.values(), scheduler.stats.mean_step_s)
        joining = scheduler.take_joining(now, unready)
        rows = admit(self._engine, [t.request for t in joining] if preparation is None else preparation.take(joining))
        started: list[WorkerEnvelope] = []
        is_debug, now = log.isEnabledFor(logging.DEBUG), time.monotonic()
        for task, row in zip(joining, rows, strict=True):
            assignment = task.assignment
            if isinstance(row, OutOfMemory) and scheduler.running:
                scheduler.defer(task)
            elif isinstance(row, OutOfMemory):
                self._results.fail(assignment, TaskError("out_of_memory", str(row)))
            elif isinstance(row, TaskError):
                self._results.fail(assignment, row)
            else:
                scheduler.join(task, row, now)
                started.append(WorkerEnvelope(Started(assignment.task, assignment.attempt)))
                if is_debug:
                    log.debug("task %s starts at step %d", assignment.task, row.step, extra=task_fields(assignment))
                is_changed = (row.step, row.steps) != (assignment.step, assignment.inputs.steps)
                if is_changed and not reports_tokens(assignment.inputs):
                    progress = Progress(assignment.task, assignment.attempt, row.step, row.steps)
                    started.append(WorkerEnvelope(progress))
        return started

    # ---- step

    def _step(self) -> None:
        scheduler, post, received = self._scheduler, self._post, time.monotonic()
        is_full = post.is_full
        news = self._join(received) if scheduler.waiting and not is_full else []
        started = time.monotonic()
        group = scheduler.next_group(started)
        self._is_blocked = not group
        if not group:
            post.start_step(news, scheduler.slots(started), None)
            if self._clock is not None:
                self._clock.on_idle()
            return
        offer, is_short = self._planner.plan(group, started)
        if scheduler.is_grouped or scheduler.has_deferred or is_full:
            offer = Offer()
        # The balancer has to know what runs, should the worker die; not if its whole batch is new and done at once.
        is_short = is_short and len(news) == len(scheduler.running)
        post.start_step(news, scheduler.slots(started), offer, is_short=is_short)
        # The seconds that a text engine has spent on prompts are no part of the usual step.
        counters = self._text_counters
        prompts_s = counters().prefill_s if counters is not None else 0.0
        outcome = step(self._engine, group)
        now = time.monotonic()
        prompts_s = counters().prefill_s - prompts_s if counters is not None else 0.0
        first, tasks, advanced = group[0], len(group), len(outcome.advanced)
        record = StepRecord(first.key, first.shape, advanced, advanced == tasks)
        timed = TimedStep(record, now - started) if self._clock is None else self._clock.on_return(record, now)
        scheduler.on_step(advanced, now - started, timed, now, extra_s=prompts_s)
        if advanced < tasks:
            self._on_not_advanced(outcome, first.key, now)
        self._results.send(outcome.advanced, now)
        if advanced == tasks:
            self._planner.on_step(first.shape, tasks, now - started, time.monotonic() - received)

    def _on_not_advanced(self, outcome: StepOutcome, key: BatchKey, now: float) -> None:
        """Hand back the tasks of a step that did not fit into memory; end those that failed in it."""
        if outcome.evicted:
            self._scheduler.on_out_of_memory(key, len(outcome.advanced), now)
            self._post.offer(len(outcome.advanced))  # first, or they would come straight back
            self._hand_back([member.assignment.task for member in outcome.evicted], with_checkpoint=True)
        for member, error in outcome.failed:
            self._scheduler.leave(member.assignment.task)
            self._engine.release(member.row)
            self._results.fail(member.assignment, error)
