"""Isolated tasks: which worker becomes empty for them, and that no other task joins them there."""

from __future__ import annotations

import dataclasses

import pytest

from configs.scaling import Scaling
from configs.sections import Queue, Workers
from loadbalancer.scheduling.events import SendMessage, TasksSubmitted, Tick
from loadbalancer.scheduling.scheduler import Scheduler
from loadbalancer.scheduling.task import Task
from tests.support.scheduler import (
    CURVES,
    IMAGE,
    INPUTS,
    PNG,
    assignments,
    connect,
    new_scheduler,
    preempt_requests,
    receive,
    task,
)
from wire.codec import WorkerEnvelope
from wire.messages import PROTOCOL, Assign, Capacity, Finished, Heartbeat, Hello, Started, WorkerCounters

WORKERS = Workers(heartbeat_s=1.0, lost_after_s=1000.0, stuck_min_s=10.0)


def suspect(name: str = "suspect", now: float = 0.0) -> Task:
    """Return a task during which workers have died."""
    found = task(name, now)
    for _ in range(2):
        found.on_crash(3)
    return found


def finish_all(core: Scheduler, worker: str, now: float) -> list[str]:
    """End what the worker holds; return the tasks that are sent to it meanwhile."""
    given: list[str] = []
    for name, attempt in list(core.registry.workers[worker].assigned.items()):
        effects = receive(core, worker, Finished(name, attempt, IMAGE), now, (PNG,))
        given += [each.task for to, each in assignments(effects) if to == worker]
    return given


@pytest.mark.parametrize("ahead", [0, 1, 4])
def test_worker_becomes_empty_whatever_it_takes_ahead(ahead: int) -> None:
    core = new_scheduler()
    connect(core, "w", 0)
    receive(core, "w", Capacity(2, ahead))
    core.handle(TasksSubmitted([task(f"t{number}") for number in range(20)]), 0.0)
    core.handle(TasksSubmitted([suspect(now=1.0)]), 1.0)
    assert finish_all(core, "w", 2.0)[-1] == "suspect"
    assert core.registry.workers["w"].assigned == {"suspect": 1}


@pytest.mark.parametrize("ending", ["drains", "hangs", "is silent"])
def test_another_worker_takes_the_place_of_one_that_takes_no_tasks(ending: str) -> None:
    core = new_scheduler(workers=WORKERS)
    for name in ("a", "b"):
        connect(core, name, 1)
    core.handle(TasksSubmitted([task("1"), task("2")]), 0.0)
    for name in ("a", "b"):
        [(own, attempt)] = core.registry.workers[name].assigned.items()
        receive(core, name, Started(own, attempt))
    receive(core, "a", Capacity(1, 1))  # the one with room is reserved
    core.handle(TasksSubmitted([suspect()]), 0.0)
    assert core.registry.workers["a"].reserved_for == "suspect"
    if ending == "drains":
        receive(core, "a", Capacity(0))
    for now in range(1, 20):
        receive(core, "b", Heartbeat(1, counters=WorkerCounters(steps=now)), now)
        if ending != "is silent":
            receive(core, "a", Heartbeat(1), now)
    finish_all(core, "b", 20.0)
    core.handle(Tick(), 20.0)
    core.handle(Tick(), 20.25)
    assert core.registry.workers["b"].assigned == {"suspect": 1}
    receive(core, "a", Capacity(1), 20.5)
    given = finish_all(core, "a", 20.5)
    given += [each.task for _, each in assignments(core.handle(TasksSubmitted([task("3", 20.5)]), 20.5))]
    assert list(core.registry.workers["a"].assigned) == given[:1] != [], "it is free for others again"


@pytest.mark.parametrize(("is_alone", "wait_s"), [(True, 8.0), (False, 8.0 + 2.0)], ids=["runs alone", "waits first"])
def test_its_worker_has_no_free_slots_for_others(is_alone: bool, wait_s: float) -> None:
    """An urgent task preempts another elsewhere, and the expected wait is that for the other worker."""
    core = new_scheduler()
    connect(core, "isolating", 4)
    for each in [suspect()] if is_alone else [task("beside"), suspect()]:
        core.handle(TasksSubmitted([each]), 0.0)
    connect(core, "other", 2)
    core.handle(TasksSubmitted([task("1"), task("2")]), 0.0)
    assert set(core.registry.workers["isolating"].assigned) == {"suspect" if is_alone else "beside"}
    assert set(core.registry.workers["other"].assigned) == {"1", "2"}
    for name in ("1", "2"):
        receive(core, "other", Started(name, 1), 0.0)
    receive(core, "other", Heartbeat(2, curves=CURVES), 0.0)
    assert core.estimate_wait(task("3")) == pytest.approx(wait_s)
    core.handle(TasksSubmitted([task("urgent", priority=10)]), 1.0)
    assert preempt_requests(core.handle(Tick(), 1.0)) == [("other", "1")]


def test_each_model_has_its_own() -> None:
    core = Scheduler({"m": Scaling(), "n": Scaling()}, Queue(), WORKERS)
    connect(core, "w", 2)
    receive(core, "v", Hello(PROTOCOL, "v", "n", "sim:1", 2))
    receive(core, "v", Capacity(2))
    other = Task("other", "n", INPUTS, 0.0, 1000.0, steps=INPUTS.steps)
    core.handle(TasksSubmitted([task("1")]), 0.0)
    core.handle(TasksSubmitted([dataclasses.replace(other, id="2")]), 0.0)
    for _ in range(2):
        other.on_crash(3)
    core.handle(TasksSubmitted([suspect()]), 0.0)
    core.handle(TasksSubmitted([other]), 0.0)
    for worker, name in (("w", "1"), ("v", "2")):  # both are empty before tasks are assigned
        core.receive(worker, WorkerEnvelope(Finished(name, 1, IMAGE), (PNG,)), 1.0)
    given = {worker: each.task for worker, each in assignments(core.assign(1.0))}
    assert given == {"w": "suspect", "v": "other"}


def test_isolated_tasks_are_not_among_those_that_wait_for_any_slot() -> None:
    core = new_scheduler()
    connect(core, "a", 1)
    connect(core, "b", 0)
    core.handle(TasksSubmitted([task("1"), task("2"), task("3")]), 0.0)
    core.handle(TasksSubmitted([suspect("s1"), suspect("s2")]), 0.0)
    effects = receive(core, "b", Capacity(1), 0.0)
    assert [each.task for _, each in assignments(effects)] == ["s1"]
    assert [e.message.queued for e in effects if isinstance(e, SendMessage) and isinstance(e.message, Assign)] == [2]


@pytest.mark.parametrize("runs", [True, False])
def test_worker_that_reconnects_keeps_an_isolated_task_for_itself(runs: bool) -> None:
    core = new_scheduler()
    connect(core, "w", 2)
    core.handle(TasksSubmitted([suspect()]), 0.0)
    core.handle(TasksSubmitted([task("other")]), 0.0)
    effects = connect(core, "w", 2, 1.0, {"suspect": 1} if runs else {})
    assert [each.task for _, each in assignments(effects)] == ([] if runs else ["suspect"])
    assert core.registry.workers["w"].assigned == {"suspect": 1 if runs else 2}
    assert finish_all(core, "w", 2.0) == ["other"]
