"""The shell around the dispatcher: what comes from the routes, the workers (`router`, `vigil`) and the clock goes in as
events; what is to be said to workers and listeners comes out as effects. Decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

from configs.settings import Settings
from loadbalancer.metrics.arrival_log import Arrivals
from loadbalancer.scheduling.estimates import estimate_wait
from loadbalancer.scheduling.events import (
    Effect,
    Event,
    LogLine,
    MessageReceived,
    NotifyListener,
    ProxyFinished,
    RecordTask,
    RequestProxied,
    SendMessage,
    TasksCancelled,
    TasksSubmitted,
    Tick,
    WorkerLost,
)
from loadbalancer.scheduling.rules import rules_of
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.snapshot import snapshot
from loadbalancer.scheduling.task import Checkpoint, Task, TaskCompleted, TaskEnded, TaskEstimate, TaskUpdate
from loadbalancer.transport.curve_listener import CurveListener
from loadbalancer.transport.process_watcher import ProcessWatcher
from loadbalancer.transport.worker_socket import WorkerSocket
from wire.codec import ForWorker, FromWorker
from wire.messages import About, Hello, ImageInputs, StepCurve
from wire.snapshot import Snapshot

log = logging.getLogger(__name__)

Listener = Callable[[TaskUpdate], None]
_TICK_S = 0.25
#: A tick that comes so late finds messages that have not been read yet.
_ASLEEP_S = 1.0
#: Workers' names and reasons are in what is noted: such a line is no longer than this.
_MAX_NOTE_CHARS = 1000
#: A worker whose balancer was away tries to connect once a second or more often, and then says what it runs.
_HOLD_S = 1.5


class SchedulerService:
    """Connects requests with workers. All methods are called in the event loop."""

    def __init__(
        self, settings: Settings, address: str, guard: CurveListener | None = None, arrivals: Arrivals | None = None
    ) -> None:
        """Workers meet it at `address`; those of other machines at the guard's."""
        self._arrivals = arrivals
        self._guard = guard
        self._models = settings.models
        self._scheduler = Scheduler(
            list(settings.models),
            max_tasks=settings.queue.max_tasks,
            max_attempts=settings.queue.max_attempts,
            heartbeat_s=settings.workers.heartbeat_s,
            lost_after_s=settings.workers.lost_after_s,
            max_source_bytes=settings.queue.max_source_bytes,
            rules=rules_of(settings, record=arrivals is not None),
            hold_s=_HOLD_S,
        )
        self._router = WorkerSocket(address, guard, self._hear, self._lose)
        self._vigil = ProcessWatcher(self._died)
        self._listeners: dict[str, Listener] = {}
        self._unhandled: Counter[str] = Counter()
        self._started = time.monotonic()
        self._held_up = False

    async def start(self) -> None:
        """Bind and begin. Raises `zmq.ZMQError` or `CannotListen` if an address cannot be bound."""
        self._loop = asyncio.get_running_loop()
        self._router.open()
        self._ticking = self._loop.call_later(_TICK_S, self._tick)

    async def stop(self) -> None:
        """End every waiting request, then close."""
        self._handle(TasksCancelled(list(self._scheduler.tasks), "the server is shutting down"))
        self._ticking.cancel()
        self._router.mute()
        self._vigil.keep(())
        await self._router.close()

    # ---- what the routes use

    def submit(
        self,
        model: str,
        inputs: Sequence[ImageInputs],
        *,
        timeout_s: float,
        priority: int,
        listener: Listener,
        sources: Sequence[bytes] = (),
        owner: str = "anonymous",
        weight: float = 1.0,
        task_ids: Sequence[str] = (),
        checkpoints: Sequence[Checkpoint | None] = (),
        may_be_running: bool = False,
        already_counted: bool = False,
    ) -> list[str]:
        """Queue one task per item, all or none. `listener` receives every update. Raises `QueueFull`.

        `sources` are the pixels of the source images, shared by all items. `task_ids` and `checkpoints` have one entry
        per item where given. `may_be_running`: workers may still run these tasks for an earlier balancer process.
        `already_counted`: `request_proxied` has counted them as arrivals.
        """
        now, request = time.monotonic(), uuid.uuid4().hex
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
                sources=sources,
                siblings=len(inputs),
                may_be_running=may_be_running,
            )
            for name, item in zip(task_ids or [f"{request}-{i:03}" for i in range(len(inputs))], inputs, strict=True)
        ]
        for task, state in zip(tasks, checkpoints, strict=bool(checkpoints)):
            if state is not None:
                task.resume(state)
        self._listeners |= dict.fromkeys((task.id for task in tasks), listener)
        try:
            self._handle(TasksSubmitted(tasks, already_counted))
        except Exception:
            for task in tasks:
                self._listeners.pop(task.id, None)
            raise
        return [task.id for task in tasks]

    def request_proxied(self, model: str, inputs: Sequence[ImageInputs]) -> None:
        """Another server is asked to do these: they are arrivals all the same. `forwarded` says when that is over."""
        size = inputs[0].width, inputs[0].height
        self._handle(RequestProxied(model, size, inputs[0].steps, len(inputs)))

    def proxy_finished(self, model: str, count: int) -> None:
        """The other server has answered, or will not."""
        self._handle(ProxyFinished(model, count))

    def estimate_wait(self, model: str, item: ImageInputs, *, priority: int, owner: str, weight: float) -> float | None:
        """Seconds until this would begin if it were queued now; None if unknown."""
        now, core = time.monotonic(), self._scheduler
        task = Task("", model, item, now, now, priority, owner, weight, steps=item.steps)
        return estimate_wait(task, core.queues[model], core.roster.of(model), core.tasks)

    def cancel(self, tasks: Sequence[str]) -> None:
        """Nobody waits for these any more: their slots are free within one step. Idempotent."""
        for task in tasks:
            self._listeners.pop(task, None)
        self._handle(TasksCancelled(tasks, "cancelled by its client"))

    def estimate(self, task: str) -> TaskEstimate | None:
        """The task's place in the queue and the time to its end; None once it has ended."""
        return self._scheduler.estimate(task)

    def checkpoint(self, task: str) -> Checkpoint | None:
        """The task's last known state on its way; None before the first, and once it has ended."""
        known = self._scheduler.tasks.get(task)
        return Checkpoint(known.checkpoint_step, known.steps, known.checkpoint) if known and known.checkpoint else None

    def is_ready(self, model: str) -> bool:
        """Whether some worker of the model takes tasks."""
        roster, now = self._scheduler.roster, time.monotonic()
        return any(worker.slots and roster.state(worker, now) == "ready" for worker in roster.of(model))

    def engine_info(self, model: str) -> About | None:
        """What the model's engine can do, by the word of a worker; None while none is connected."""
        return next((worker.hello.about for worker in self._scheduler.roster.of(model)), None)

    def step_curves(self, model: str) -> list[StepCurve]:
        """What a step costs by picture size: of each size, the curve of the worker with the largest cap."""
        best: dict[tuple[int, int], StepCurve] = {}
        for worker in self._scheduler.roster.of(model):
            for curve in worker.beat.curves:
                size = curve.width, curve.height
                best[size] = max(best.get(size, curve), curve, key=lambda each: each.cap)
        return list(best.values())

    def snapshot(self) -> Snapshot:
        """The present, for the controller and for metrics."""
        now = time.monotonic()
        core = self._scheduler
        return snapshot(
            core.queues,
            core.rates,
            core.costs,
            core.tasks,
            core.roster,
            now=now,
            wall_time=time.time(),
            uptime_s=now - self._started,
        )

    @property
    def in_flight_counts(self) -> Mapping[str, int]:
        """Tasks that have not ended, listeners that wait for news of one, and workers' slots that are taken."""
        slots = sum(len(worker.held) for worker in self._scheduler.roster)
        return {"tasks": len(self._scheduler.tasks), "listeners": len(self._listeners), "slots": slots}

    @property
    def counters(self) -> Mapping[str, int]:
        """Sums since the start: tasks by what became of them, messages by what was wrong with them."""
        refused = self._guard.refused if self._guard is not None else Counter[str]()
        dropped = Counter({"arrivals_dropped": self._arrivals.dropped}) if self._arrivals is not None else Counter()
        return self._scheduler.counters + self._router.counters + self._unhandled + refused + dropped

    # ---- events in, effects out

    def _handle(self, event: Event) -> None:
        self._perform(self._scheduler.handle(event, time.monotonic()))

    def _perform(self, effects: Sequence[Effect]) -> None:
        parcels: dict[str, list[ForWorker]] = {}
        for effect in effects:
            match effect:
                case SendMessage(worker, message, frames):
                    parcels.setdefault(worker, []).append(ForWorker(message, frames))
                case NotifyListener(update):
                    self._tell(update)
                case LogLine(text):
                    log.info("%s", _printable(text))
                case RecordTask(task):
                    assert self._arrivals is not None
                    self._arrivals.put(task, time.monotonic(), time.time())
        for worker, own in parcels.items():
            self._router.send(worker, own)

    def _tell(self, update: TaskUpdate) -> None:
        over = isinstance(update, TaskCompleted | TaskEnded)
        listener = self._listeners.pop(update.task, None) if over else self._listeners.get(update.task)
        if listener is None:
            return
        try:
            listener(update)
        except Exception:
            log.exception("a listener failed on %s", type(update).__name__)

    def _hear(self, worker: str, parcel: FromWorker, local: bool) -> None:
        try:
            self._handle(MessageReceived(worker, parcel))
        except Exception:  # a mistake of ours must not keep the other workers from being heard
            self._unhandled["unhandled"] += 1
            log.exception("failed on a %s of %r", type(parcel.message).__name__, worker)
            return
        if isinstance(parcel.message, Hello):
            if local and worker in self._scheduler.roster.workers:
                self._vigil.watch(worker, parcel.message.pid)
            else:
                self._vigil.leave(worker)

    def _lose(self, worker: str, reason: str) -> None:
        self._handle(WorkerLost(worker, reason))

    def _tick(self) -> None:
        late_s = self._loop.time() - self._ticking.when()
        self._ticking = self._loop.call_later(_TICK_S, self._tick)  # first, so that it goes on whatever comes
        self._held_up = late_s > _ASLEEP_S and not self._held_up  # once: a slow machine has deadlines, too
        if self._held_up:  # what the workers said while this process was stopped is heard before they are called silent
            log.warning("the balancer was held up for %.1f s", late_s)
            self._router.drain()
        else:
            try:
                self._handle(Tick())
            except Exception:
                self._unhandled["unhandled"] += 1
                log.exception("failed on a tick")
        self._vigil.keep(self._scheduler.roster.workers.keys())

    def _died(self, worker: str) -> None:
        self._router.drain()  # its last words may still be unread
        self._lose(worker, "its process has ended")


def _printable(text: str) -> str:
    """What a worker calls itself and gives as its reasons is its own: it must not look like other lines."""
    bounded = text if len(text) <= _MAX_NOTE_CHARS else f"{text[:_MAX_NOTE_CHARS]}..."
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in bounded)
