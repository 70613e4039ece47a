"""The balancer's mind: `handle(event, now) -> effects`. With its `books`, the only owner of task states.

Rule 1: no I/O, no clock, no await. What must be done comes back as effects; what was done arrives as the next event.
Rule 2: a worker's word counts only for a task that it holds, in the attempt it was given; all else is counted as
stale and dropped. So every accepted task ends exactly once, however messages, deaths and cancellations interleave.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from loadbalancer.scheduling.estimates import estimate
from loadbalancer.scheduling.events import (
    Effect,
    Event,
    LogLine,
    MessageReceived,
    NotifyListener,
    ProxyFinished,
    RequestProxied,
    SendMessage,
    TasksCancelled,
    TasksSubmitted,
    Tick,
    WorkerLost,
)
from loadbalancer.scheduling.preemption import preemptions, rebalancing
from loadbalancer.scheduling.rules import Rules
from loadbalancer.scheduling.task import TaskEstimate, TaskState
from loadbalancer.scheduling.task_store import TaskStore
from loadbalancer.scheduling.worker_registry import Worker, WorkerRegistry
from wire.codec import Frame, FromWorker
from wire.messages import (
    PROTOCOL,
    Bye,
    Cancel,
    Failed,
    Finished,
    Heartbeat,
    Hello,
    Progress,
    Pull,
    Reject,
    Returned,
    Started,
    ToBalancer,
    Welcome,
)

_MAX_SLOTS = 4096
#: Refused workers that are named in the log: each can come as often and under as many names as it likes.
_MOST_NAMED = 1000


class Scheduler:
    """Queue, roster and tasks, moved by events."""

    def __init__(
        self,
        models: Sequence[str],
        *,
        max_tasks: int,
        max_attempts: int,
        heartbeat_s: float,
        lost_after_s: float,
        max_source_bytes: int = 1 << 30,
        rules: Rules | None = None,
        hold_s: float = 0.0,
    ) -> None:
        """`hold_s`: after a start, how long workers have to say what they still run before it is given to others."""
        self._rules = rules or Rules()
        self.roster = WorkerRegistry(heartbeat_s, lost_after_s, self._rules.stuck_factor, self._rules.stuck_min_s)
        self._heartbeat_s = heartbeat_s
        self._refused: set[str] = set()
        #: Strangers that were asked who they are, and until when to wait for their answer.
        self._asked: dict[str, float] = {}
        self._books = books = TaskStore(
            models,
            self.roster,
            self._rules,
            max_tasks=max_tasks,
            max_attempts=max_attempts,
            max_source_bytes=max_source_bytes,
            hold_s=hold_s,
        )
        self.tasks, self.queues, self.counters = books.tasks, books.queues, books.counters
        self.rates, self.costs = books.rates, books.costs

    def __repr__(self) -> str:
        return f"<Dispatch {len(self.tasks)} tasks, {self.roster!r}, {self.queues!r}>"

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take the event in; say what is to be done. Raises `QueueFull` for a `Submit` that does not fit."""
        fresh: Collection[str] = ()
        match event:
            case TasksSubmitted(tasks, known):
                self._books.submit(tasks, now, known=known)
                fresh = {task.id for task in tasks}
                effects: list[Effect] = []
            case RequestProxied(model, size, steps, count):
                self.rates[model].forward(size, steps, count, now)
                effects = []
            case ProxyFinished(model, count):
                self.rates[model].elsewhere -= count
                effects = []
            case TasksCancelled(tasks, reason):
                effects = self._abandon(tasks, reason, now)
            case MessageReceived(worker, parcel):
                effects = self._said(worker, parcel, now)
            case WorkerLost(worker, reason):
                effects = self._lose(worker, reason, now)
            case Tick():
                effects = self._tick(now)
        effects += self._books.assign(now, fresh)
        return effects + self._rearrange(now) if isinstance(event, Tick) else effects

    def estimate(self, task_id: str) -> TaskEstimate | None:
        """The task's place and how long it will take; None once it has ended."""
        task = self.tasks.get(task_id)
        return estimate(task, self.queues[task.model], self.roster.of(task.model)) if task is not None else None

    # ---- requests

    def _abandon(self, tasks: Sequence[str], reason: str, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for task_id in tasks:
            task = self.tasks.get(task_id)
            if task is not None:
                effects += self._books.end(task, TaskState.CANCELLED, None, reason, now)
        return effects

    # ---- time

    def _tick(self, now: float) -> list[Effect]:
        self._books.refresh()  # first: should it fail, nothing has changed that nobody would be told of
        effects = self._books.expire(now)
        self._asked = {name: until for name, until in self._asked.items() if until > now}
        for worker in self.roster.lost(now):
            effects += self._lose(worker.id, f"silent for {now - worker.last_seen:.1f} s", now)
        for worker in self.roster.stuck(now):
            effects += self._give_up(worker, now)
        return effects

    def _rearrange(self, now: float) -> list[Effect]:
        """Running tasks make room for more urgent ones, or spread over workers that have room."""
        effects: list[Effect] = []
        for model, queue in self.queues.items():
            if model in self._rules.unmoved:
                continue
            workers, margin = self.roster.of(model), self._rules.preempt_margin
            full = not any(worker.free and self.roster.state(worker, now) == "ready" for worker in workers)
            if margin is not None and len(queue) and full:
                effects += self._books.move(preemptions(queue, workers, self.tasks, margin, now), "displaced")
            elif self._rules.rebalance and not len(queue):
                effects += self._books.move(rebalancing(self.roster, model, self.tasks, now), "taken_over")
        return effects

    # ---- workers

    def _said(self, name: str, parcel: FromWorker, now: float) -> list[Effect]:
        message = parcel.message
        if isinstance(message, Hello):
            return self._hello(name, message, now)
        worker = self.roster.workers.get(name)
        if worker is None:
            return self._stranger(name, message, now)
        self.roster.heard(worker, now)
        match message:
            case Pull(slots):
                worker.slots = min(max(slots, 0), _MAX_SLOTS)
                worker.draining = slots == 0
                return []
            case Heartbeat():
                worker.hear(message, now)
                return [SendMessage(name, Welcome(self._heartbeat_s))]
            case Bye(reason, crashed):
                return self._lose(name, reason, now, peaceful=not crashed)
            case _:
                return self._about_task(worker, message, parcel.frames, now)

    def _stranger(self, name: str, message: ToBalancer, now: float) -> list[Effect]:
        """Ask it to introduce itself: once for all that was on its way, and again where that was lost."""
        self.counters["stranger"] += 1
        waited = now >= self._asked.get(name, now)
        if isinstance(message, Bye) or not waited or len(self._asked) >= _MOST_NAMED:
            return []
        self._asked[name] = now + self._heartbeat_s / 2
        return [SendMessage(name, Reject("unknown worker: say Hello"))]

    def _hello(self, name: str, hello: Hello, now: float) -> list[Effect]:
        refusal = self._refusal(name, hello)
        if refusal:
            return self._turn_away(name, refusal)
        self._asked.pop(name, None)
        known = self.roster.workers.get(name)
        held = known.held if known is not None else {}
        worker = self.roster.workers[name] = Worker(hello, now)
        running = dict(hello.running)
        worker.held = {task: attempt for task, attempt in held.items() if task in running}
        for task_id in held:
            task = self.tasks.get(task_id)
            if task is None or task.worker != name:
                continue
            task.leaving = False  # what it was asked before may not have reached it
            if task_id not in worker.held:
                self._books.requeue(task, f"{name} came back without it", now)
        fresh = {task: attempt for task, attempt in running.items() if task not in held}
        taken_up = [task for task, attempt in fresh.items() if self._books.take_up(task, attempt, worker, now)]
        # What it has and should not have; and what is others' from now on, for it may be on its way to this one.
        unwanted = [task for task in running if task not in worker.held]
        unwanted += [task for task in held if task not in worker.held]
        effects: list[Effect] = [SendMessage(name, Welcome(self._heartbeat_s))]
        if unwanted:
            effects.append(SendMessage(name, Cancel(unwanted)))
        if taken_up:
            effects.append(LogLine(f"worker {name} goes on with {len(taken_up)} tasks of an earlier balancer"))
        if known is None or known.hello.pid != hello.pid:
            effects.append(LogLine(f"worker {name} ready: {hello.model} on {hello.device}, process {hello.pid}"))
        return effects

    def _turn_away(self, name: str, why: str) -> list[Effect]:
        self.counters["workers_refused"] += 1
        effects: list[Effect] = [SendMessage(name, Reject(why, fatal=True))]
        if name not in self._refused and len(self._refused) < _MOST_NAMED:
            self._refused.add(name)
            effects.append(LogLine(f"worker {name} refused (further times are only counted): {why}"))
        return effects

    def _refusal(self, name: str, hello: Hello) -> str | None:
        if hello.protocol != PROTOCOL:
            return f"it speaks protocol {hello.protocol}, this balancer speaks {PROTOCOL}"
        if hello.worker != name:
            return f"it calls itself {hello.worker}"
        if hello.model not in self.queues:
            return f"no model '{hello.model}' here; there are {', '.join(self.queues)}"
        return None

    def _about_task(
        self,
        worker: Worker,
        message: Started | Progress | Finished | Failed | Returned,
        frames: Sequence[Frame],
        now: float,
    ) -> list[Effect]:
        worker.moved_at = now
        if worker.held.get(message.task) != message.attempt:
            self.counters["stale"] += 1
            return []
        if isinstance(message, Finished | Failed | Returned):
            del worker.held[message.task]
        task = self.tasks.get(message.task)
        if task is None or task.worker != worker.id or task.attempt != message.attempt:
            return []  # it ended while the worker still held it; only the slot mattered
        match message:
            case Started():
                return self._books.began(task, now)
            case Progress(step=step, steps=steps, preview=preview):
                expected = task.steps
                told = task.progress(step, steps, frames, preview=preview)
                self.queues[task.model].charge(task, task.steps - expected)
                return [*self._books.began(task, now), NotifyListener(told)]
            case Finished(flagged=flagged):
                return [*self._books.began(task, now), *self._books.complete(task, frames, flagged, now)]
            case Failed(kind=kind, message=text):
                return self._books.end(task, TaskState.FAILED, kind, text, now)
            case Returned(step=step):
                task.returned(step, frames)
                self.roster.forget(task.id)
                self._books.requeue(task, f"returned by {worker.id}", now)
                return []

    def _lose(self, name: str, reason: str, now: float, peaceful: bool = False) -> list[Effect]:
        """The worker is no more: what it held goes back to the queue."""
        worker = self.roster.workers.pop(name, None)
        if worker is None:
            return []
        if not peaceful:
            self.counters["workers_lost"] += 1
        note = LogLine(f"worker {name} gone ({reason}), {len(worker.held)} tasks go back to the queue")
        return [note, *self._books.recover(worker, reason, now, blame=not peaceful)]

    def _give_up(self, worker: Worker, now: float) -> list[Effect]:
        """The worker is stuck: others do its tasks. Their slots stay taken, for it may wake up, and still have them."""
        worker.stuck_at = now
        self.counters["workers_stuck"] += 1
        reason = f"it made no step for {now - worker.moved_at:.1f} s"
        note = LogLine(f"worker {worker.id} is stuck: it heartbeats, but {reason}")
        cancel = SendMessage(worker.id, Cancel(list(worker.held)))
        return [note, cancel, *self._books.recover(worker, reason, now, blame=True)]
