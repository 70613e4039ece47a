"""Preemption of running tasks: in favour of a more urgent task, or to move to a worker with free slots. Pure.

The worker hands the task back at its next step boundary with its state, and the queue sends it on. Bounds prevent
oscillation: a moved task stays for `MIN_STAY_S` and is moved at most `MAX_PREEMPTIONS` times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.scheduling.worker_pool import Worker, running_tasks
from loadbalancer.scheduling.worker_registry import WorkerRegistry

#: A moved task runs for this long before it is moved again.
MIN_STAY_S = 2.0
MAX_PREEMPTIONS = 4
#: A task that its worker holds ahead for longer goes to a worker with a free slot.
_MAX_HELD_S = 0.5
#: A move to another worker must save this part of the total time of both workers' tasks, and this much per task.
_MIN_GAIN = 0.2
_MIN_GAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Relocation:
    """The worker has to hand back the task."""

    worker: str
    task: str
    reason: str
    #: It stays if it has started meanwhile.
    unstarted: bool = False


def preemptions(
    queue: ModelQueue, workers: Sequence[Worker], tasks: Mapping[str, Task], margin: int, now: float
) -> list[Relocation]:
    """Return the running tasks to preempt for waiting ones of their owner whose priority is higher by `margin`.

    The lowest priority goes first, then the lowest progress. Called when no slot is free. A task is only preempted
    where the queue would serve the other before it: age counts too, and owners share by weight, not by priority.
    """
    relocations: list[Relocation] = []
    running: dict[str, list[Task]] = {}
    for task in _preemptible(workers, tasks):
        running.setdefault(task.owner, []).append(task)
    for owner, own in running.items():
        pending = sum(task.preempt_requested for task in own)
        movable = sorted((t for t in own if _is_movable(t, now)), key=lambda t: (t.priority, t.step / t.steps, t.id))
        # The first waiting tasks take the slots of the pending preemptions.
        waiting = queue.first_of_owner(owner, pending + len(movable))[pending:]
        for urgent, other in zip(waiting, movable, strict=False):
            if urgent.priority - other.priority < margin or not queue.is_preempted_by(other, urgent):
                break
            reason = f"priority {other.priority} is preempted by {urgent.id} of priority {urgent.priority}"
            relocations.append(Relocation(other.worker or "", other.id, reason))
    return relocations


def rebalancing(registry: WorkerRegistry, model: str, tasks: Mapping[str, Task], now: float) -> list[Relocation]:
    """Return the running tasks that finish sooner on the model's emptiest worker than on its fullest, as measured.

    Called when nothing waits. The tasks with the most remaining steps go. The moves make the two workers equally full
    at most, so that the tasks are sent to the emptier one. Nothing moves while earlier moves are pending.
    """
    ready = [
        worker
        for worker in registry.serving(model)
        if registry.state(worker, now) == "ready" and worker.slots and worker.reserved_for is None
    ]
    if len(ready) < 2 or any(task.preempt_requested for task in _preemptible(ready, tasks)):
        return []
    source, target = max(ready, key=_fill), min(ready, key=_fill)
    source_tasks, target_tasks = running_tasks(source, tasks), running_tasks(target, tasks)
    movable = sorted(
        (task for task in _preemptible([source], tasks) if _is_movable(task, now)),
        key=lambda task: (-task.remaining_steps, task.id),
    )
    best: tuple[float, int] = (0.0, 0)
    before_s = _total_time_s(source, source_tasks) + _total_time_s(target, target_tasks)
    for count in range(1, min(len(movable), target.free_slots) + 1):
        if (len(target_tasks) + count) / target.slots > (len(source_tasks) - count) / source.slots:
            break
        moved = movable[:count]
        moved_ids = {task.id for task in moved}
        remaining = [task for task in source_tasks if task.id not in moved_ids]
        saved_s = before_s - _total_time_s(source, remaining) - _total_time_s(target, [*target_tasks, *moved])
        if _is_measured(source, source_tasks) and _is_measured(target, [*target_tasks, *moved]):
            enough = saved_s >= max(_MIN_GAIN * before_s, _MIN_GAIN_S * count)
            best = max(best, (saved_s, count)) if enough else best
    saved_s, count = best
    reason = f"{target.id} has free slots: moving {count} tasks there saves {saved_s:.1f} s of waiting"
    return [Relocation(source.id, task.id, reason) for task in movable[:count]]


def move_unstarted(registry: WorkerRegistry, model: str, tasks: Mapping[str, Task], now: float) -> list[Relocation]:
    """Return the tasks that a worker has held ahead for a while, and that others have free slots for.

    Called when nothing waits in the queue. Each worker keeps as many tasks as it has slots.
    """
    ready = [worker for worker in registry.serving(model) if registry.state(worker, now) == "ready"]
    free = sum(worker.free_slots for worker in ready)
    if not free:
        return []
    relocations: list[Relocation] = []
    reason = f"it has waited there for {_MAX_HELD_S:g} s or longer, and another worker has a free slot"
    for worker in ready:
        if not worker.held_ahead:
            continue
        waiting = [task for task in running_tasks(worker, tasks) if task.state is TaskState.ASSIGNED]
        movable = [
            task
            for task in waiting
            if now - task.history[-1][0] > _MAX_HELD_S
            and task.preempt_count < MAX_PREEMPTIONS
            and not task.preempt_requested
        ]
        requested = sum(task.preempt_requested for task in waiting)
        free -= requested
        count = max(min(worker.held_ahead - requested, free - len(relocations), len(movable)), 0)
        newest = movable[len(movable) - count :]
        relocations += [Relocation(worker.id, task.id, reason, unstarted=True) for task in newest]
    return relocations


def _preemptible(workers: Iterable[Worker], tasks: Mapping[str, Task]) -> list[Task]:
    """Return the tasks that can be handed back with their progress, from workers whose slots others could use."""
    return [
        task
        for worker in workers
        if worker.hello.engine_info.checkpoints and not worker.draining and worker.reserved_for is None
        for task in running_tasks(worker, tasks)
        if task.state is TaskState.RUNNING and not task.isolated and task.can_restart
    ]


def _is_movable(task: Task, now: float) -> bool:
    stayed = task.preempt_count == 0 or (task.started is not None and now - task.started >= MIN_STAY_S)
    return stayed and task.preempt_count < MAX_PREEMPTIONS and not task.preempt_requested


def _fill(worker: Worker) -> tuple[float, str]:
    return len(worker.assigned) / worker.slots, worker.id


def _is_measured(worker: Worker, tasks: Sequence[Task]) -> bool:
    return all(worker.step_times.batch_step_s(task.shape, 1) > 0 for task in tasks)


def _total_time_s(worker: Worker, tasks: Sequence[Task]) -> float:
    """Return the sum of the tasks' seconds to their ends if none leaves; sizes take turns, one batch each."""
    shapes = Counter(task.shape for task in tasks)
    turn_s = sum(worker.step_times.batch_step_s(shape, count) for shape, count in shapes.items())
    return turn_s * sum(task.remaining_steps for task in tasks)
