"""Runs the scheduler: passes events from routes, workers and the clock to it, and carries out its effects."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from configs.settings import Settings
from loadbalancer.context.request_context import CURRENT, RequestContext
from loadbalancer.metrics.arrival_log import ArrivalLog
from loadbalancer.scheduling.events import (
    Effect,
    Event,
    LogLine,
    NotifyListener,
    ProcessSuspended,
    ProxyFinished,
    RecordTask,
    RequestProxied,
    SendMessage,
    TasksCancelled,
    Tick,
    WorkerLost,
)
from loadbalancer.scheduling.model_statistics import Totals
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import Checkpoint, Task, TaskCompleted, TaskEnded, TaskUpdate
from loadbalancer.tracing.tracer import Tracer
from loadbalancer.transport.curve_listener import CurveListener
from loadbalancer.transport.process_watcher import ProcessWatcher
from loadbalancer.transport.weight_files import WeightFiles
from loadbalancer.transport.worker_socket import ReceivedMessage, WorkerSocket
from wire.agents import AgentExchange, AgentStates
from wire.codec import BalancerEnvelope, Frame
from wire.inputs import TaskInputs
from wire.messages import Hello, ServerStopping
from wire.snapshot import Snapshot

log = logging.getLogger(__name__)

Listener = Callable[[TaskUpdate], None]
_LAST_UPDATES = (TaskCompleted, TaskEnded)
_TICK_S = 0.25
#: A tick that is late by more than this finds unread messages.
_SUSPENDED_S = 1.0
#: Bounds log lines, which contain names and reasons chosen by workers.
_MAX_LOG_LINE_CHARS = 1000
#: A worker without a balancer tries to connect at least once a second, and then reports what it runs.
_HOLD_S = 1.5


class SchedulerService:
    """Connects requests with workers. All methods are called in the event loop.

    Local workers connect to `address`, workers on other machines to the address of the `listener`.
    """

    def __init__(
        self,
        settings: Settings,
        address: str,
        listener: CurveListener | None = None,
        arrivals: ArrivalLog | None = None,
        tracer: Tracer | None = None,
    ) -> None:
        self._arrivals = arrivals
        #: What an ended task is passed to, with the time.
        self._recorders: list[Callable[[Task, float], None]] = []
        #: Whether anything reads what the contexts of requests note of their tasks.
        self._notes_tasks = tracer is not None or settings.logging.access
        if self._notes_tasks:
            self._recorders.append(_note_end)
        if tracer is not None:
            self._recorders.append(lambda task, _: tracer.end_task(task))
        if arrivals is not None:
            self._recorders.append(lambda task, now: arrivals.put(task, now, time.time()))
        self._curve_listener = listener
        self._scheduler = Scheduler(
            {name: settings.scaling(name) for name in settings.models},
            settings.queue,
            settings.workers,
            grouped=[name for name, model in settings.models.items() if model.batching.mode == "grouped"],
            hold_s=_HOLD_S,
        )
        # Questions that need no clock go to the scheduler itself.
        self.estimate, self.checkpoint = self._scheduler.estimate, self._scheduler.checkpoint
        self.expected_tokens = self._scheduler.expected_tokens
        self.step_curves = self._scheduler.step_curves
        #: The workers of each model, to be read only.
        self.pools = self._scheduler.registry.pools
        #: Counts since the start, to be read only.
        self.statistics, self.owners = self._scheduler.statistics, self._scheduler.owners
        files = WeightFiles(settings.models)
        self._socket = WorkerSocket(address, listener, self._on_messages, self._on_worker_lost, settings.workers, files)
        self._processes = ProcessWatcher(self._on_process_ended)
        self._listeners: dict[str, Listener] = {}
        #: Messages to workers that leave at the end of this turn of the loop.
        self._outbox: dict[str, list[BalancerEnvelope]] = {}
        self._errors: Counter[str] = Counter()
        self._started = time.monotonic()
        self._was_suspended = False

    async def start(self) -> None:
        """Bind the addresses and start. Raises `CannotListen` if an address cannot be bound."""
        self._loop = asyncio.get_running_loop()
        self._socket.open()
        self._next_tick = self._loop.call_later(_TICK_S, self._tick)

    def announce_stop(self, within_s: float) -> None:
        """Ask all workers to serve on for so long, even if they are told to drain."""
        stopping = [BalancerEnvelope(ServerStopping(within_s))]
        self._socket.send(dict.fromkeys(self._scheduler.connected_workers(), stopping))

    async def stop(self) -> None:
        """Cancel every task, then close."""
        self._handle(TasksCancelled(list(self._scheduler.tasks), "the server is shutting down"))
        self._send_outbox()
        self._next_tick.cancel()
        self._socket.stop_receiving()
        self._processes.watch_only(())
        await self._socket.close()

    # ---- requests

    def submit(
        self,
        model: str,
        inputs: Sequence[TaskInputs],
        *,
        timeout_s: float,
        priority: int,
        listener: Listener,
        sources: Sequence[Frame] = (),
        own_frames: Sequence[Sequence[Frame]] = (),
        owner: str = "anonymous",
        weight: float = 1.0,
        task_ids: Sequence[str] = (),
        checkpoints: Sequence[Checkpoint | None] = (),
        may_be_running: bool = False,
        already_counted: bool = False,
        context: RequestContext | None = None,
    ) -> list[str]:
        """Queue one task per item, all or none. `listener` receives every update. Raises `QueueFull`.

        `sources` are the pixels of the source images, shared by all items. `own_frames` (the parts of each call),
        `task_ids` and `checkpoints` have one entry per item where given. `may_be_running`: workers may
        still run these tasks for an earlier balancer process. `already_counted`: `request_proxied` has counted
        them as arrivals. `context` is by default that of the current request.
        """
        now, count, request = time.monotonic(), len(inputs), os.urandom(16).hex()
        names = list(task_ids) or [f"{request}-{i:03}" for i in range(count)]
        context = context or CURRENT.get()
        if context is not None and self._notes_tasks:
            context.on_submit(model, count, now)
        tasks = [
            Task(
                name,
                model,
                item,
                now,
                now + timeout_s,
                priority,
                owner,
                weight,
                steps=item.steps,
                sources=frames,
                siblings=count,
                may_be_running=may_be_running,
                context=context,
            )
            for name, item, frames in zip(names, inputs, own_frames or [sources] * count, strict=True)
        ]
        for task, state in zip(tasks, checkpoints, strict=bool(checkpoints)):
            if state is not None:
                task.resume_from(state)
        effects = self._scheduler.submit(tasks, now, already_counted=already_counted)
        self._listeners.update(dict.fromkeys(names, listener))
        self._carry_out(effects, now)
        return names

    def request_proxied(self, model: str, inputs: Sequence[TaskInputs]) -> None:
        """Count a request to another server as arrivals; `proxy_finished` has to follow."""
        self._handle(RequestProxied(model, inputs[0].shape, inputs[0].steps, len(inputs)))

    def proxy_finished(self, model: str, count: int) -> None:
        self._handle(ProxyFinished(model, count))

    def cancel(self, tasks: Sequence[str]) -> None:
        """Cancel the tasks: their slots are free within one step. Idempotent."""
        for task in tasks:
            self._listeners.pop(task, None)
        self._handle(TasksCancelled(tasks, "cancelled by its client"))

    # ---- questions

    def estimate_wait(self, model: str, item: TaskInputs, *, priority: int, owner: str, weight: float) -> float | None:
        """Return the seconds until this item would start if it were queued now; None if unknown."""
        now = time.monotonic()
        return self._scheduler.estimate_wait(Task("", model, item, now, now, priority, owner, weight, steps=item.steps))

    def is_ready(self, model: str) -> bool:
        return self._scheduler.is_ready(model, time.monotonic())

    @property
    def scheduler_state(self) -> Scheduler:
        """The scheduler, to be read only."""
        return self._scheduler

    def totals(self, model: str) -> Totals:
        return self._scheduler.statistics[model].totals()

    def snapshot(self) -> Snapshot:
        now = time.monotonic()
        links = {worker: self._socket.bytes_of(worker) for worker in self._scheduler.connected_workers()}
        return self._scheduler.snapshot(links, now=now, wall_time=time.time(), uptime_s=now - self._started)

    @property
    def in_flight_counts(self) -> Mapping[str, int]:
        """Unfinished tasks, registered listeners, and slots in use."""
        tasks, slots = len(self._scheduler.tasks), self._scheduler.slots_in_use()
        return {"tasks": tasks, "listeners": len(self._listeners), "slots": slots}

    @property
    def counters(self) -> Mapping[str, int]:
        """Sums since the start: tasks by outcome, messages by what was wrong with them."""
        found = Counter(self._scheduler.counters)
        for other in (self._socket.counters, self._errors):
            found.update(other)  # `+` would leave out those that are 0
        if self._curve_listener is not None:
            found.update(self._curve_listener.rejected)
        if self._arrivals is not None:
            found["arrivals_dropped"] += self._arrivals.dropped
        return found

    # ---- agents of machines

    def exchange_with_agents(self, exchange: AgentExchange) -> AgentStates:
        """Send the controller's orders, and return what the machines have reported."""
        return self._socket.agents.exchange(exchange.orders)

    # ---- events and effects

    def _handle(self, event: Event) -> None:
        now = time.monotonic()
        self._carry_out(self._scheduler.handle(event, now), now)

    def _carry_out(self, effects: Sequence[Effect], now: float) -> None:
        """Carry out effects in order, messages to workers first: a listener may cancel a task that they assign."""
        self._collect_messages(effects)
        for effect in effects:
            if isinstance(effect, NotifyListener):
                update, listeners = effect.update, self._listeners
                is_last = isinstance(update, _LAST_UPDATES)
                listener = listeners.pop(update.task, None) if is_last else listeners.get(update.task)
                if listener is not None:
                    try:
                        listener(update)
                    except Exception:
                        log.exception("a listener failed on %s", type(update).__name__)
            elif isinstance(effect, RecordTask):
                for record in self._recorders:
                    record(effect.task, now)
            elif isinstance(effect, LogLine):
                log.info("%s", _printable(effect.text))

    def _collect_messages(self, effects: Sequence[Effect]) -> None:
        """Collect what goes to workers, to be sent in the next turn of the loop."""
        for effect in effects:
            if isinstance(effect, SendMessage):
                if not self._outbox:
                    self._loop.call_soon(self._send_outbox)
                envelope = BalancerEnvelope(effect.message, effect.frames)
                self._outbox.setdefault(effect.worker, []).append(envelope)

    def _send_outbox(self) -> None:
        """Send each worker its messages of this turn of the loop as one."""
        if self._outbox:
            outbox, self._outbox = self._outbox, {}
            self._socket.send(outbox)

    def _on_messages(self, received: Sequence[ReceivedMessage]) -> None:
        """Take in everything that one wake-up has received, then fill the slots that it has freed."""
        now = time.monotonic()
        scheduler = self._scheduler
        for worker, envelope, is_local in received:
            try:
                effects = scheduler.receive(worker, envelope, now)
                if effects:
                    self._carry_out(effects, now)
            except Exception:  # an error here must not affect the messages of other workers
                self._errors["unhandled"] += 1
                log.exception("failed on a %s of %r", type(envelope.message).__name__, worker)
                continue
            if isinstance(envelope.message, Hello):
                if is_local and worker in scheduler.connected_workers():
                    self._processes.watch(worker, envelope.message.pid)
                else:
                    self._processes.unwatch(worker)
        try:
            self._carry_out(scheduler.assign(now), now)
        except Exception:
            self._errors["unhandled"] += 1
            log.exception("failed to assign tasks")
        self._send_outbox()

    def _on_worker_lost(self, worker: str, reason: str) -> None:
        self._handle(WorkerLost(worker, reason))

    def _on_process_ended(self, worker: str) -> None:
        self._socket.drain()  # its last messages may still be unread
        self._handle(WorkerLost(worker, "its process has ended"))

    def _tick(self) -> None:
        late_s = self._loop.time() - self._next_tick.when()
        self._next_tick = self._loop.call_later(_TICK_S, self._tick)  # first, so that an error does not stop the clock
        # Once in a row only: on a slow machine, deadlines have to expire too.
        self._was_suspended = late_s > _SUSPENDED_S and not self._was_suspended
        if self._was_suspended:  # messages that came while this process was stopped count before workers time out
            log.warning("the balancer was suspended for %.1f s", late_s)
            self._handle(ProcessSuspended(late_s))
            self._socket.drain()
        else:
            try:
                self._handle(Tick())
            except Exception:
                self._errors["unhandled"] += 1
                log.exception("failed on a tick")
        connected = self._scheduler.connected_workers()
        self._processes.watch_only(connected)
        self._socket.keep_only(connected)
        self._socket.ensure_bound()


def _note_end(task: Task, now: float) -> None:
    if task.context is not None:
        task.context.on_task_end(task.created, task.first_started, now)


def _printable(text: str) -> str:
    """Escape and shorten the text, so that no worker can forge log lines by its name or reasons."""
    bounded = text if len(text) <= _MAX_LOG_LINE_CHARS else f"{text[:_MAX_LOG_LINE_CHARS]}..."
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in bounded)
