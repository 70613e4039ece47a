"""The balancer's mind: `handle(event, now) -> effects`. The only owner of task states.

Rule 1: no I/O, no clock, no await. What must be done comes back as effects; what was done arrives as the next event.
Rule 2: a worker's word counts only for a task that it holds, in the attempt it was given; all else is counted as
stale and dropped. So every accepted task ends exactly once, however messages, deaths and cancellations interleave.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Sequence

from loadbalancer.effects import Abandon, Effect, Event, Gone, Note, Said, Send, Submit, Tell, Tick
from loadbalancer.outlook import outlook, room_in
from loadbalancer.request_queue import ModelQueue
from loadbalancer.roster import Roster, Worker
from loadbalancer.stats import Rates
from loadbalancer.task import Began, Completed, Ended, Outlook, QueueFull, State, Task
from wire.codec import Frame, FromWorker
from wire.messages import (
    PROTOCOL,
    Assign,
    Assignment,
    Bye,
    Cancel,
    Failed,
    FailureKind,
    Finished,
    Heartbeat,
    Hello,
    Progress,
    Pull,
    Reject,
    Returned,
    Started,
    Welcome,
)

#: A task under which this many workers died may be the reason: from then on it runs alone. The first death is
#: taken for chance, so that a killed worker does not turn its whole batch into single file.
_ALONE_AFTER_CRASHES = 2
_MAX_SLOTS = 4096


class Dispatch:
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
    ) -> None:
        self.queues = {model: ModelQueue(max_tasks) for model in models}
        self.rates = {model: Rates() for model in models}
        self.roster = Roster(heartbeat_s, lost_after_s)
        self.tasks: dict[str, Task] = {}
        self.counters: Counter[str] = Counter()
        self._max_attempts = max_attempts
        self._max_source_bytes = max_source_bytes
        #: Bytes of source pictures that the tasks hold; pictures that tasks of a request share are counted for each.
        self._source_bytes = 0
        self._heartbeat_s = heartbeat_s
        self._deadlines: list[tuple[float, str]] = []

    def __repr__(self) -> str:
        return f"<Dispatch {len(self.tasks)} tasks, {self.roster!r}, {self.queues!r}>"

    def handle(self, event: Event, now: float) -> list[Effect]:
        """Take the event in; say what is to be done. Raises `QueueFull` for a `Submit` that does not fit."""
        match event:
            case Submit(tasks):
                effects = self._submit(tasks, now)
            case Abandon(tasks, reason):
                effects = self._abandon(tasks, reason, now)
            case Said(worker, parcel):
                effects = self._said(worker, parcel, now)
            case Gone(worker, reason):
                effects = self._lose(worker, reason, now)
            case Tick():
                effects = self._tick(now)
        return effects + self._assign(now)

    def outlook(self, task_id: str) -> Outlook | None:
        """The task's place and how long it will take; None once it has ended."""
        task = self.tasks.get(task_id)
        return outlook(task, self.queues[task.model], self.roster.of(task.model)) if task is not None else None

    # ---- requests

    def _submit(self, tasks: Sequence[Task], now: float) -> list[Effect]:
        queue, workers = self.queues[tasks[0].model], self.roster.of(tasks[0].model)
        if len(tasks) > queue.room():
            self.counters["refused"] += len(tasks)
            why = f"the queue of model '{tasks[0].model}' is full ({queue.max_tasks} images are waiting)"
            raise QueueFull(why, room_in(queue, workers, len(tasks)))
        source_bytes = sum(task.source_bytes for task in tasks)
        if self._source_bytes and self._source_bytes + source_bytes > self._max_source_bytes:
            self.counters["refused"] += len(tasks)
            why = f"source pictures of unfinished images fill the {self._max_source_bytes >> 20} MiB that they may take"
            raise QueueFull(why, room_in(queue, workers, len(tasks)))
        self._source_bytes += source_bytes
        for task in tasks:
            self.tasks[task.id] = task
            task.history.append((now, State.QUEUED, "submitted"))
            heapq.heappush(self._deadlines, (task.deadline, task.id))
            queue.push(task)
        self.counters["submitted"] += len(tasks)
        self.rates[tasks[0].model].arrivals.add(len(tasks), now)
        return []

    def _abandon(self, tasks: Sequence[str], reason: str, now: float) -> list[Effect]:
        effects: list[Effect] = []
        for task_id in tasks:
            task = self.tasks.get(task_id)
            if task is not None:
                effects += self._end(task, State.CANCELLED, None, reason, now)
        return effects

    def _end(self, task: Task, state: State, kind: FailureKind | None, message: str, now: float) -> list[Effect]:
        """The task ends without an image; the worker that holds it is told to let go."""
        effects = self._release_place(task)
        task.move(state, now, message)
        self._drop(task, state.value)
        return [*effects, Tell(Ended(task.id, state, kind, message))]

    def _release_place(self, task: Task) -> list[Effect]:
        if task.state is State.QUEUED:
            self.queues[task.model].remove(task)
            return []
        worker = self.roster.workers.get(task.worker or "")
        holds = worker is not None and worker.held.get(task.id) == task.attempt
        return [Send(worker.id, Cancel([task.id]))] if worker is not None and holds else []

    def _drop(self, task: Task, counted_as: str) -> None:
        self.counters[counted_as] += 1
        self.roster.forget(task.id)
        self._source_bytes -= task.source_bytes
        del self.tasks[task.id]

    def _requeue(self, task: Task, reason: str, now: float) -> None:
        task.move(State.QUEUED, now, f"{reason}; goes on at step {task.checkpoint_step} of {task.steps}")
        task.worker = None
        self.counters["requeued"] += 1
        self.counters["steps_redone"] += task.set_back()
        self.queues[task.model].push(task)

    # ---- time

    def _tick(self, now: float) -> list[Effect]:
        effects: list[Effect] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            task = self.tasks.get(heapq.heappop(self._deadlines)[1])
            if task is not None:
                waited = f"not done {now - task.created:.1f} s after it arrived ({task.state.value})"
                effects += self._end(task, State.EXPIRED, None, waited, now)
        if len(self._deadlines) > 2 * len(self.tasks) + 1024:  # most belong to tasks that ended in time
            self._deadlines = [entry for entry in self._deadlines if entry[1] in self.tasks]
            heapq.heapify(self._deadlines)
        for worker in self.roster.lost(now):
            effects += self._lose(worker.id, f"silent for {now - worker.last_seen:.1f} s", now)
        return effects

    def _assign(self, now: float) -> list[Effect]:
        """Fill free slots from the queues; one message per worker."""
        orders: dict[str, tuple[list[Assignment], list[Frame]]] = {}
        for model, queue in self.queues.items():
            if not queue or not any(worker.free for worker in self.roster.of(model)):
                continue
            for task in queue:
                alone = task.crashes >= _ALONE_AFTER_CRASHES
                worker = self.roster.place(task, alone, now)
                if worker is None and not alone:
                    break
                if worker is None:
                    continue
                queue.remove(task)
                task.attempt += 1
                task.worker = worker.id
                task.move(State.ASSIGNED, now, f"to {worker.id}, attempt {task.attempt}")
                worker.held[task.id] = task.attempt
                assignments, frames = orders.setdefault(worker.id, ([], []))
                assignments.append(task.assignment(alone))
                frames += [*task.sources, *task.checkpoint]
        return [Send(worker, Assign(assignments), frames) for worker, (assignments, frames) in orders.items()]

    # ---- workers

    def _said(self, name: str, parcel: FromWorker, now: float) -> list[Effect]:
        message = parcel.message
        if isinstance(message, Hello):
            return self._hello(name, message, now)
        worker = self.roster.workers.get(name)
        if worker is None:
            self.counters["stranger"] += 1
            return [] if isinstance(message, Bye) else [Send(name, Reject("unknown worker: say Hello"))]
        worker.last_seen = now
        match message:
            case Pull(slots):
                worker.slots = min(max(slots, 0), _MAX_SLOTS)
                worker.draining = slots == 0
                return []
            case Heartbeat():
                worker.beat = message
                return [Send(name, Welcome(self._heartbeat_s))]
            case Bye(reason, crashed):
                return self._lose(name, reason, now, peaceful=not crashed)
            case _:
                return self._about_task(worker, message, parcel.frames, now)

    def _hello(self, name: str, hello: Hello, now: float) -> list[Effect]:
        refusal = self._refusal(name, hello)
        if refusal:
            return [Send(name, Reject(refusal, fatal=True)), Note(f"worker {name} refused: {refusal}")]
        known = self.roster.workers.get(name)
        held = known.held if known is not None else {}
        worker = self.roster.workers[name] = Worker(hello, now)
        worker.held = {task: attempt for task, attempt in held.items() if task in hello.running}
        for task_id in held.keys() - worker.held.keys():
            task = self.tasks.get(task_id)
            if task is not None and task.worker == name:
                self._requeue(task, f"{name} came back without it", now)
        strangers = [task for task in hello.running if task not in worker.held]
        effects: list[Effect] = [Send(name, Welcome(self._heartbeat_s))]
        if strangers:
            effects.append(Send(name, Cancel(strangers)))
        return [*effects, Note(f"worker {name} ready: {hello.model} on {hello.device}, process {hello.pid}")]

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
                return self._began(task, now)
            case Progress(step=step, steps=steps, preview=preview):
                told = task.progress(step, steps, frames, preview=preview)
                return [*self._began(task, now), Tell(told)]
            case Finished(flagged=flagged):
                return [*self._began(task, now), self._complete(task, frames, flagged, now)]
            case Failed(kind=kind, message=text):
                return self._end(task, State.FAILED, kind, text, now)
            case Returned(step=step):
                task.returned(step, frames)
                self.roster.forget(task.id)
                self._requeue(task, f"returned by {worker.id}", now)
                return []

    def _began(self, task: Task, now: float) -> list[Effect]:
        if task.state is State.RUNNING:
            return []
        task.move(State.RUNNING, now, "started")
        if task.first_started is None:
            task.first_started = now
        return [Tell(Began(task.id))]

    def _complete(self, task: Task, frames: Sequence[Frame], flagged: bool, now: float) -> Effect:
        started = task.first_started if task.first_started is not None else now
        task.move(State.DONE, now, "finished")
        self.rates[task.model].completions.add(1, now)
        self._drop(task, "done")
        image = frames[0] if frames else b""
        return Tell(Completed(task.id, image, started - task.created, now - started, flagged))

    def _lose(self, name: str, reason: str, now: float, peaceful: bool = False) -> list[Effect]:
        """The worker is no more: what it held goes back to the queue."""
        worker = self.roster.workers.pop(name, None)
        if worker is None:
            return []
        if not peaceful:
            self.counters["workers_lost"] += 1
        effects: list[Effect] = [Note(f"worker {name} gone ({reason}), {len(worker.held)} tasks go back to the queue")]
        for task_id in worker.held:
            task = self.tasks.get(task_id)
            if task is None or task.worker != name:
                continue
            self.roster.forget(task_id)
            if task.state is State.RUNNING and not peaceful:
                task.crashes += 1
            if task.crashes >= self._max_attempts:
                text = f"{task.crashes} workers died while they ran this image; the last: {reason}"
                task.worker = None
                effects += self._end(task, State.FAILED, "error", text, now)
            else:
                self._requeue(task, f"{name} gone: {reason}", now)
        return effects
