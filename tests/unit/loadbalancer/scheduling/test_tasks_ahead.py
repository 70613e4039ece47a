"""Tasks that workers hold ahead of their next step: who gets them, and where they go back to."""

from __future__ import annotations

import pytest

from configs.sections import Queue
from loadbalancer.scheduling.events import SendMessage, TasksSubmitted, Tick, WorkerLost
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task_state import TaskState
from tests.support.scheduler import (
    IMAGE,
    PNG,
    assignments,
    connect,
    new_scheduler,
    preempt_requests,
    receive,
    task,
)
from wire.messages import Assign, Bye, Capacity, Finished, Preempt, Preempted, Progress, Started


def submit(core: Scheduler, count: int, now: float = 0.0, prefix: str = "t") -> list[str]:
    """Queue so many tasks; return the workers that they are sent to, in order."""
    effects = core.handle(TasksSubmitted([task(f"{prefix}{number}", now) for number in range(count)]), now)
    return [worker for worker, _ in assignments(effects)]


@pytest.mark.parametrize(
    ("offers", "submitted", "assigned"),
    [
        ({"a": (2, 3)}, 9, "aaaaa"),
        ({"a": (2, 3), "b": (2, 0)}, 9, "aaaaabb"),  # every slot is filled before any task goes ahead
        ({"a": (1, 2), "b": (1, 2)}, 9, "aaabbb"),
        ({"a": (2, 3), "b": (2, 0)}, 4, "aabb"),
        ({"a": (0, 5)}, 9, ""),  # it drains
        ({"a": (4, 4)}, 3, "aaa"),
    ],
)
def test_slots_of_all_workers_are_filled_first(
    offers: dict[str, tuple[int, int]], submitted: int, assigned: str
) -> None:
    core = new_scheduler()
    for name, (slots, ahead) in offers.items():
        connect(core, name, 0)
        receive(core, name, Capacity(slots, ahead))
    assert "".join(sorted(submit(core, submitted))) == assigned


@pytest.mark.parametrize(("submitted", "queued"), [(1, 0), (3, 0), (5, 2)])
def test_assignment_says_how_many_tasks_still_wait(submitted: int, queued: int) -> None:
    core = new_scheduler()
    connect(core, "a", 0)
    receive(core, "a", Capacity(2, 1))
    effects = core.handle(TasksSubmitted([task(f"t{number}") for number in range(submitted)]), 0.0)
    [sent] = [e.message for e in effects if isinstance(e, SendMessage) and isinstance(e.message, Assign)]
    assert sent.queued == queued


def test_task_ahead_counts_as_queued_in_the_snapshot() -> None:
    core = new_scheduler()
    connect(core, "a", 0)
    receive(core, "a", Capacity(2, 2))
    submit(core, 5)
    [model] = core.snapshot(now=0.0, wall_time=0.0, uptime_s=0.0).models
    assert (model.queued, model.running) == (3, 2)


def held_scene() -> Scheduler:
    """Worker `a` runs t0 and holds t1 and t2 ahead; `b` is idle and came later."""
    core = new_scheduler(Queue(rebalance=False))
    connect(core, "a", 0)
    receive(core, "a", Capacity(1, 2))
    assert submit(core, 3) == ["a"] * 3
    receive(core, "a", Started("t0", 1))
    connect(core, "b", 1)
    return core


def test_task_held_for_long_goes_to_a_free_slot() -> None:
    core = held_scene()
    assert preempt_requests(core.handle(Tick(), 0.4)) == []
    effects = core.handle(Tick(), 0.6)
    assert [e.message for e in effects if isinstance(e, SendMessage)] == [Preempt(["t2"], unstarted=True)]
    assert preempt_requests(core.handle(Tick(), 0.8)) == [], "one is on its way to the free slot"
    assert [worker for worker, _ in assignments(receive(core, "a", Preempted("t2", 1), 0.9))] == ["b"]


def test_task_that_has_started_meanwhile_stays() -> None:
    core = held_scene()
    core.handle(Tick(), 0.6)
    receive(core, "a", Progress("t2", 1, 1, 20), 0.7)
    assert core.tasks["t2"].state is TaskState.RUNNING
    assert not core.tasks["t2"].preempt_requested
    receive(core, "a", Finished("t2", 1, IMAGE), 0.7, (PNG,))
    assert core.counters["done"] == 1


def test_tasks_ahead_keep_their_order_when_their_worker_leaves() -> None:
    core = held_scene()
    effects = receive(core, "a", Bye("told"), 1.0)
    assert [given.task for _, given in assignments(effects)] == ["t0"]
    assert [waiting.id for waiting in core.queues["m"]] == ["t1", "t2"]
    assert all(core.tasks[name].crashes == 0 for name in ("t0", "t1", "t2"))


def test_task_that_kills_workers_before_they_say_that_it_runs_fails() -> None:
    """A worker that takes tasks ahead of short steps dies of one of them, each time before a word about its start."""
    core = new_scheduler()
    submit(core, 3)
    for number in range(3):
        connect(core, f"w{number}", 0)
        effects = receive(core, f"w{number}", Capacity(1, 2))
        if core.tasks["t0"].isolated:
            assert [given.task for _, given in assignments(effects)] == ["t0"], "by itself"
        core.handle(WorkerLost(f"w{number}", "killed"), float(number))
    assert "t0" not in core.tasks
    assert {name: waiting.crashes for name, waiting in core.tasks.items()} == {"t1": 2, "t2": 2}


def test_only_the_running_task_is_blamed_if_one_is_known() -> None:
    core = held_scene()
    core.handle(WorkerLost("a", "killed"), 1.0)
    assert {name: waiting.crashes for name, waiting in core.tasks.items()} == {"t0": 1, "t1": 0, "t2": 0}
