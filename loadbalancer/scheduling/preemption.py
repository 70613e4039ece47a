"""Which running tasks change places: in favour of a more urgent one, or to a worker that has room. Pure.

Both are a `Yield`: the worker hands the task back at its next step boundary, with its state, and the queue sends it on.
Nothing moves to and fro: a task that was moved stays for `REST_S` and is moved at most `MOST_MOVES` times in its life.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from loadbalancer.scheduling.request_queue import ModelQueue
from loadbalancer.scheduling.task import Task, TaskState
from loadbalancer.scheduling.worker_registry import Worker, WorkerRegistry

#: A task that was moved runs for so long before it is moved again.
REST_S = 2.0
MOST_MOVES = 4
#: A move to another worker must save this part of the time that all tasks of the two need, and this much per task.
_LEAST_GAIN = 0.2
_LEAST_GAIN_S = 0.5


@dataclass(frozen=True, slots=True)
class Relocation:
    """The task is to be handed back by its worker."""

    worker: str
    task: str
    why: str


def preemptions(
    queue: ModelQueue, workers: Sequence[Worker], tasks: Mapping[str, Task], margin: int, now: float
) -> list[Relocation]:
    """Running tasks that give way to waiting ones of their owner whose priority is higher by `margin`.

    The least urgent goes first, then the least advanced. Asked when no slot is free. A task gives way only where the
    queue would serve the other before it: age counts too, and between owners there are shares, not priorities.
    """
    moves: list[Relocation] = []
    running: dict[str, list[Task]] = {}
    for task in _running(workers, tasks):
        running.setdefault(task.owner, []).append(task)
    for owner, own in running.items():
        leaving = sum(task.leaving for task in own)
        able = sorted((t for t in own if _movable(t, now)), key=lambda t: (t.priority, t.step / t.steps, t.id))
        # As many as leave already have their successors at the head of the line.
        waiting = queue.of(owner, leaving + len(able))[leaving:]
        for urgent, other in zip(waiting, able, strict=False):
            if urgent.priority - other.priority < margin or not queue.yields_to(other, urgent):
                break
            why = f"priority {other.priority} gives way to {urgent.id} of priority {urgent.priority}"
            moves.append(Relocation(other.worker or "", other.id, why))
    return moves


def rebalancing(roster: WorkerRegistry, model: str, tasks: Mapping[str, Task], now: float) -> list[Relocation]:
    """Running tasks that finish sooner on the model's emptiest worker than on its fullest, by the measured curves.

    Asked when nothing waits. Those with most left to do go. Never more than make the two equally full, so that they
    are sent to the emptier one, and none while others are on their way.
    """
    ready = [w for w in roster.of(model) if roster.state(w, now) == "ready" and w.slots and w.reserved is None]
    if len(ready) < 2 or any(task.leaving for task in _running(ready, tasks)):
        return []
    fullest, emptiest = max(ready, key=_fill), min(ready, key=_fill)
    there, here = _held(fullest, tasks), _held(emptiest, tasks)
    able = sorted(
        (task for task in _running([fullest], tasks) if _movable(task, now)), key=lambda t: (-t.remaining_steps, t.id)
    )
    best: tuple[float, int] = (0.0, 0)
    before = _time_s(fullest, there) + _time_s(emptiest, here)
    for count in range(1, min(len(able), emptiest.free) + 1):
        if (len(here) + count) / emptiest.slots > (len(there) - count) / fullest.slots:
            break
        moved = able[:count]
        going = {task.id for task in moved}
        stay = [task for task in there if task.id not in going]
        saved = before - _time_s(fullest, stay) - _time_s(emptiest, [*here, *moved])
        if _measured(fullest, there) and _measured(emptiest, [*here, *moved]):
            enough = saved >= max(_LEAST_GAIN * before, _LEAST_GAIN_S * count)
            best = max(best, (saved, count)) if enough else best
    saved, count = best
    why = f"{emptiest.id} has room: {count} tasks save {saved:.1f} s of waiting by moving there"
    return [Relocation(fullest.id, task.id, why) for task in able[:count]]


def _held(worker: Worker, tasks: Mapping[str, Task]) -> list[Task]:
    """Tasks that it works on or soon will."""
    held = (tasks.get(task) for task in worker.held)
    return [task for task in held if task is not None and task.worker == worker.id]


def _running(workers: Iterable[Worker], tasks: Mapping[str, Task]) -> list[Task]:
    """Tasks that could be handed back with their progress, from where another task could use the room."""
    return [
        task
        for worker in workers
        if worker.hello.about.checkpoints and not worker.draining and worker.reserved is None
        for task in _held(worker, tasks)
        if task.state is TaskState.RUNNING and not task.alone
    ]


def _movable(task: Task, now: float) -> bool:
    rested = task.moves == 0 or (task.started is not None and now - task.started >= REST_S)
    return rested and task.moves < MOST_MOVES and not task.leaving


def _fill(worker: Worker) -> tuple[float, str]:
    return len(worker.held) / worker.slots, worker.id


def _measured(worker: Worker, tasks: Sequence[Task]) -> bool:
    return all(worker.step_of(task.size, 1) > 0 for task in tasks)


def _time_s(worker: Worker, tasks: Sequence[Task]) -> float:
    """Seconds to their ends, summed over the tasks, if none leaves before: sizes take turns, each in one batch."""
    sizes = Counter(task.size for task in tasks)
    turn_s = sum(worker.step_of(size, count) for size, count in sizes.items())
    return turn_s * sum(task.remaining_steps for task in tasks)
