"""The tasks that the page lists: those that run, then the first of those that wait. Pure."""

from __future__ import annotations

from itertools import chain, islice

from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.task_state import TaskState
from loadbalancer.schema.page import TaskRow

MAX_TASKS = 200


def list_tasks(scheduler: Scheduler, model: str | None, owner: str | None, now: float) -> tuple[list[TaskRow], int]:
    """Return the first tasks and the number of all, of one model or owner where given."""
    found = [
        task
        for task in scheduler.tasks.values()
        if (model is None or task.model == model) and (owner is None or task.owner == owner)
    ]
    running = (task for task in found if task.state is not TaskState.QUEUED)
    waiting = (task for task in found if task.state is TaskState.QUEUED)
    listed = islice(chain(running, waiting), MAX_TASKS)
    return [_row(task, scheduler, now) for task in listed], len(found)


def _row(task: Task, scheduler: Scheduler, now: float) -> TaskRow:
    estimate = scheduler.estimate(task.id)
    position, eta_s = (0, None) if estimate is None else (estimate.position, estimate.eta_s)
    return TaskRow(
        id=task.id,
        model=task.model,
        owner=task.owner,
        state=task.state.value,
        age_s=round(now - task.created, 1),
        step=task.step,
        steps=task.steps,
        position=position,
        eta_s=None if eta_s is None else round(eta_s, 1),
        worker=task.worker,
    )
