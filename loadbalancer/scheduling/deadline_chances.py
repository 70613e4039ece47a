"""Whether a task that is next can still be done in time. Pure.

A full queue of requests with short times settles where each has waited for about all the time that it had. Workers that
began with what is next, come what may, would then do nothing but work that nobody waits for any more.
"""

from __future__ import annotations

from loadbalancer.scheduling.cost_model import ImageCosts
from loadbalancer.scheduling.task import Task
from loadbalancer.scheduling.worker_registry import Worker

#: Where others wait for the same place, a task needs so much more time than it would take by what was measured: the one
#: that is next is always close to its end there, and would often miss it by a hair.
_MARGIN = 1.1


def _needs_s(task: Task, worker: Worker, beside: int, costs: ImageCosts) -> float | None:
    """Seconds to its end if the worker began with it now, beside so many others; None if that was not measured."""
    step_s = costs.step_in_s(task.size, worker, beside + 1)
    return None if step_s is None else task.remaining_steps * step_s


def cannot_finish_in_time(
    task: Task, worker: Worker, beside: int, costs: ImageCosts, *, crowded: bool, slack: float | None, now: float
) -> bool:
    """Whether the worker had better not begin with it. `crowded`: more wait than there are free places.

    Without a crowd it is given its chance, unless by the measure of the door (`slack` times its time) it has none: then
    it would only slow down the others of its batch. An idle worker begins with anything, and so measures anew what it
    takes.
    """
    has_s = task.deadline - now
    if has_s <= 0:
        return True
    needs = None if slack is None else _needs_s(task, worker, beside, costs)
    if slack is None or needs is None:
        return False
    return needs * _MARGIN > has_s if crowded else beside > 0 and needs > slack * has_s
