"""The request scheduler: a pure state machine, `handle(event, now) -> effects`.

It does no I/O, reads no clock and never waits. Effects say what has to be done; the next event says what was done.
A worker's message about a task only counts for a task that the worker holds, in the attempt that it was assigned.
Anything else is counted as stale and dropped, so that every accepted task ends exactly once for any interleaving of
messages, deaths and cancellations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from types import MappingProxyType

from configs.scaling import Scaling
from configs.sections import Queue, Workers
from loadbalancer.scheduling import estimates
from loadbalancer.scheduling.events import (
    Effect,
    Event,
    LogLine,
    MessageReceived,
    ProcessSuspended,
    ProxyFinished,
    RequestProxied,
    SendMessage,
    TasksCancelled,
    TasksSubmitted,
    Tick,
    WorkerLost,
)
from loadbalancer.scheduling.preemption import move_unstarted, preemptions, rebalancing
from loadbalancer.scheduling.snapshot import snapshot
from loadbalancer.scheduling.task import Checkpoint, OutputMissing, Task, TaskEstimate
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.scheduling.task_store import TaskStore
from loadbalancer.scheduling.worker_admission import MAX_INVALID_RESULTS, WorkerAdmission
from loadbalancer.scheduling.worker_output import chunk_error, clean_text, drop_invalid, result_error
from loadbalancer.scheduling.worker_pool import Worker
from loadbalancer.scheduling.worker_registry import WorkerRegistry
from wire.codec import Frame, WorkerEnvelope
from wire.inputs import Shape
from wire.messages import (
    Ack,
    Bye,
    Cancel,
    Chunk,
    Failed,
    Finished,
    Heartbeat,
    Hello,
    Preempted,
    Progress,
    Started,
    StepCurve,
    Tokens,
)
from wire.snapshot import LinkBytes, Snapshot
from wire.text import TaskTokens

_ABOUT_TASK = (Finished, Progress, Started, Chunk, Failed, Preempted)
_NO_LINKS: Mapping[str, LinkBytes] = MappingProxyType({})


class Scheduler:
    """Task store and worker registry, driven by events.

    `hold_s`: see `TaskStore`. `grouped`: models whose batches take no new task before all others have left, so that
    preemption would free no slot.
    """

    def __init__(
        self,
        models: Mapping[str, Scaling],
        queue: Queue,
        workers: Workers,
        *,
        grouped: Collection[str] = (),
        hold_s: float = 0.0,
    ) -> None:
        self._queue_config, self._heartbeat_s = queue, workers.heartbeat_s
        self._grouped = frozenset(grouped)
        self._max_result_bytes = int(workers.max_result_bytes)
        self.registry = WorkerRegistry(workers)
        self.store = store = TaskStore(models, queue, self.registry, hold_s)
        self.tasks, self.queues, self.counters = store.tasks, store.queues, store.counters
        self._admission = WorkerAdmission(self.queues, workers.heartbeat_s, self.counters)
        self.costs, self.statistics, self.owners = store.costs, store.statistics, store.owners
        #: Queue the tasks of one request and fill free slots, as `handle` does for `TasksSubmitted`.
        self.submit = store.submit
        #: Fill free slots, after one or more calls of `apply` or `receive`.
        self.assign = store.assign

    def __repr__(self) -> str:
        return f"<Scheduler {len(self.tasks)} tasks, {self.registry!r}, {self.queues!r}>"

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Process the event and fill free slots; return the effects. Raises `QueueFull`, see `apply`."""
        if isinstance(event, TasksSubmitted):
            return self.submit(event.tasks, now, already_counted=event.already_counted)
        effects, is_tick = self.apply(event, now), isinstance(event, Tick)
        effects += self.store.assign(now, everywhere=is_tick)
        return effects + self._preempt_and_rebalance(now) if is_tick else effects

    def apply(self, event: Event, now: float) -> list[Effect]:
        """Process the event without filling free slots. Raises `QueueFull` for `TasksSubmitted` without room."""
        match event:
            case MessageReceived(worker, envelope):
                return self.receive(worker, envelope, now)
            case TasksSubmitted(tasks, already_counted):
                self.store.submit(tasks, now, already_counted=already_counted)
            case TasksCancelled(names, reason):
                return self.store.cancel(names, reason, now)
            case WorkerLost(worker, reason):
                return self._on_worker_lost(worker, reason, now)
            case Tick():
                return self._on_tick(now)
            case ProcessSuspended(pause_s):
                self.registry.on_pause(pause_s, now)
            case RequestProxied(model, shape, steps, count):
                work_s = self.costs[model].work_s(shape, steps)
                self.statistics[model].on_proxied(shape, steps, count, now, work_s)
            case ProxyFinished(model, count):
                self.statistics[model].on_proxy_finished(count)
        return []

    # ---- questions

    def estimate(self, task_id: str) -> TaskEstimate | None:
        """Return the task's position and remaining time; None once it has ended."""
        task = self.tasks.get(task_id)
        if task is None:
            return None
        return estimates.estimate(task, self.queues[task.model], self.registry.pools[task.model])

    def estimate_wait(self, task: Task) -> float | None:
        """Return the seconds until this task would start if it were queued now; None if unknown."""
        workers = self.registry.pools[task.model]
        return estimates.estimate_wait(task, self.queues[task.model], workers, self.tasks)

    def expected_tokens(self, model: str, owner: str, prompt_bytes: int, max_tokens: int) -> int:
        """Return the expected tokens of a prompt of so many bytes and its text."""
        work = self.store.text_work[model]
        return work.prompt_tokens(prompt_bytes) + work.expected_tokens(owner, max_tokens)

    def checkpoint(self, task_id: str) -> Checkpoint | None:
        """Return the task's latest checkpoint; None before the first, and once it has ended."""
        task = self.tasks.get(task_id)
        return Checkpoint(task.checkpoint_step, task.steps, task.checkpoint) if task and task.checkpoint else None

    def is_ready(self, model: str, now: float) -> bool:
        """Return whether some worker of the model accepts tasks."""
        return any(w.slots and self.registry.state(w, now) == "ready" for w in self.registry.pools[model])

    def step_curves(self, model: str) -> list[StepCurve]:
        """Return the step times by shape; of each shape, the curve of the worker with the largest cap."""
        best: dict[Shape, StepCurve] = {}
        for worker in self.registry.serving(model):
            for curve in worker.heartbeat.curves:
                best[curve.shape] = max(best.get(curve.shape, curve), curve, key=lambda each: each.cap)
        return list(best.values())

    def connected_workers(self) -> Collection[str]:
        return self.registry.workers.keys()

    def slots_in_use(self) -> int:
        return sum(len(worker.assigned) for worker in self.registry)

    def snapshot(
        self, links: Mapping[str, LinkBytes] = _NO_LINKS, *, now: float, wall_time: float, uptime_s: float
    ) -> Snapshot:
        return snapshot(self.store, links, now=now, wall_time=wall_time, uptime_s=uptime_s)

    # ---- time

    def _on_tick(self, now: float) -> list[Effect]:
        self.registry.offer_all()
        self.store.update_costs()  # first: if it fails, nothing has changed that a listener would miss
        effects = self.store.expire(now)
        self._admission.forget_requests(now)
        for worker in self.registry.timed_out(now):
            self.counters["workers_silent"] += 1
            effects += self._on_worker_lost(worker.id, f"silent for {now - worker.last_message_at:.1f} s", now)
        for worker in self.registry.stuck_workers(now):
            effects += self._evict_stuck(worker, now)
        return effects

    def _preempt_and_rebalance(self, now: float) -> list[Effect]:
        """Preempt running tasks for more urgent ones, or spread them over workers with free slots."""
        effects: list[Effect] = []
        margin, rebalance = self._queue_config.preempt_margin, self._queue_config.rebalance
        for model, queue in self.queues.items():
            if model in self._grouped:
                continue
            if not queue.count:
                relocations = move_unstarted(self.registry, model, self.tasks, now)
                if rebalance and not relocations:
                    relocations = rebalancing(self.registry, model, self.tasks, now)
                effects += self.store.preempt(relocations, "rebalanced")
                continue
            workers = self.registry.serving(model)
            full = not any(w.free_slots and self.registry.state(w, now) == "ready" for w in workers)
            if margin is not None and full:
                effects += self.store.preempt(preemptions(queue, workers, self.tasks, margin, now), "preempted")
        return effects

    # ---- workers

    def receive(self, name: str, envelope: WorkerEnvelope, now: float) -> list[Effect]:
        """Take in a worker's message without filling free slots; see `MessageReceived`."""
        message = envelope.message
        if isinstance(message, Hello):
            return self._on_hello(name, message, now)
        worker = self.registry.workers.get(name)
        if worker is None:
            return self._admission.on_unknown_worker(name, message, now)
        model = worker.hello.model
        holds = self.registry.pools[model].on_message(worker, message, now)
        self.store.note_change(model)
        if isinstance(message, Tokens):
            effects: list[Effect] = []
            for each in message.tasks:
                holds = worker.assigned.get(each.task) == each.attempt
                effects += self._on_task_message(worker, each, (), now, holds=holds)
            return effects
        if isinstance(message, _ABOUT_TASK):
            return self._on_task_message(worker, message, envelope.frames, now, holds=holds)
        if isinstance(message, Bye):
            return self._on_worker_lost(name, clean_text(message.reason), now, crashed=message.crashed)
        return [SendMessage(name, Ack(self._heartbeat_s))] if isinstance(message, Heartbeat) else []

    def _on_hello(self, name: str, hello: Hello, now: float) -> list[Effect]:
        if rejection := self._admission.on_hello(name, hello):
            return rejection
        worker, previous = self.registry.connect(hello, now)
        self.store.statistics[hello.model].on_worker_start(name, hello.pid, hello.start)
        self.store.note_change(hello.model)
        resumed, cancelled, effects = self.store.reconcile(worker, previous, now)
        effects.append(SendMessage(name, Ack(self._heartbeat_s)))
        if cancelled:
            effects.append(SendMessage(name, Cancel(cancelled)))
        if resumed:
            effects.append(LogLine(f"worker {name} continues {len(resumed)} tasks of an earlier balancer process"))
        if previous is None or previous.hello.pid != hello.pid:
            effects.append(LogLine(f"worker {name} ready: {hello.model} on {hello.device}, process {hello.pid}"))
        return effects

    def _on_task_message(
        self,
        worker: Worker,
        message: Started | Progress | Chunk | TaskTokens | Finished | Failed | Preempted,
        frames: Sequence[Frame],
        now: float,
        *,
        holds: bool,
    ) -> list[Effect]:
        """Process a message about one task. `holds`: it is about the attempt that the worker was assigned."""
        if not holds:
            self.counters["stale"] += 1
            return []
        task, store = self.tasks.get(message.task), self.store
        if task is None or task.worker != worker.id or task.attempt != message.attempt:
            return []  # the task ended while the worker still held it; only the slot matters
        if isinstance(message, Finished):
            return self._on_finished(worker, task, message, frames, now)
        if frames and isinstance(message, Progress | Preempted):
            message, frames, dropped = drop_invalid(message, frames, task.inputs, self._max_result_bytes)
            self._count(dropped)
        match message:
            case TaskTokens() | Chunk():
                return self._on_output(worker, task, message, frames, now)
            case Started():
                return store.mark_started(task, now)
            case Progress(step=step, steps=steps, preview=preview):
                updates = store.report_progress(task, step, steps, frames, now, preview=preview)
                return [*store.mark_started(task, now), *updates]
            case Failed(kind=kind, message=text, status=status):
                return store.finish(task, TaskState.FAILED, kind, clean_text(text), now, status)
            case Preempted(step=step):
                return store.on_preempted(task, step, frames, now)

    def _count(self, events: Iterable[str]) -> None:
        for event in events:
            self.counters[event] += 1

    def _on_finished(
        self, worker: Worker, task: Task, message: Finished, frames: Sequence[Frame], now: float
    ) -> list[Effect]:
        error = result_error(message.parts, frames, task.inputs, self._max_result_bytes)
        if error:
            return self._on_invalid_result(worker, task, error, now)
        if worker.invalid_results:
            worker.on_result(valid=True)
        return self.store.complete(task, message, frames, now)

    def _on_output(
        self, worker: Worker, task: Task, message: Chunk | TaskTokens, frames: Sequence[Frame], now: float
    ) -> list[Effect]:
        """Pass on a piece of the result. One that does not continue the result is generated again."""
        effects = self.store.mark_started(task, now)
        try:
            if isinstance(message, TaskTokens):
                return [*effects, *self.store.report_tokens(task, message.output)]
            if error := chunk_error(message.part, frames, task.inputs, self._max_result_bytes):
                raise ValueError(error)
            repeatable = worker.hello.engine_info.repeatable
            chunk = self.store.report_chunk(task, message.index, message.part, frames[0], repeatable=repeatable)
        except ValueError as error:
            cancel = SendMessage(worker.id, Cancel([task.id]))
            if isinstance(error, OutputMissing):  # not the worker's fault
                self.counters["missing_outputs"] += 1
                return [*effects, cancel, *self.store.on_invalid_result(task, str(error), now)]
            return [*effects, cancel, *self._on_invalid_result(worker, task, str(error), now)]
        return [*effects, *chunk]

    def _on_invalid_result(self, worker: Worker, task: Task, error: str, now: float) -> list[Effect]:
        """Give the task to another attempt. A worker that repeats this is rejected, and its other tasks move."""
        effects = [*self.store.mark_started(task, now), *self.store.on_invalid_result(task, error, now)]
        effects += self._admission.on_invalid_result(worker, task.id, error)
        if worker.invalid_results < MAX_INVALID_RESULTS:
            return effects
        reason = f"{worker.invalid_results} invalid results in a row"
        effects += self._admission.reject_faulty(worker, reason)
        return [*effects, *self._on_worker_lost(worker.id, reason, now, crashed=False)]

    def _on_worker_lost(self, name: str, reason: str, now: float, crashed: bool = True) -> list[Effect]:
        worker = self.registry.disconnect(name)
        if worker is None:
            return []
        if crashed:
            self.counters["workers_lost"] += 1
        text = f"worker {name} lost ({reason}), {len(worker.assigned)} tasks return to the queue"
        return [LogLine(text), *self.store.recover(worker, reason, now, blame=crashed)]

    def _evict_stuck(self, worker: Worker, now: float) -> list[Effect]:
        """Requeue the tasks of a stuck worker. Their slots stay taken, because it still has them if it wakes up."""
        worker.mark_stuck(now)
        self.counters["workers_stuck"] += 1
        reason = f"it made no step for {now - worker.progress_at:.1f} s"
        note = LogLine(f"worker {worker.id} is stuck: it sends heartbeats, but {reason}")
        cancel = SendMessage(worker.id, Cancel(list(worker.assigned)))
        return [note, cancel, *self.store.recover(worker, reason, now, blame=True)]
