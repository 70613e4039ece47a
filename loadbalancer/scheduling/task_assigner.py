"""Gives waiting tasks to workers: fills free slots in the order of the queues. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from loadbalancer.scheduling.cost_model import CostModel
from loadbalancer.scheduling.deadlines import worker_in_time
from loadbalancer.scheduling.events import Effect, SendMessage
from loadbalancer.scheduling.model_statistics import ModelStatistics
from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.scheduling.worker_pool import Worker
from loadbalancer.scheduling.worker_registry import WorkerRegistry
from wire.codec import Frame
from wire.messages import Assign, Assignment

_ASSIGNED = TaskState.ASSIGNED  # Python 3.11 takes long to find a member of an enumeration by its name
#: Assignments and their frames by worker: one message each.
_Assignments = dict[str, tuple[list[Assignment], list[Frame]]]


class TaskAssigner:
    """Assigns the tasks of all models. It reads `tasks`, and ends one that would be late by `expire`.

    `slack`: see `worker_in_time`. `hold_s`: see `TaskStore`.
    """

    def __init__(
        self,
        tasks: Mapping[str, Task],
        queues: Mapping[str, ModelQueue],
        registry: WorkerRegistry,
        costs: Mapping[str, CostModel],
        statistics: Mapping[str, ModelStatistics],
        expire: Callable[[Task, str, float], list[Effect]],
        *,
        slack: float | None,
        hold_s: float,
    ) -> None:
        self._tasks, self._queues, self._registry = tasks, queues, registry
        self._costs, self._statistics, self._expire = costs, statistics, expire
        self._slack, self._hold_s = slack, hold_s
        #: Tasks that workers may still claim, by model, and the time until which nothing is assigned because of them.
        self._unclaimed: dict[str, set[str]] = {model: set() for model in queues}
        self._hold_until: dict[str, float] = {}
        #: Models whose queue or slots have changed since tasks were assigned.
        self._changed: set[str] = set()
        #: Let the next `assign` look at this model: a slot may be free.
        self.note_change = self._changed.add

    def __repr__(self) -> str:
        return f"<TaskAssigner of {len(self._queues)} models, {len(self._changed)} changed>"

    def place(self, tasks: Sequence[Task], now: float) -> list[Effect]:
        """Queue the tasks of one request, and fill free slots.

        Where nothing waits, a task goes to a worker with room without a place in the queue. It has the same effect: it
        would be the first.
        """
        model = tasks[0].model
        queue, pool, unclaimed = self._queues[model], self._registry.pools[model], self._unclaimed[model]
        assignments: _Assignments = {}
        for task in tasks:
            if task.may_be_running:
                unclaimed.add(task.id)
                self._hold_until[model] = now + self._hold_s
            waits = queue.count or task.isolated or unclaimed
            worker = None if waits else pool.first_available(now)
            if worker is None:
                queue.push(task)
                self._changed.add(model)
            else:
                queue.charge_turn(task)
                self._assign(task, worker, assignments, now)
        return self.assign(now, tasks, assignments=assignments)

    def forget_claim(self, task: Task) -> None:
        """No worker may claim this task any more: one has done so, or the task has ended. Idempotent."""
        self._unclaimed[task.model].discard(task.id)

    def assign(
        self,
        now: float,
        submitted: Collection[Task] = (),
        *,
        everywhere: bool = False,
        assignments: _Assignments | None = None,
    ) -> list[Effect]:
        """Fill free slots from the queues, with one message per worker. Tasks that would be late expire instead.

        Looks at the models that have changed since the last call, or `everywhere`, because time changes them too.
        `submitted`: tasks submitted in this call, which do not expire: their listener is not registered yet.
        `assignments`: those that leave in the same messages.
        """
        effects: list[Effect] = []
        assignments = {} if assignments is None else assignments
        models = [*self._queues] if everywhere else [*self._changed]
        self._changed.clear()
        for model in models:
            queue = self._queues[model]
            if not queue.count or (self._unclaimed[model] and now < self._hold_until[model]):
                continue
            if queue.isolated:
                self._assign_isolated(queue, model, assignments, now)
            self._assign_first(queue, model, assignments, submitted, effects, now)
        for name, (own, frames) in assignments.items():
            queue = self._queues[self._registry.workers[name].hello.model]
            effects.append(SendMessage(name, Assign(own, queue.count - len(queue.isolated)), frames))
        return effects

    def _assign_isolated(self, queue: ModelQueue, model: str, assignments: _Assignments, now: float) -> None:
        """Start isolated tasks on reserved workers that are empty, and reserve workers for the next ones.

        A worker with room ahead only is reserved as well: while others are served first, it never has a free slot.
        """
        registry = self._registry
        if not any(worker.load is not None or worker.reserved_for is not None for worker in registry.pools[model]):
            return
        reserved = registry.reserved(model)
        waiting = [self._tasks[name] for name in reserved if self._tasks[name].state is TaskState.QUEUED]
        for task in queue.isolated.values():
            if task.id not in reserved:
                if registry.reserve(task, now) is None:
                    break
                waiting.append(task)
        for task in waiting:
            worker = registry.reserve(task, now)
            if worker is not None and registry.is_empty(worker, now):
                queue.take(task)
                self._assign(task, worker, assignments, now)

    def _assign_first(
        self,
        queue: ModelQueue,
        model: str,
        assignments: _Assignments,
        submitted: Collection[Task],
        effects: list[Effect],
        now: float,
    ) -> None:
        """Assign tasks in the order of the queue while a worker has room."""
        pool = self._registry.pools[model]
        while (first_available := pool.first_available(now)) is not None and (first := queue.first()) is not None:
            worker: Worker | None = first_available
            if first not in submitted:
                worker = worker_in_time(
                    first,
                    self._registry,
                    first_available,
                    self._tasks,
                    self._costs[model],
                    waiting=queue.count,
                    slack=self._slack,
                    now=now,
                )
            if worker is not None:
                queue.take(first)
                self._assign(first, worker, assignments, now)
            else:
                left = f"it has {max(first.deadline - now, 0.0):.1f} s left, and takes longer"
                reason = f"not started {now - first.created:.1f} s after it arrived: {left}"
                effects += self._expire(first, reason, now)

    def _assign(self, task: Task, worker: Worker, assignments: _Assignments, now: float) -> None:
        """Give a task that is not in the queue to the worker."""
        task.attempt = max(task.attempt, task.last_claimed_attempt) + 1
        task.worker = worker.id
        task.transition(_ASSIGNED, now, ("to {}, attempt {}", worker.id, task.attempt))
        worker.assign(task.id, task.attempt, now)
        if task.attempt == 1:
            self._statistics[task.model].time_in_queue.observe(now - task.created)
        assignment, task_frames = task.assignment()
        own, frames = assignments.setdefault(worker.id, ([], []))
        own.append(assignment)
        frames += task_frames
