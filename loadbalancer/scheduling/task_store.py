"""The tasks' lives, and who holds what: every change of a task's state, with all that goes with it. Pure.

`dispatch` says what happened; here stands what follows for the task, its queue, its worker's slot, its owner's share,
the counters and its client. Nothing else changes a task's state.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from loadbalancer.scheduling.admission_control import AdmissionControl
from loadbalancer.scheduling.cost_model import ImageCosts
from loadbalancer.scheduling.deadline_chances import cannot_finish_in_time
from loadbalancer.scheduling.deadlines import Deadlines
from loadbalancer.scheduling.events import Effect, LogLine, NotifyListener, RecordTask, SendMessage
from loadbalancer.scheduling.preemption import Relocation
from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.rules import Rules
from loadbalancer.scheduling.snapshot import ModelCounters
from loadbalancer.scheduling.step_costs import StepCosts
from loadbalancer.scheduling.task import DeadlineUnreachable, Task, TaskCompleted, TaskEnded, TaskStarted, TaskState
from loadbalancer.scheduling.worker_registry import Worker, WorkerRegistry
from wire.codec import Frame
from wire.messages import Assign, Assignment, Cancel, FailureKind, Yield

#: No honest worker has a task in a higher attempt: one that names such a number is not believed.
_MOST_ATTEMPTS = 1_000_000


class TaskStore:
    """Tasks, queues and roster, kept in agreement."""

    def __init__(
        self,
        models: Sequence[str],
        roster: WorkerRegistry,
        rules: Rules,
        *,
        max_tasks: int,
        max_attempts: int,
        max_source_bytes: int,
        hold_s: float,
    ) -> None:
        self.roster = roster
        self.tasks: dict[str, Task] = {}
        self.counters: Counter[str] = Counter()
        self.rates = {model: ModelCounters(rules.watch.get(model)) for model in models}
        self.costs = {model: ImageCosts() for model in models}
        self._paces = {model: StepCosts(roster, model) for model in models}
        self.queues = {
            model: ModelQueue(max_tasks, priority_s=rules.priority_s, step_s=self._paces[model].step_s)
            for model in models
        }
        self._rules = rules
        self._max_attempts = max_attempts
        self._door = AdmissionControl(rules, max_source_bytes)
        self._deadlines = Deadlines()
        self._hold_s = hold_s
        #: Tasks that workers may still name, by model, and until when nothing is given out because of them.
        self._awaited: dict[str, set[str]] = {model: set() for model in models}
        self._held_until: dict[str, float] = {}

    def __repr__(self) -> str:
        return f"<Books {len(self.tasks)} tasks, {self.roster!r}, {self.queues!r}>"

    # ---- in

    def submit(self, tasks: Sequence[Task], now: float, *, known: bool = False) -> None:
        """Tasks of one request, of one model, are queued, all or none. Raises `QueueFull`.

        `known`: they were counted as arrivals before.
        """
        queue, workers = self.queues[tasks[0].model], self.roster.of(tasks[0].model)
        refusal = self._door.refusal(tasks, queue, workers, now)
        if refusal is not None:
            late = isinstance(refusal, DeadlineUnreachable)
            self.counters["deadline_unreachable" if late else "refused"] += len(tasks)
            raise refusal
        self._door.enter(tasks)
        for task in tasks:
            self.tasks[task.id] = task
            task.history.append((now, TaskState.QUEUED, "submitted"))
            self._deadlines.add(task)
            queue.push(task)
        awaited = {task.id for task in tasks if task.may_be_running}
        if awaited:
            self._awaited[tasks[0].model] |= awaited
            self._held_until[tasks[0].model] = now + self._hold_s
        self.counters["submitted"] += len(tasks)
        if not known:
            self.rates[tasks[0].model].arrived(tasks[0].size, tasks[0].remaining_steps, len(tasks), now)

    def assign(self, now: float, fresh: Collection[str] = ()) -> list[Effect]:
        """Fill free slots from the queues; one message per worker. What cannot be done in time ends before any work.

        `fresh` has just been let in: whoever sent it does not listen yet.
        """
        effects: list[Effect] = []
        orders: dict[str, tuple[list[Assignment], list[Frame]]] = {}
        for model, queue in self.queues.items():
            if self._awaited[model] and now < self._held_until[model]:
                continue
            if not queue or not any(worker.free for worker in self.roster.of(model)):
                continue
            for task in queue.lone():
                worker = self.roster.place(task, now)
                if worker is not None:
                    self._give(task, worker, orders, now)
            while (first := queue.first()) is not None and (able := self.roster.able(model, now)):
                worker = able[0] if first.id in fresh else self._in_time(first, able, now)
                if worker is not None:
                    self._give(first, worker, orders, now)
                else:
                    left = f"it has {max(first.deadline - now, 0.0):.1f} s left, and takes longer"
                    why = f"not begun {now - first.created:.1f} s after it arrived: {left}"
                    effects += self.end(first, TaskState.EXPIRED, None, why, now)
        sent = [SendMessage(worker, Assign(assignments), frames) for worker, (assignments, frames) in orders.items()]
        return [*effects, *sent]

    def _in_time(self, task: Task, able: Sequence[Worker], now: float) -> Worker | None:
        """The first of the workers that has the task done by its deadline; None where no worker of the model has.

        Where only one has that is full, any may begin: a slow worker is no reason to give up what a quick one could do.
        """
        costs, slack = self.costs[task.model], self._rules.deadline_slack
        crowded = len(self.queues[task.model]) > sum(worker.free for worker in able)
        for worker in (*able, *self.roster.of(task.model)):
            beside = min(sum(name in self.tasks for name in worker.held), max(worker.slots - 1, 0))
            if not cannot_finish_in_time(task, worker, beside, costs, crowded=crowded, slack=slack, now=now):
                return worker if worker in able else able[0]
        return None

    def _give(
        self, task: Task, worker: Worker, orders: dict[str, tuple[list[Assignment], list[Frame]]], now: float
    ) -> None:
        self.queues[task.model].take(task)
        task.attempt = max(task.attempt, task.claimed) + 1
        task.worker = worker.id
        task.move(TaskState.ASSIGNED, now, f"to {worker.id}, attempt {task.attempt}")
        worker.hold(task.id, task.attempt, now)
        assignments, frames = orders.setdefault(worker.id, ([], []))
        assignments.append(task.assignment())
        frames += [*task.sources, *task.checkpoint]

    def take_up(self, task_id: str, attempt: int, worker: Worker, now: float) -> bool:
        """The worker has had the task since an earlier life of the balancer: it goes on there.

        False where it may not: nobody waits for it, another has it, or it was given out in this life already.
        """
        task = self.tasks.get(task_id)
        if task is None or task.model != worker.hello.model or not 0 < attempt <= _MOST_ATTEMPTS:
            return False
        task.claimed = max(task.claimed, attempt)  # what is given out from now on is told apart from it
        if task.state is not TaskState.QUEUED or task.attempt:
            return False
        self.queues[task.model].take(task)
        task.attempt, task.worker, task.whole = attempt, worker.id, False
        task.move(TaskState.ASSIGNED, now, f"still with {worker.id}, attempt {attempt}")
        worker.hold(task.id, attempt, now)
        self._awaited[task.model].discard(task.id)
        self.counters["taken_up"] += 1
        return True

    # ---- on the way

    def began(self, task: Task, now: float) -> list[Effect]:
        """Its worker has it in its batch. Idempotent."""
        if task.state is TaskState.RUNNING:
            return []
        task.move(TaskState.RUNNING, now, "started")
        task.started = now
        if task.first_started is None:
            task.first_started = now
            self.rates[task.model].began(now - task.created)
        worker = self.roster.workers.get(task.worker or "")
        if worker is not None:
            self.costs[task.model].began(task.id, worker, now)
        return [NotifyListener(TaskStarted(task.id))]

    def refresh(self) -> None:
        """Look anew at what steps cost."""
        for model, paces in self._paces.items():
            factor = paces.refresh()
            if factor is not None:
                self.queues[model].rescale(factor)
            self.costs[model].refresh(self.roster.of(model))

    def move(self, moves: Sequence[Relocation], counted_as: str) -> list[Effect]:
        """Have running tasks handed back by their workers, with their progress."""
        effects: list[Effect] = []
        for move in moves:
            task = self.tasks[move.task]
            task.leaving, task.moves = True, task.moves + 1
            where = f"{move.worker} at step {task.step} of {task.steps}"
            effects += [
                SendMessage(move.worker, Yield([task.id])),
                LogLine(f"task {task.id} leaves {where}: {move.why}"),
            ]
        self.counters[counted_as] += len(moves)
        return effects

    def requeue(self, task: Task, reason: str, now: float) -> None:
        """It goes back to its place in the queue, to go on from its checkpoint."""
        task.move(TaskState.QUEUED, now, f"{reason}; goes on at step {task.checkpoint_step} of {task.steps}")
        task.work_s, task.whole = task.work_s + self.costs[task.model].left(task.id, now), False
        task.worker = None
        task.leaving = False
        self.counters["requeued"] += 1
        self.counters["steps_redone"] += task.set_back()
        self.queues[task.model].put_back(task)

    def recover(self, worker: Worker, reason: str, now: float, *, blame: bool) -> list[Effect]:
        """What the worker held goes back to the queue, or has hurt enough workers; `blame`: it may be the reason."""
        effects: list[Effect] = []
        for task_id in worker.held:
            task = self.tasks.get(task_id)
            if task is None or task.worker != worker.id:
                continue
            self.roster.forget(task_id)
            if task.state is TaskState.RUNNING and blame:
                task.crashes += 1
            if task.crashes >= self._max_attempts:
                died = (
                    "1 worker died or hung while it" if task.crashes == 1 else f"{task.crashes} workers died while they"
                )
                text = f"{died} ran this image; the last: {reason}"
                task.worker = None
                effects += self.end(task, TaskState.FAILED, "error", text, now)
            else:
                self.requeue(task, f"{worker.id} is lost: {reason}", now)
        return effects

    # ---- out

    def complete(self, task: Task, frames: Sequence[Frame], flagged: bool, now: float) -> list[Effect]:
        """It has its image."""
        started = task.first_started if task.first_started is not None else now
        task.move(TaskState.DONE, now, "finished")
        self.rates[task.model].completions.add(1, now)
        account = self._drop(task, "done", now)
        if task.whole:
            self.costs[task.model].learn(task.size, task.steps, task.work_s)
        image = frames[0] if frames else b""
        return [*account, NotifyListener(TaskCompleted(task.id, image, started - task.created, now - started, flagged))]

    def expire(self, now: float) -> list[Effect]:
        """Tasks whose deadline has come end, wherever they are."""
        effects: list[Effect] = []
        for task in self._deadlines.due(self.tasks, now):
            waited = f"not done {now - task.created:.1f} s after it arrived ({task.state.value})"
            effects += self.end(task, TaskState.EXPIRED, None, waited, now)
        return effects

    def end(self, task: Task, state: TaskState, kind: FailureKind | None, message: str, now: float) -> list[Effect]:
        """The task ends without an image; the worker that holds it is told to let go."""
        effects = self._release_place(task)
        if task.state is not TaskState.QUEUED:
            self.queues[task.model].refund(task)
        task.move(state, now, message)
        return [*effects, *self._drop(task, state.value, now), NotifyListener(TaskEnded(task.id, state, kind, message))]

    def _release_place(self, task: Task) -> list[Effect]:
        if task.state is TaskState.QUEUED:
            self.queues[task.model].remove(task)
            return []
        worker = self.roster.workers.get(task.worker or "")
        holds = worker is not None and worker.held.get(task.id) == task.attempt
        return [SendMessage(worker.id, Cancel([task.id]))] if worker is not None and holds else []

    def _drop(self, task: Task, counted_as: str, now: float) -> list[Effect]:
        task.work_s += self.costs[task.model].left(task.id, now)
        self.counters[counted_as] += 1
        self.roster.forget(task.id)
        self._door.leave(task)
        self._awaited[task.model].discard(task.id)
        del self.tasks[task.id]
        return [RecordTask(task)] if self._rules.record else []
