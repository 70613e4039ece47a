"""The shell around the dispatcher: its socket, its clock and its listeners. Decides nothing.

The ROUTER socket's file descriptor is watched by the event loop and drained in bulk: one wake-up takes everything
that has arrived, and everything that is to be said to a worker leaves as one message.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import zmq

from configs.schema import Settings
from loadbalancer.arrivals import Arrivals
from loadbalancer.dispatch import Dispatch
from loadbalancer.effects import (
    Abandon,
    Account,
    Effect,
    Event,
    Forward,
    Forwarded,
    Gone,
    Note,
    Said,
    Send,
    Submit,
    Tell,
    Tick,
)
from loadbalancer.outlook import wait_s
from loadbalancer.rules import rules_of
from loadbalancer.stats import snapshot
from loadbalancer.task import Completed, Ended, Outlook, Resume, Task, Update
from wire.codec import ForWorker, MalformedFrames, decode_from_worker, encode
from wire.guard import CannotListen, Guard, Origin
from wire.messages import About, Hello, ImageInputs, StepCurve
from wire.snapshot import Snapshot

log = logging.getLogger(__name__)

Listener = Callable[[Update], None]
_TICK_S = 0.25
#: A tick that comes so late finds messages that have not been read yet.
_ASLEEP_S = 1.0
#: Messages taken per wake-up, so that a flood from workers cannot starve HTTP.
_BULK = 256
_MAX_MESSAGE_BYTES = 256 * 2**20


class Hub:
    """Connects requests with workers. All methods are called in the event loop."""

    def __init__(
        self, settings: Settings, address: str, guard: Guard | None = None, arrivals: Arrivals | None = None
    ) -> None:
        """Workers meet it at `address`; those of other machines at the guard's."""
        self._address = address
        self._arrivals = arrivals
        self._guard = guard
        self._models = settings.models
        self._dispatch = Dispatch(
            list(settings.models),
            max_tasks=settings.queue.max_tasks,
            max_attempts=settings.queue.max_attempts,
            heartbeat_s=settings.workers.heartbeat_s,
            lost_after_s=settings.workers.lost_after_s,
            max_source_bytes=settings.queue.max_source_bytes,
            rules=rules_of(settings, record=arrivals is not None),
        )
        self._listeners: dict[str, Listener] = {}
        self._wire: Counter[str] = Counter()
        self._blamed: set[str] = set()
        self._watched: dict[str, int] = {}
        self._started = time.monotonic()
        self._held_up = False

    async def start(self) -> None:
        """Bind and begin. Raises `zmq.ZMQError` or `CannotListen` if an address cannot be bound."""
        self._loop = asyncio.get_running_loop()
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self._socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self._socket.setsockopt(zmq.LINGER, 200)
        self._socket.setsockopt(zmq.SNDHWM, 10_000)
        self._socket.setsockopt(zmq.RCVHWM, 10_000)
        self._socket.setsockopt(zmq.MAXMSGSIZE, _MAX_MESSAGE_BYTES)
        self._socket.bind(self._address)
        if self._guard is not None:  # last, for it changes what is asked of whoever connects to what is bound later
            try:
                self._guard.open(self._context, self._socket)
            except CannotListen:
                self._context.destroy()
                raise
        self._loop.add_reader(self._socket.fileno(), self._drain)
        self._ticking = self._loop.call_later(_TICK_S, self._tick)

    async def stop(self) -> None:
        """End every waiting request, then close."""
        self._handle(Abandon(list(self._dispatch.tasks), "the server is shutting down"))
        self._ticking.cancel()
        self._loop.remove_reader(self._socket.fileno())
        for worker in list(self._watched):
            self._unwatch(worker)
        if self._guard is not None:
            self._guard.close()
        self._socket.close()
        await asyncio.to_thread(self._context.term)

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
        resume: Sequence[Resume | None] = (),
        known: bool = False,
    ) -> list[str]:
        """Queue one task per item, all or none; `listener` hears every update of each. Raises `QueueFull`.

        `sources` are the pixels of the source pictures, the same for every item. `resume`, where given, has an entry
        per item: the state that it goes on from. `known`: they were counted as arrivals by `forward`.
        """
        now, request = time.monotonic(), uuid.uuid4().hex
        tasks = [
            Task(
                f"{request}-{i:03}",
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
            )
            for i, item in enumerate(inputs)
        ]
        for task, state in zip(tasks, resume, strict=bool(resume)):
            if state is not None:
                task.resume(state)
        self._listeners |= dict.fromkeys((task.id for task in tasks), listener)
        try:
            self._handle(Submit(tasks, known))
        except Exception:
            for task in tasks:
                self._listeners.pop(task.id, None)
            raise
        return [task.id for task in tasks]

    def forward(self, model: str, inputs: Sequence[ImageInputs]) -> None:
        """Another server is asked to do these: they are arrivals all the same. `forwarded` says when that is over."""
        size = inputs[0].width, inputs[0].height
        self._handle(Forward(model, size, inputs[0].steps, len(inputs)))

    def forwarded(self, model: str, count: int) -> None:
        """The other server has answered, or will not."""
        self._handle(Forwarded(model, count))

    def wait_s(self, model: str, item: ImageInputs, *, priority: int, owner: str, weight: float) -> float | None:
        """Seconds until this would begin if it were queued now; None if unknown."""
        now, core = time.monotonic(), self._dispatch
        task = Task("", model, item, now, now, priority, owner, weight, steps=item.steps)
        return wait_s(task, core.queues[model], core.roster.of(model), core.tasks)

    def cancel(self, tasks: Sequence[str]) -> None:
        """Nobody waits for these any more: their slots are free within one step. Idempotent."""
        for task in tasks:
            self._listeners.pop(task, None)
        self._handle(Abandon(tasks, "cancelled by its client"))

    def outlook(self, task: str) -> Outlook | None:
        """The task's place in the queue and the time to its end; None once it has ended."""
        return self._dispatch.outlook(task)

    def checkpoint(self, task: str) -> Resume | None:
        """The task's last known state on its way; None before the first, and once it has ended."""
        known = self._dispatch.tasks.get(task)
        return Resume(known.checkpoint_step, known.steps, known.checkpoint) if known and known.checkpoint else None

    def ready(self, model: str) -> bool:
        """Whether some worker of the model takes tasks."""
        roster, now = self._dispatch.roster, time.monotonic()
        return any(worker.slots and roster.state(worker, now) == "ready" for worker in roster.of(model))

    def about(self, model: str) -> About | None:
        """What the model's engine can do, by the word of a worker; None while none is connected."""
        return next((worker.hello.about for worker in self._dispatch.roster.of(model)), None)

    def curves(self, model: str) -> list[StepCurve]:
        """What a step costs by picture size: of each size, the curve of the worker with the largest cap."""
        best: dict[tuple[int, int], StepCurve] = {}
        for worker in self._dispatch.roster.of(model):
            for curve in worker.beat.curves:
                size = curve.width, curve.height
                best[size] = max(best.get(size, curve), curve, key=lambda each: each.cap)
        return list(best.values())

    def snapshot(self) -> Snapshot:
        """The present, for the controller and for metrics."""
        now = time.monotonic()
        core = self._dispatch
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
    def open(self) -> Mapping[str, int]:
        """Tasks that have not ended, listeners that wait for news of one, and workers' slots that are taken."""
        slots = sum(len(worker.held) for worker in self._dispatch.roster)
        return {"tasks": len(self._dispatch.tasks), "listeners": len(self._listeners), "slots": slots}

    @property
    def counters(self) -> Mapping[str, int]:
        """Sums since the start: tasks by what became of them, messages by what was wrong with them."""
        refused = self._guard.refused if self._guard is not None else Counter[str]()
        dropped = Counter({"arrivals_dropped": self._arrivals.dropped}) if self._arrivals is not None else Counter()
        return self._dispatch.counters + self._wire + refused + dropped

    # ---- events in, effects out

    def _handle(self, event: Event) -> None:
        self._perform(self._dispatch.handle(event, time.monotonic()))

    def _perform(self, effects: Sequence[Effect]) -> None:
        parcels: dict[str, list[ForWorker]] = {}
        for effect in effects:
            match effect:
                case Send(worker, message, frames):
                    parcels.setdefault(worker, []).append(ForWorker(message, frames))
                case Tell(update):
                    self._tell(update)
                case Note(text):
                    log.info("%s", text)
                case Account(task):
                    assert self._arrivals is not None
                    self._arrivals.put(task, time.monotonic(), time.time())
        for worker, own in parcels.items():
            self._send(worker, own)

    def _tell(self, update: Update) -> None:
        over = isinstance(update, Completed | Ended)
        listener = self._listeners.pop(update.task, None) if over else self._listeners.get(update.task)
        if listener is None:
            return
        try:
            listener(update)
        except Exception:
            log.exception("a listener failed on %s", type(update).__name__)

    def _send(self, worker: str, parcels: Sequence[ForWorker]) -> None:
        try:
            self._socket.send_multipart([worker.encode(), *encode(parcels)], zmq.DONTWAIT, copy=False)
        except zmq.ZMQError as error:  # EHOSTUNREACH: it has gone; EAGAIN: it does not read
            reason = f"cannot be reached: {error}"
            self._loop.call_soon(lambda: self._handle(Gone(worker, reason)))
        # The descriptor is edge-triggered: sending may have swallowed the edge of a message that arrived meanwhile.
        if int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        for _ in range(_BULK):
            if self._socket.closed:
                return
            try:
                identity, *frames = self._socket.recv_multipart(zmq.DONTWAIT, copy=False)
            except zmq.Again:
                return
            origin = Origin.LOCAL if self._guard is None else self._guard.origin(identity)
            if origin is Origin.REVOKED:  # its connection stands; unheard, it is lost like any silent worker
                self._wire["revoked"] += 1
                continue
            local = origin is Origin.LOCAL
            self._receive(identity.bytes.decode("utf-8", "replace"), [frame.buffer for frame in frames], local)
        self._loop.call_soon(self._drain)

    def _receive(self, worker: str, frames: list[memoryview], local: bool) -> None:
        try:
            parcels = decode_from_worker(frames)
        except MalformedFrames as error:
            self._wire["malformed"] += 1
            if worker not in self._blamed and len(self._blamed) < 1000:
                self._blamed.add(worker)
                log.warning("dropped a malformed message of %r (further ones are only counted): %s", worker, error)
            return
        for parcel in parcels:
            try:
                self._handle(Said(worker, parcel))
            except Exception:  # a mistake of ours must not keep the other workers from being heard
                self._wire["unhandled"] += 1
                log.exception("failed on a %s of %r", type(parcel.message).__name__, worker)
                continue
            if isinstance(parcel.message, Hello):
                self._watch(worker, parcel.message.pid, local)

    def _tick(self) -> None:
        late_s = self._loop.time() - self._ticking.when()
        self._ticking = self._loop.call_later(_TICK_S, self._tick)  # first, so that it goes on whatever comes
        self._held_up = late_s > _ASLEEP_S and not self._held_up  # once: a slow machine has deadlines, too
        if self._held_up:  # what the workers said while this process was stopped is heard before they are called silent
            log.warning("the balancer was held up for %.1f s", late_s)
            self._drain()
        else:
            self._handle(Tick())
        for worker in self._watched.keys() - self._dispatch.roster.workers.keys():
            self._unwatch(worker)

    # ---- the death of a worker on this machine is noticed at once, not by its silence

    def _watch(self, worker: str, pid: int, local: bool) -> None:
        self._unwatch(worker)
        if not local or worker not in self._dispatch.roster.workers:
            return
        try:
            handle = os.pidfd_open(pid)
        except (OSError, AttributeError):  # another pid namespace or another system: silence will tell
            return
        self._watched[worker] = handle
        self._loop.add_reader(handle, self._died, worker)

    def _unwatch(self, worker: str) -> None:
        handle = self._watched.pop(worker, None)
        if handle is not None:
            self._loop.remove_reader(handle)
            os.close(handle)

    def _died(self, worker: str) -> None:
        self._unwatch(worker)
        self._drain()  # its last words may still be unread
        self._handle(Gone(worker, "its process has ended"))
