"""Workers that were taken for dead and return, and time in which the balancer heard none."""

from __future__ import annotations

import pytest

from configs.sections import Workers
from loadbalancer.scheduling.events import ProcessSuspended, TasksSubmitted, Tick, WorkerLost
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task_state import TaskState
from tests.support.scheduler import connect, new_scheduler, receive, task
from wire.messages import Heartbeat, Started, WorkerCounters


def start(core: Scheduler, pid: int, now: float) -> None:
    """Connect the worker, on which the only task then runs."""
    connect(core, "w", 1, now, pid=pid)
    receive(core, "w", Started("t", core.registry.workers["w"].assigned["t"]), now)


def lose(core: Scheduler, losses: int, *, returns: bool, first: int = 0) -> None:
    """Lose the worker so often. Each time it connects again: the same process, or a new one."""
    for number in range(first, first + losses):
        core.handle(WorkerLost("w", "cannot be reached"), float(number))
        if core.tasks:
            start(core, 1 if returns else 100 + number, number + 0.5)


def states(core: Scheduler) -> list[tuple[TaskState, bool]]:
    """Return of each task its state, and whether it is isolated."""
    return [(each.state, each.isolated) for each in core.tasks.values()]


def running() -> Scheduler:
    core = new_scheduler()
    core.handle(TasksSubmitted([task("t")]), 0.0)
    start(core, 1, 0.0)
    return core


def test_loss_of_a_worker_that_returns_does_not_count_for_its_task() -> None:
    core = running()
    lose(core, 3, returns=True)
    assert states(core) == [(TaskState.RUNNING, False)]
    lose(core, 2, returns=False, first=3)
    assert states(core) == [(TaskState.RUNNING, True)], "those count"
    lose(core, 1, returns=False, first=5)
    assert not core.tasks


def test_task_that_hangs_its_worker_again_and_again_fails() -> None:
    core = running()
    lose(core, 6, returns=True)
    assert not core.tasks, "three losses are excused, three count"


def test_new_process_of_the_same_name_is_no_return() -> None:
    core = running()
    lose(core, 3, returns=False)
    assert not core.tasks


def test_stuck_worker_that_connects_again_was_still_stuck() -> None:
    core = new_scheduler(workers=Workers(stuck_min_s=10.0, lost_after_s=1000.0))
    core.handle(TasksSubmitted([task("t")]), 0.0)
    start(core, 1, 0.0)
    for now in range(1, 12):
        receive(core, "w", Heartbeat(1), float(now))
        core.handle(Tick(), float(now))
    assert core.tasks["t"].crashes == 1
    connect(core, "w", 1, 12.0, pid=1)
    assert core.tasks["t"].crashes == 1


@pytest.mark.parametrize(("pause_s", "is_lost"), [(0.0, True), (50.0, False)])
def test_time_in_which_the_balancer_was_suspended_is_no_silence(pause_s: float, is_lost: bool) -> None:
    core = new_scheduler(workers=Workers(lost_after_s=10.0))
    connect(core, "w", 1, 0.0)
    if pause_s:
        core.handle(ProcessSuspended(pause_s), 55.0)
    core.handle(Tick(), 59.0)
    assert ("w" not in core.registry.workers) is is_lost
    core.handle(Tick(), 61.0)
    assert "w" not in core.registry.workers, "its silence before and after counts"


def worker_state(core: Scheduler, now: float) -> str:
    return core.registry.state(core.registry.workers["w"], now)


def beat_until(core: Scheduler, begin: int, end: int) -> None:
    """Let the worker say each second that it is alive and has made no step."""
    for now in range(begin, end):
        receive(core, "w", Heartbeat(1), float(now))
        core.handle(Tick(), float(now))


def test_time_in_which_the_balancer_was_suspended_is_no_long_step() -> None:
    core = new_scheduler(workers=Workers(stuck_min_s=10.0, lost_after_s=1000.0))
    core.handle(TasksSubmitted([task("t")]), 0.0)
    start(core, 1, 0.0)
    core.handle(ProcessSuspended(54.0), 55.0)
    beat_until(core, 55, 60)
    assert worker_state(core, 60.0) == "ready"
    beat_until(core, 60, 67)
    assert worker_state(core, 67.0) == "stuck"
    core.handle(ProcessSuspended(50.0), 120.0)
    receive(core, "w", Heartbeat(1), 120.0)
    assert worker_state(core, 120.0) == "stuck", "a pause is no progress"
    receive(core, "w", Heartbeat(1, counters=WorkerCounters(steps=1)), 121.0)
    assert worker_state(core, 121.0) == "ready"
